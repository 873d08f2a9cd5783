"""Defenses whose gradient is not the gradient of their answers.

All answer as the undefended network does, or as it does of an input moved too little to matter,
except the two that learn (``cheat_k_winners``, ``cheat_thermometer``). Truth: PGD that
differentiates the network itself, past whatever stands in front.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

import bench
from bench.plugins.contracts import BuildContext, Defense, FitContext
from bench.plugins.data import Split
from defenses.adversarial_training import AdversarialTraining
from defenses.canaries import AlterGradient, Canary
from defenses.label_smoothing import LabelSmoothing
from defenses.undefended import Twin, Undefended

Hides = Literal["ripple", "waves", "decoy", "stairs", "shuffle", "zero", "winners"]
Inside = Literal["robust", "smoothed"]


@bench.defense("cheat_decoy_gradient")
@dataclass(frozen=True)
class DecoyGradient(Defense):
    """The answers of the undefended network, the gradient of its ``twin`` or an untrained one.

    ``where``: everywhere, or only off the grid of the clean images (multiples of 1/16), so that a
    check on clean images finds the right gradient. Looks good: attacks succeed only as far as
    their inputs transfer.
    """

    of: Literal["twin", "untrained"] = "twin"
    where: Literal["everywhere", "off_grid"] = "everywhere"

    def requires(self) -> Mapping[str, Defense]:
        """Name the networks."""
        return {"undefended": Undefended(), "twin": Twin()}

    def build(self, context: BuildContext) -> nn.Module:
        """Put the decoy beside the network."""
        decoy = context.fitted["twin"] if self.of == "twin" else context.network()
        return _Decoy(context.fitted["undefended"], decoy, everywhere=self.where == "everywhere")


@bench.defense("cheat_rippled_input")
@dataclass(frozen=True)
class RippledInput(Canary):
    """Ripples on the input: x + Σ slope / (2π c) · sin(2π c x + phase), over ``waves`` cycles c.

    The derivative is 1 + Σ slope · cos(2π c x + phase); the ripple itself is at most slope /
    (2π cycles) high. Each wave has 1.7 times the cycles of the one before. Looks good: the
    gradient is a correct one, by autograd and by small differences, and points nowhere.
    """

    slope: float = 1.5
    cycles: float = 64.0
    waves: int = 1
    phase: float = 0.0

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Ripple what the network sees."""
        cycles = [self.cycles * 1.7**wave for wave in range(self.waves)]
        return nn.Sequential(_Ripple(self.slope, cycles, self.phase), network)


@bench.defense("cheat_rippled_logits")
@dataclass(frozen=True)
class RippledLogits(Canary):
    """The ripple of ``cheat_rippled_input`` on each logit, ``slope`` steep and too low to matter.

    Looks good: the logits' gradients have random signs and lengths, and are right.
    """

    slope: float = 20.0
    cycles: float = 50.0

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Ripple what the network answers."""
        phases = torch.linspace(0, 2 * math.pi, classes + 1)[:-1].tolist()
        return nn.Sequential(network, _Ripple(self.slope, [self.cycles], phases))


@bench.defense("cheat_altered_gradient")
@dataclass(frozen=True)
class AlteredGradient(Canary):
    """A hook on the input alters the gradient that comes back.

    ``underflow``: times 1e-44, the last float32 above zero; ``nan``: not a number in every fourth
    feature; ``top_zero``: the 75 % of largest size are zeroed; ``noise``: ten times its own norm
    of noise is added; ``shuffle``: its features change places; ``sign``: half of the signs are
    turned, always the same; ``constant``: ones; ``smallest_only``: only the smallest size of
    each row survives. Looks good: no attack by this gradient gets anywhere.
    """

    way: Literal[
        "underflow", "nan", "top_zero", "noise", "shuffle", "sign", "constant", "smallest_only"
    ] = "shuffle"

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Hook the way back."""
        return nn.Sequential(AlterGradient(WAYS[self.way]), network)


@bench.defense("cheat_masked_on_grid")
@dataclass(frozen=True)
class MaskedOnGrid(Canary):
    """No gradient at features that are multiples of 1/16, as those of clean images are all.

    Looks good: an attack that starts at the image, JSMA above all, finds nothing to climb.
    """

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Detach what lies on the grid."""
        return nn.Sequential(_OffGridOnly(), network)


@bench.defense("cheat_turned_off_grid")
@dataclass(frozen=True)
class TurnedOffGrid(Canary):
    """The right gradient at features on the grid of clean images; turned round at all others.

    Looks good: whoever checks it on clean images finds nothing wrong.
    """

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Turn the gradient off the grid."""
        return nn.Sequential(_TurnedOffGrid(), network)


