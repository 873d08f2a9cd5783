"""torchattacks' JSMA, a peer to compare ours with: the extra ``peers``.

Source: Kim 2020, *Torchattacks*, arXiv 2010.01950. It loops over images, takes one backward pass
a class and builds d × d masks; with no admissible pair it goes on with the first two features.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.base.types import Targets, ThreatModel
from bench.measure.at_rest import at_rest
from bench.plugins.contracts import Attack, AttackContext, Perturbation


@dataclass(frozen=True)
class TorchattacksJsma(Attack):
    """torchattacks' JSMA on logits, towards the targets that the runner chooses.

    ``theta`` and ``gamma`` as in ``jsma``; ``targets``: ``all``, ``random``, ``runner-up``. Left
    to itself the library attacks the class after the label, modulo ten; here it is given targets.
    Images only. Skipped where torchattacks is not installed.
    """

    gamma: float
    theta: float = 1.0
    targets: Targets = "all"

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {self.gamma!r}")
        if self.targets == "untargeted":
            raise ValueError("torchattacks' JSMA is targeted: all, random or runner-up")

    def unavailable(self) -> str | None:
        """Name the extra where it is not installed."""
        if importlib.util.find_spec("torchattacks") is None:
            return "torchattacks is not installed: pip install 'retort-bench[peers]'"
        return None

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """L0 in features; ``shape`` does not matter."""
        return ThreatModel("l0", self.gamma, "features")

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Run the library image by image, as it does."""
        from torchattacks import JSMA

        if not len(x):  # it stacks what it finds image by image
            return Perturbation(x.clone())
        attack = JSMA(model, theta=self.theta, gamma=self.gamma)
        attack.set_mode_targeted_by_label(quiet=True)
        with torch.enable_grad(), at_rest(model):  # it calls backward, which fills weights' .grad
            return Perturbation(attack(x, target).detach().to(x))
