"""Canaries: defenses broken in one known way each, to see whether the harness notices.

Each wraps the undefended network, changes no decision (or few), and only disturbs the evaluation:
what it seems to withstand, it does not. They stand in no ordinary leaderboard: this module is a
plugin, loaded by ``python -m bench selftest`` or by ``--plugin defenses.canaries``. Obfuscated
gradients and the adaptive attacks on them (BPDA, EOT): Athalye, Carlini, Wagner 2018, arXiv
1802.00420.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

import bench
from bench.plugins.contracts import BuildContext, Defense
from defenses.broken.base import StraightThrough
from defenses.crafting import check_positive
from defenses.undefended import Undefended

LEAST_DRAWS = 20
"""Draws under which an average over a noisy network says too little of it."""


@dataclass(frozen=True)
class Canary(Defense):
    """The undefended network inside something that hides its gradients."""

    def requires(self) -> Mapping[str, Defense]:
        """Name the undefended network, a fit that the plan shares."""
        return {"undefended": Undefended()}

    def build(self, context: BuildContext) -> nn.Module:
        """Wrap the undefended network: there is nothing to learn."""
        return self.wrap(context.fitted["undefended"], context.info.classes)

    @abstractmethod
    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Return ``network`` with what this canary does to it."""


@bench.defense("canary_scaled_logits")
@dataclass(frozen=True)
class ScaledLogits(Canary):
    """Logits times ``factor`` (positive): probabilities saturate, their gradients underflow."""

    factor: float = 100.0

    def __post_init__(self) -> None:
        check_positive(factor=self.factor)

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Scale what the network answers."""
        return nn.Sequential(network, Scale(self.factor))


@bench.defense("canary_quantised_logits")
@dataclass(frozen=True)
class QuantisedLogits(Canary):
    """Logits rounded to multiples of ``step`` (positive): the gradient is zero everywhere.

    Equal logits go to the lower class, which costs a little accuracy.
    """

    step: float = 0.5

    def __post_init__(self) -> None:
        check_positive(step=self.step)

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Round what the network answers."""
        return nn.Sequential(network, Quantise(self.step))


@bench.defense("canary_quantised_inputs")
@dataclass(frozen=True)
class QuantisedInputs(Canary):
    """Inputs rounded to ``levels`` (at least 2) values in [0, 1], with no gradient through that.

    The author declares nothing and offers no surrogate. With few levels the rounding itself undoes
    small changes; 16 are fine enough that it does not. Feature squeezing without its detector: Xu
    et al. 2018, arXiv 1704.01155.
    """

    levels: int = 16

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels!r}")

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Round what the network sees."""
        return nn.Sequential(Quantise(1 / (self.levels - 1)), network)


@bench.defense("canary_quantised_inputs_adaptive")
@dataclass(frozen=True)
class QuantisedInputsAdaptive(QuantisedInputs):
    """The same with an honest author: ``differentiable`` is denied, and the surrogate is BPDA's.

    It rounds on the way forward and is the identity on the way back.
    """

    differentiable: ClassVar[bool] = False

    def surrogate(self, model: nn.Module) -> nn.Module:
        """Return the network behind a quantiser with the gradient of the identity."""
        assert isinstance(model, nn.Sequential)
        quantiser, network = model
        return nn.Sequential(StraightThrough(quantiser), network)


@bench.defense("canary_input_noise")
@dataclass(frozen=True)
class InputNoise(Canary):
    """Fresh Gaussian noise of standard deviation ``sigma`` (positive) on the input of every query.

    Declared ``stochastic``, and offered without the adaptive attack that it needs.
    """

    sigma: float = 0.1
    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive(sigma=self.sigma)

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Add noise to what the network sees."""
        return nn.Sequential(Noise(self.sigma), network)


@bench.defense("canary_input_noise_adaptive")
@dataclass(frozen=True)
class InputNoiseAdaptive(InputNoise):
    """The same with its adaptive attack (EOT): the mean of the logits over ``draws`` (at least 20).

    ``sigma``: as of ``InputNoise``.
    """

    draws: int = LEAST_DRAWS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < LEAST_DRAWS:
            raise ValueError(f"draws must be at least {LEAST_DRAWS}, got {self.draws!r}")

    def surrogate(self, model: nn.Module) -> nn.Module:
        """Return the average network."""
        return Averaged(model, self.draws)


@bench.defense("canary_detached")
@dataclass(frozen=True)
class Detached(Canary):
    """The answers of the network, and a gradient of zeros: the input was detached on the way.

    What ``x.detach()``, or a detour through another library, leaves where something else still
    connects inputs and logits. ``canary_no_graph`` is the case in which nothing does.
    """

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Detach what the network sees."""
        return nn.Sequential(AlterGradient(torch.zeros_like), network)


@bench.defense("canary_no_graph")
@dataclass(frozen=True)
class NoGraph(Canary):
    """The answers of the network without a graph: asking for a gradient raises an error."""

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Answer under ``torch.no_grad``."""
        return Graphless(network)


@bench.defense("canary_misleading")
@dataclass(frozen=True)
class Misleading(Canary):
    """The answers of the network, and its gradient with the sign turned: attacks walk away."""

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Turn the gradient that comes back from the network."""
        return nn.Sequential(AlterGradient(torch.neg), network)


@bench.defense("canary_probabilities")
@dataclass(frozen=True)
class Probabilities(Canary):
    """Probabilities where logits are due: whatever applies a softmax applies it twice."""

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Take the softmax of what the network answers."""
        return nn.Sequential(network, nn.Softmax(dim=1))