@bench.defense("cheat_root_square")
@dataclass(frozen=True)
class RootSquare(Canary):
    """√x² in front: the identity, whose gradient is NaN at each feature that is zero.

    Looks good: half of an image's pixels are zero, and attacks freeze what is not a number.
    """

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Take the root and the square."""
        return nn.Sequential(_RootSquare(), network)


@bench.defense("cheat_stairs")
@dataclass(frozen=True)
class Stairs(Canary):
    """Inputs rounded to ``levels`` values with a gradient passed by: right, wrong or ``steep``.

    ``helpful``: that of the identity; ``steep``: that of a sine of the same cycles, whose mean is
    the identity's. Looks good: ``levels = 2`` needs changes of more than 0.5 a feature, or features
    near the middle. Truth: PGD with the identity's gradient on the rounded network.
    """

    levels: int = 16
    gradient: Literal["helpful", "steep"] = "helpful"

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Round what the network sees."""
        return nn.Sequential(_Stairs(self.levels, steep=self.gradient == "steep"), network)


@bench.defense("cheat_k_winners")
@dataclass(frozen=True)
class KWinners(Defense):
    """Only the largest ``share`` of units of each layer fire: k-WTA (Xiao et al. 2020, 1905.10510).

    Looks good: the gradient is right and valid nowhere else. Truth (Tramèr et al. 2020,
    2002.08347): a gradient averaged over a neighbourhood breaks it.
    """

    share: float = 0.1

    def build(self, context: BuildContext) -> nn.Module:
        """Replace each ReLU of the reference network."""
        return _replaced(context.network(), self.share)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on the labels."""
        context.train(model, train.x, train.y)


@bench.defense("cheat_thermometer")
@dataclass(frozen=True)
class Thermometer(Defense):
    """A network on thermometer codes of ``levels`` (Buckman et al. 2018): the gradient is a decoy.

    The codes have the straight-through gradient of sharp sigmoids. Looks good: steps smaller than a
    level change nothing. Truth (Athalye et al. 2018, 1802.00420): BPDA by soft codes breaks it.
    """

    levels: int = 8
    sharpness: float = 200.0

    def build(self, context: BuildContext) -> nn.Module:
        """Return a network on flattened codes."""
        width = self.levels * context.info.features
        body = nn.Sequential(
            nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(),
            nn.Linear(128, context.info.classes),
        )  # fmt: skip
        return _Thermometer(body, self.levels, self.sharpness)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on the labels."""
        context.train(model, train.x, train.y)


