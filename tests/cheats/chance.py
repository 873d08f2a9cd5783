"""Defenses by chance: noise that nobody averages, and surrogates that are none.

Truth: an attack that averages at least 20 draws, judged by the majority of 21 draws, which favours
the defense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

import bench
from bench.plugins.contracts import BuildContext, Defense
from defenses.canaries import Averaged, Canary, Noise
from defenses.undefended import Twin, Undefended


@bench.defense("cheat_trivial_surrogate")
@dataclass(frozen=True)
class TrivialSurrogate(Canary):
    """Declares its noise of ``sigma``, and a surrogate that averages ``draws`` answers: one.

    Looks good: a surrogate is there, so the attack counts as adaptive.
    """

    stochastic: ClassVar[bool] = True
    sigma: float = 0.3
    draws: int = 1

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Add noise to what the network sees."""
        return nn.Sequential(Noise(self.sigma), network)

    def surrogate(self, model: nn.Module) -> nn.Module:
        """Return the model, or hardly more."""
        return model if self.draws == 1 else Averaged(model, self.draws)


@bench.defense("cheat_undeclared_noise")
@dataclass(frozen=True)
class UndeclaredNoise(Canary):
    """Noise of ``sigma`` that it does not declare, in a ``share`` of all calls.

    Looks good: with a small share two queries rarely differ, and an attack of many steps meets it.
    """

    sigma: float = 0.3
    share: float = 1.0

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Add noise to what the network sees, now and then."""
        return nn.Sequential(_NowAndThen(self.sigma, self.share), network)


@bench.defense("cheat_random_resize")
@dataclass(frozen=True)
class RandomResize(Canary):
    """Shifts each image by up to a pixel and rescales it a little, at random (Xie et al. 2018).

    Declared, with a ``surrogate`` that does not shift. Looks good: the gradient is another
    picture's.
    """

    stochastic: ClassVar[bool] = True

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Shift what the network sees."""
        return nn.Sequential(_Resize(), network)

    def surrogate(self, model: nn.Module) -> nn.Module:
        """Return the network without its shifts: better than nothing, and no average."""
        assert isinstance(model, nn.Sequential)
        return model[1]


@bench.defense("cheat_bad_surrogate")
@dataclass(frozen=True)
class BadSurrogate(Defense):
    """The undefended network with a surrogate whose gradient is worse than its own.

    ``of``: the ``twin``'s, or one whose gradient is ``zero``. Looks good: all adaptive attacks
    differentiate what the author declares.
    """

    of: Literal["twin", "zero"] = "twin"

    def requires(self) -> Mapping[str, Defense]:
        """Name the networks."""
        return {"undefended": Undefended(), "twin": Twin()}

    def build(self, context: BuildContext) -> nn.Module:
        """Put the surrogate beside the network, where nothing asks it."""
        return _Beside(context.fitted["undefended"], context.fitted["twin"])

    def surrogate(self, model: nn.Module) -> nn.Module:
        """Return what leads astray."""
        assert isinstance(model, _Beside)
        return model.twin if self.of == "twin" else _Flat(model.network)


@bench.defense("cheat_random_network")
@dataclass(frozen=True)
class RandomNetwork(Defense):
    """The undefended network or its twin, drawn for every call; declared, and badly averaged.

    Looks good: each step is computed on a network that may not answer next. Truth: an attack on
    both breaks both.
    """

    stochastic: ClassVar[bool] = True

    def requires(self) -> Mapping[str, Defense]:
        """Name the two."""
        return {"undefended": Undefended(), "twin": Twin()}

    def build(self, context: BuildContext) -> nn.Module:
        """Put them side by side."""
        return _Drawn(context.fitted["undefended"], context.fitted["twin"])

    def surrogate(self, model: nn.Module) -> nn.Module:
        """Return the second one alone."""
        assert isinstance(model, _Drawn)
        return model.second


class _NowAndThen(nn.Module):
    def __init__(self, sigma: float, share: float) -> None:
        super().__init__()
        self.sigma, self.share = sigma, share

    def forward(self, x: Tensor) -> Tensor:
        if float(torch.rand(())) >= self.share:
            return x
        return x + self.sigma * torch.randn_like(x)


class _Resize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        count = len(x)
        theta = torch.zeros(count, 2, 3, dtype=x.dtype, device=x.device)
        scale = 1 + 0.2 * torch.rand(count, dtype=x.dtype, device=x.device)
        theta[:, 0, 0] = theta[:, 1, 1] = scale
        theta[:, :, 2] = (torch.rand(count, 2, dtype=x.dtype, device=x.device) - 0.5) / 2
        grid = nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
        return nn.functional.grid_sample(x, grid, align_corners=False)


class _Beside(nn.Module):
    def __init__(self, network: nn.Module, twin: nn.Module) -> None:
        super().__init__()
        self.network, self.twin = network, twin

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


class _Flat(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.detach() + 0 * x)
        return logits


class _Drawn(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = (self.first if float(torch.rand(())) < 0.5 else self.second)(x)
        return logits
