"""What every broken defense has: a way round it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bench.base.types import Spec
from bench.plugins import parameter, registry
from bench.plugins.contracts import BuildContext, Defense
from bench.plugins.parameter import NameOrTable
from defenses.distillation import Distillation
from defenses.undefended import Undefended


@dataclass(frozen=True)
class Broken(Undefended):
    """A published defense that was broken: trained on hard labels unless it says otherwise.

    What its paper claimed, and what became of it, stands in ``leaderboard/papers/broken``.
    """

    def way_round(self, model: nn.Module) -> nn.Module:
        """Return what the adaptive attack of the literature differentiates: here, ``model``."""
        return model


ROWS = 1024
"""Rows that are asked at once for differences of answers."""

EXAMPLE = "thermometer_encoding"
"""What is attacked by its way round, unless told otherwise."""


@dataclass(frozen=True)
class Adaptive(Defense):
    """The network of another defense, attacked with the adaptive attack of the literature.

    ``of``: a defense of ``defenses.broken`` or ``distillation``, by name or as a table. Nothing is
    trained, and the answers are the other's: only what gradient attacks differentiate is its
    ``way_round``. Raises ``ValueError`` for a defense that has none.
    """

    of: NameOrTable = field(default=EXAMPLE, hash=False)

    def __post_init__(self) -> None:
        defense, table = parameter.resolve(registry.DEFENSES, "of", self.of, EXAMPLE)
        if way_round_of(defense) is None:
            raise ValueError(f"of: {_why_not(defense, table['name'])}")
        object.__setattr__(self, "of", table)
        object.__setattr__(self, "stochastic", defense.stochastic)

    def _other(self) -> Defense:
        assert isinstance(self.of, Mapping)
        return registry.DEFENSES.make(parameter.as_spec(self.of))

    def requires(self) -> Mapping[str, Defense | Spec]:
        """Name the other defense, a fit that the plan shares."""
        return {"of": self._other()}

    def plain(self) -> Defense | Spec | None:
        """Name what the other is compared with."""
        return self._other().plain()

    def code(self) -> Sequence[Callable[..., Any]]:
        """Name the other defense."""
        return (type(self._other()),)

    def build(self, context: BuildContext) -> nn.Module:
        """Return the other's network: there is nothing to learn."""
        return context.fitted["of"]

    def surrogate(self, model: nn.Module) -> nn.Module:
        """Return the way round."""
        way = way_round_of(self._other())
        assert way is not None  # __post_init__
        return way(model)


def way_round_of(defense: Defense) -> Callable[[nn.Module], nn.Module] | None:
    """Return what makes the way round of a network of ``defense``, None where it has none."""
    if isinstance(defense, Distillation):
        return lambda model: Cooled(model, defense.temperature)
    if not isinstance(defense, Broken) or type(defense).way_round is Broken.way_round:
        return None
    return defense.way_round


def _why_not(defense: Defense, name: str) -> str:
    if isinstance(defense, Broken) and defense.stochastic:
        return f"{name!r} is stochastic, and its way round is the average that every attack takes"
    if isinstance(defense, Broken):
        return f"{name!r} has the gradient of its answers, and every attack follows it"
    return f"no way round is known for {name!r}, which is no defense of the museum"


class Cooled(nn.Module):
    """The logits of ``model`` divided by ``temperature``: softmax and its gradient come back.

    Carlini, Wagner 2016, arXiv 1607.04311: what distillation multiplied the logits by.
    """

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) at the temperature of the training."""
        logits: Tensor = self.model(x)
        return logits / self.temperature


class StraightThrough(nn.Module):
    """What ``inner`` answers, with the derivative of ``soft``, by default of the identity.

    Backward pass differentiable approximation: Athalye, Carlini, Wagner 2018, arXiv 1802.00420,
    section 4.1. Inputs and answers have the same shape where ``soft`` is the identity.
    """

    def __init__(self, inner: nn.Module, soft: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.inner = inner
        self.soft = soft

    def forward(self, x: Tensor) -> Tensor:
        """Apply ``inner``; the gradient passes through ``soft``."""
        near = self.soft(x)
        answer: Tensor = self.inner(x)
        return near + (answer - near).detach()


class FiniteDifferences(nn.Module):
    """``model`` blurred by Gaussian noise, differentiated by differences of its answers alone.

    The derivative of E[f(x + σδ)] is E[(f(x + σδ) - f(x - σδ)) δ] / 2σ, estimated from ``draws``
    directions, which jumps of f enter as slopes do: Tramer et al. 2020, arXiv 2002.08347, section
    5 (k-winners-take-all). ``sigma`` in input units. The answers are ``model``'s own at x.
    """

    def __init__(self, model: nn.Module, draws: int = 32, sigma: float = 0.05) -> None:
        super().__init__()
        self.model = model
        self.draws = draws
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, classes) of ``x`` (batch, *shape)."""
        found: Tensor = _Differences.apply(x, self.model, self.draws, self.sigma)
        return found


class _Differences(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, model: nn.Module, draws: int, sigma: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.model, ctx.draws, ctx.sigma = model, draws, sigma
        with torch.no_grad():
            logits: Tensor = model(x)
        return logits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        (gradient,) = gradients
        total = torch.zeros_like(x)
        with torch.no_grad():
            together = max(1, ROWS // (2 * max(1, len(x))))
            for first in range(0, ctx.draws, together):
                count = min(together, ctx.draws - first)
                directions = torch.randn(count, *x.shape, dtype=x.dtype, device=x.device)
                step = ctx.sigma * directions
                asked = torch.cat((x + step, x - step)).flatten(0, 1)
                above, below = ctx.model(asked).view(2, count, len(x), -1)
                weight = ((above - below) * gradient).sum(dim=2) / (2 * ctx.sigma * ctx.draws)
                total += (weight.view(count, -1, *[1] * (x.dim() - 1)) * directions).sum(dim=0)
        return total, None, None, None


def swapped(
    network: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """Return ``network`` with ``make(layer)`` in the place of each layer of class ``kind``.

    In place, under the same names. Raises ValueError where there is no such layer.
    """
    places = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, kind)
    ]
    if not places:
        raise ValueError(f"the network has no {kind.__name__} layer to replace")
    for parent, name, child in places:
        setattr(parent, name, make(child))
    return network


def alike(
    model: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """Return a copy of ``model`` with other layers of class ``kind``, for a way round."""
    return swapped(deepcopy(model), kind, make).eval()
