"""A model that was handed over in memory, by ``bench.judge``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import nn

from bench.base.places import placed
from bench.handed.adapt import Form, adapt
from bench.plugins.contracts import BuildContext, Defense
from bench.plugins.unpickle import unpickled


@dataclass(frozen=True)
class Live(Defense):
    """Modules as ``bench.judge`` was given them, one a training seed; nothing is learnt.

    ``modules``: pickles in the results folder, read only by who made them or vouches for them;
    ``identity``: of each, a hash of code, structure and weights, which a pickle's bytes are not.
    ``expect_accuracy``: what their author says of clean accuracy, a fraction.
    """

    whole: ClassVar[tuple[str, ...]] = ("modules", "identity")

    modules: list[str] = field(hash=False)
    identity: list[str] = field(hash=False)
    expect_accuracy: float | None = None

    def __post_init__(self) -> None:
        if not self.modules or len(self.modules) != len(self.identity):
            raise ValueError(
                f"as many modules as identities are expected, got {len(self.modules)} and "
                f"{len(self.identity)}"
            )

    def trained(self) -> Sequence[Live]:
        """Return it with each of its modules: they are its training seeds."""
        return [
            replace(self, modules=[module], identity=[known])
            for module, known in zip(self.modules, self.identity, strict=True)
        ]

    def build(self, context: BuildContext) -> nn.Module:
        """Read the pickle, and wrap the module where it is not what the harness takes."""
        return self._adapted(context)[0]

    def notes(self, context: BuildContext) -> Sequence[str]:
        """Load the module as a run does, and say what was guessed on the way."""
        return self._adapted(context)[1]

    def _adapted(self, context: BuildContext) -> tuple[nn.Module, tuple[str, ...]]:
        (path,) = self.modules  # the plan fits one training seed at a time
        info, module = context.info, unpickled(placed(path))
        if not all(torch.is_tensor(value) for value in module.state_dict().values()):
            module = _Whole(module)
        return adapt(module, Form(), info.shape, info.classes)


class _Whole(nn.Module):
    """``network``, whose state is not of tensors alone, as a quantised one's: its pickle has it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.held = (network,)  # no child, so that its state is none of this module's

    def forward(self, x: torch.Tensor) -> object:
        """Return what the network does."""
        return self.held[0](x)

    def train(self, mode: bool = True) -> Self:
        """Put the network into training or evaluation mode."""
        self.held[0].train(mode)
        return super().train(mode)
