"""Knowledge distillation: Hinton, Vinyals, Dean 2015, arXiv 1503.02531.

A smaller network learns from the labels and from a larger one's softened answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

from bench.measure.recast import check_temperature
from bench.plugins.contracts import FitContext
from bench.plugins.data import Split
from bench.plugins.parameter import NameOrTable
from defenses.other_network import OtherNetwork
from defenses.teachers import Student


@dataclass(frozen=True)
class KnowledgeDistillation(Student, OtherNetwork):
    """A student of another architecture: (1 - weight) hard loss + weight T² soft loss.

    ``teacher``: a defense, by name or as a table. ``network``: the student's, by name or as a table
    with its parameters; None is the run's own. ``temperature``: T of the soft loss, the
    cross-entropy of softmax(z / T) against the teacher's; positive. ``weight``: of the soft loss,
    in [0, 1]; T² keeps its gradients as large as the hard loss's, whatever T is (section 2 of the
    paper). The student is deployed at T = 1.

    Fails where the teacher is at chance or has other classes or inputs.
    """

    teacher: NameOrTable = field(default="undefended", hash=False)
    temperature: float = 4.0
    weight: float = 0.9

    def __post_init__(self) -> None:
        Student.__post_init__(self)
        OtherNetwork.__post_init__(self)
        check_temperature(self.temperature)
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must be in [0, 1], got {self.weight!r}")

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on labels and answers together."""
        soft = (self.taught(train, context) / self.temperature).softmax(dim=1)
        hard = F.one_hot(train.y, context.info.classes).float()
        context.train(model, train.x, torch.stack([hard, soft], dim=1), objective=self.objective)

    def objective(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch; ``targets`` (batch, 2, classes): labels, then answers."""
        logits = model(x).float()
        hard = F.cross_entropy(logits, targets[:, 0])
        soft = F.cross_entropy(logits / self.temperature, targets[:, 1])
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * soft