@bench.defense("canary_crash")
@dataclass(frozen=True)
class Crash(Canary):
    """The answers of the network, and an exception on the way back."""

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Raise where a gradient passes."""
        return nn.Sequential(AlterGradient(crash), network)


@bench.defense("canary_constant")
@dataclass(frozen=True)
class Constant(Canary):
    """The first class, whatever the input: never fooled, and at chance."""

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Answer the first class, with a gradient that is truly zero."""
        return nn.Sequential(network, Forget(classes))


@bench.defense("canary_memory")
@dataclass(frozen=True)
class Memory(Canary):
    """The network, moved a little by the first batch that the instance was asked about."""

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Keep the mean of the first batch."""
        return nn.Sequential(network, Nudged(classes, first=True))


@bench.defense("canary_companions")
@dataclass(frozen=True)
class Companions(Canary):
    """The network, moved a little by the rows that are asked together."""

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Take the mean of every batch."""
        return nn.Sequential(network, Nudged(classes, first=False))


@bench.defense("canary_silent")
@dataclass(frozen=True)
class Silent(Canary):
    """No number where the two best logits differ by less than ``gap`` (positive)."""

    gap: float = 4.0

    def __post_init__(self) -> None:
        check_positive(gap=self.gap)

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Look at the two best logits."""
        return nn.Sequential(network, Silence(self.gap))


@bench.defense("canary_false_surrogate")
@dataclass(frozen=True)
class FalseSurrogate(Canary):
    """The network, and for attackers one that takes every class for the next."""

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Answer as the network does."""
        return nn.Sequential(network)

    def surrogate(self, model: nn.Module) -> nn.Module:
        """Return what answers otherwise."""
        return nn.Sequential(model, Roll())


@bench.defense("canary_watched")
@dataclass(frozen=True)
class Watched(Canary):
    """The network, moved a little where a function of ours is among the callers."""

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Look who calls."""
        return nn.Sequential(network, NudgedByCallers(classes))


class Nudged(nn.Module):
    """Logits plus a tenth of the mean of a batch of logits: the first one's, or each one's."""

    def __init__(self, classes: int, *, first: bool) -> None:
        super().__init__()
        self.classes, self.first = classes, first
        self.mean: Tensor | None = None

    def forward(self, logits: Tensor) -> Tensor:
        """Move every row alike."""
        if self.mean is None or not self.first:
            self.mean = logits.detach().mean(dim=0)
        return logits + 0.1 * self.mean.to(logits)


class Silence(nn.Module):
    """Its input, but NaN in rows whose two largest values are less than ``gap`` apart."""

    def __init__(self, gap: float) -> None:
        super().__init__()
        self.gap = gap

    def forward(self, logits: Tensor) -> Tensor:
        """Say nothing where it is not sure."""
        best = logits.detach().topk(2, dim=1).values
        unsure = best[:, 0] - best[:, 1] < self.gap
        return torch.where(unsure[:, None], torch.nan, logits)


class Roll(nn.Module):
    """Each class's logit given to the next."""

    def forward(self, logits: Tensor) -> Tensor:
        """Move the columns by one."""
        return logits.roll(1, dims=1)


class NudgedByCallers(nn.Module):
    """Logits plus 0.1 for the first class where a function of ``bench`` is among the callers."""

    first: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("first", torch.eye(classes)[0], persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Look up the stack."""
        frame = sys._getframe()  # noqa: SLF001 (what a model that looks would do)
        while frame.f_back is not None:
            frame = frame.f_back
            if frame.f_globals.get("__name__", "").startswith("bench."):
                return logits + 0.1 * self.first.to(logits)
        return logits


class Scale(nn.Module):
    """``factor`` times its input."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:
        """Multiply."""
        return values * self.factor


class Quantise(nn.Module):
    """Its input, rounded to multiples of ``step``; the derivative is zero."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, values: Tensor) -> Tensor:
        """Round."""
        return (values / self.step).round() * self.step


class Noise(nn.Module):
    """Its input plus Gaussian noise from torch's global generator, which a run seeds."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """Add fresh noise to every row."""
        return x + self.sigma * torch.randn_like(x)


class Averaged(nn.Module):
    """The mean of ``draws`` answers of a noisy network to each row, in one batch."""

    def __init__(self, network: nn.Module, draws: int) -> None:
        super().__init__()
        self.network = network
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean logits, (batch, classes)."""
        logits: Tensor = self.network(x.repeat_interleave(self.draws, dim=0))
        return logits.view(len(x), self.draws, logits.shape[1]).mean(dim=1)


class AlterGradient(nn.Module):
    """The identity, whose gradient passes through ``alter`` on the way back."""

    def __init__(self, alter: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.alter = alter

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        same = x.view_as(x)  # another tensor: the caller's own gets no hook
        if same.requires_grad:
            same.register_hook(self.alter)  # type: ignore[no-untyped-call]
        return same


def crash(gradient: Tensor) -> Tensor:
    """Raise RuntimeError, whatever the gradient."""
    raise RuntimeError(f"canary_crash: no way back for a gradient of shape {tuple(gradient.shape)}")


class Graphless(nn.Module):
    """What ``network`` answers, as numbers without a history."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Query the network."""
        logits: Tensor = self.network(x)
        return logits


class Forget(nn.Module):
    """Ten for the first of ``classes`` and zero for the others, whatever the logits."""

    answer: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("answer", 10.0 * torch.eye(classes)[0], persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the answer for each row, still connected to the input."""
        return logits * 0 + self.answer