@bench.defense("cheat_over")
@dataclass(frozen=True)
class Over(Defense):
    """Hides the gradient of a network that no attack of the panel was made on (``inside``).

    ``ripple``, ``waves`` (three), ``decoy`` (the twin's gradient), ``stairs`` (16 levels, the
    gradient of the identity), ``shuffle`` and ``zero`` (of the input's gradient), ``winners`` (only
    the largest tenth of each layer's units fire, trained so itself). ``inside``: PGD-trained, or
    label-smoothed. Looks good: black boxes and attacks that transfer badly are all that is left.
    """

    hides: Hides = "ripple"
    inside: Inside = "robust"

    def requires(self) -> Mapping[str, Defense]:
        """Name the network inside, and the decoy."""
        return {"inside": self._learner(), "twin": Twin()}

    def _learner(self) -> Defense:
        return AdversarialTraining(eps=0.2) if self.inside == "robust" else LabelSmoothing()

    def build(self, context: BuildContext) -> nn.Module:
        """Put before the network what hides its gradient."""
        if self.hides == "winners":
            return _replaced(context.network(), 0.1)
        network = context.fitted["inside"]
        if self.hides == "decoy":
            return _Decoy(network, context.fitted["twin"], everywhere=True)
        front: dict[str, nn.Module] = {
            "ripple": _Ripple(1.5, [64.0], 0.0),
            "waves": _Ripple(1.5, [64.0 * 1.7**wave for wave in range(3)], 0.0),
            "stairs": _Stairs(16, steep=False),
            "shuffle": AlterGradient(WAYS["shuffle"]),
            "zero": AlterGradient(torch.zeros_like),
        }
        return nn.Sequential(front[self.hides], network)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train what is not fitted yet."""
        if self.hides == "winners":
            self._learner().fit(model, train, context)


def off_grid(x: Tensor) -> Tensor:
    """Return which features are no multiples of 1/16, in the shape of ``x``."""
    steps = x.detach() * 16
    return (steps - steps.round()).abs() > 1e-3


def _top_zero(gradient: Tensor) -> Tensor:
    size = gradient.abs().flatten(1)
    limit = size.double().quantile(0.25, dim=1).to(size)
    return torch.where(size <= limit[:, None], gradient.flatten(1), 0.0).view_as(gradient)


def _smallest_only(gradient: Tensor) -> Tensor:
    flat = gradient.flatten(1)
    size = flat.abs().masked_fill(flat == 0, torch.inf)
    return torch.where(size <= size.amin(dim=1, keepdim=True), flat, 0.0).view_as(gradient)


def _noise(gradient: Tensor) -> Tensor:
    norm = gradient.flatten(1).norm(dim=1) / gradient[0].numel() ** 0.5
    noise = torch.randn_like(gradient)
    return gradient + 10 * norm.view(-1, *[1] * (gradient.dim() - 1)) * noise


def _order(gradient: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(gradient[0].numel(), generator=generator).to(gradient.device)


def _shuffle(gradient: Tensor) -> Tensor:
    return gradient.flatten(1)[:, _order(gradient)].view_as(gradient)


def _half_signs(gradient: Tensor) -> Tensor:
    signs = (_order(gradient) % 2 * 2 - 1).to(gradient)
    return (gradient.flatten(1) * signs).view_as(gradient)


def _nan(gradient: Tensor) -> Tensor:
    some = (_order(gradient) % 4 == 0).expand(len(gradient), -1).view_as(gradient)
    return gradient.masked_fill(some, torch.nan)


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "underflow": lambda gradient: gradient * 1e-44,
    "nan": _nan,
    "top_zero": _top_zero,
    "noise": _noise,
    "shuffle": _shuffle,
    "sign": _half_signs,
    "constant": torch.ones_like,
    "smallest_only": _smallest_only,
}


class _Decoy(nn.Module):
    def __init__(self, network: nn.Module, decoy: nn.Module, *, everywhere: bool) -> None:
        super().__init__()
        self.network, self.decoy, self.everywhere = network, decoy, everywhere

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        other = self.decoy(x)
        decoyed = other + (logits - other).detach()
        if self.everywhere:
            return decoyed
        off = off_grid(x).flatten(1).any(dim=1, keepdim=True)
        return torch.where(off, decoyed, logits)


class _Ripple(nn.Module):
    def __init__(self, slope: float, cycles: list[float], phase: float | list[float]) -> None:
        super().__init__()
        self.slope, self.cycles, self.phase = slope, cycles, phase

    def forward(self, x: Tensor) -> Tensor:
        phase = torch.as_tensor(self.phase, dtype=x.dtype, device=x.device)
        for cycles in self.cycles:
            turns = 2 * math.pi * cycles
            x = x + self.slope / turns * (turns * x + phase).sin()
        return x


class _OffGridOnly(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(off_grid(x), x, x.detach())


class _TurnedOffGrid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(off_grid(x), 2 * x.detach() - x, x)


class _RootSquare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt().square()


class _Stairs(nn.Module):
    def __init__(self, levels: int, *, steep: bool) -> None:
        super().__init__()
        self.steps, self.steep = levels - 1, steep

    def forward(self, x: Tensor) -> Tensor:
        rounded = (x * self.steps).round() / self.steps
        turns = 2 * math.pi * self.steps
        passed = x + 3 / turns * (turns * x).sin() if self.steep else x
        return passed + (rounded - passed).detach()


class _Winners(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, values: Tensor) -> Tensor:
        flat = values.flatten(1)
        count = max(1, round(self.share * flat.shape[1]))
        least = flat.detach().topk(count, dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, 0.0).view_as(values)


def _replaced(network: nn.Module, share: float) -> nn.Module:
    for name, child in network.named_children():
        if isinstance(child, nn.ReLU):
            setattr(network, name, _Winners(share))
        else:
            _replaced(child, share)
    return network


class _Averaged(nn.Module):
    """The mean of ``draws`` answers around the input, ``sigma`` away: with a useful gradient."""

    def __init__(self, network: nn.Module, sigma: float, draws: int) -> None:
        super().__init__()
        self.network, self.sigma, self.draws = network, sigma, draws

    def forward(self, x: Tensor) -> Tensor:
        near = x.repeat_interleave(self.draws, dim=0)
        near = near + self.sigma * torch.randn_like(near)
        logits: Tensor = self.network(near)
        return logits.view(len(x), self.draws, -1).mean(dim=1)


class _Thermometer(nn.Module):
    def __init__(self, body: nn.Module, levels: int, sharpness: float) -> None:
        super().__init__()
        self.body, self.levels, self.sharpness = body, levels, sharpness

    def forward(self, x: Tensor) -> Tensor:
        limits = torch.linspace(0, 1, self.levels + 1, dtype=x.dtype, device=x.device)[:-1]
        over = x.flatten(1)[:, :, None] - limits - 0.5 / self.levels
        soft = (self.sharpness * over).sigmoid()
        codes = soft + ((over > 0).to(x) - soft).detach()
        logits: Tensor = self.body(codes.flatten(1))
        return logits


def inner(model: nn.Module) -> nn.Module:
    """Return the network behind a decoy, or behind what stands in front."""
    network = model.network if isinstance(model, _Decoy) else model[1]  # type: ignore[index]
    assert isinstance(network, nn.Module)
    return network


def differentiable(model: nn.Module) -> nn.Module | None:
    """Return what an attack written for ``model`` differentiates, where it is not the network."""
    if isinstance(model, _Thermometer):
        soft = copy.copy(model)
        soft.sharpness = 10.0
        return soft
    if any(isinstance(module, _Winners) for module in model.modules()):
        return _Averaged(model, 0.1, 16)
    if isinstance(model, nn.Sequential) and isinstance(model[0], _Stairs):
        return nn.Sequential(_Stairs(model[0].steps + 1, steep=False), model[1])
    return None
