"""A defense that detects, then routes: one network for what looks like data, another for the rest.

Meant as prudence (detectors of Hendrycks and Gimpel 2017, arXiv 1608.00530, and of Meng and Chen
2017, arXiv 1705.09064): an accurate network for what surely is data, a PGD-trained one for all
else. No secret, no state, gradients are its own. But most clean images go to the robust network
too, every attack starts there and is met by it, and no gradient leads to the accurate one. Truth:
that one's, once an attack goes down the detector's score as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

import bench
from bench.plugins.contracts import BuildContext, Defense, FitContext
from bench.plugins.data import Split
from defenses.adversarial_training import AdversarialTraining
from defenses.undefended import Undefended

Detector = Literal["components", "nearest"]

NEIGHBOURS = 1000
"""Training images that ``nearest`` knows."""


@bench.defense("cheat_routed")
@dataclass(frozen=True)
class RoutedDefense(Defense):
    """``by``: the distance from the first ``keep`` principal components, or the nearest image.

    ``quantile``: the share of validation images that go to the accurate network, in (0, 1).
    """

    by: Detector = "components"
    keep: int = 24
    quantile: float = 0.1

    def __post_init__(self) -> None:
        if self.by not in get_args(Detector):
            raise ValueError(f"by must be one of {get_args(Detector)}, got {self.by!r}")
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile must be in (0, 1), got {self.quantile!r}")

    def requires(self) -> Mapping[str, Defense]:
        """Name both networks."""
        return {"undefended": Undefended(), "robust": AdversarialTraining(eps=0.2)}

    def build(self, context: BuildContext) -> nn.Module:
        """Put the detector before them."""
        fitted = context.fitted
        return Routed(fitted["undefended"], fitted["robust"], context.info.features, self)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Learn what data look like, and from where on they surely do."""
        assert isinstance(model, Routed)
        flat = train.x.flatten(1)
        model.mean.copy_(flat.mean(dim=0))
        model.axes.copy_(torch.linalg.svd(flat - model.mean, full_matrices=False)[2][: self.keep])
        model.known.copy_(flat[:NEIGHBOURS])
        model.threshold.copy_(torch.quantile(model.strange(context.validation.x), self.quantile))


class Routed(nn.Module):
    """The ``accurate`` network up to a threshold of strangeness, the ``robust`` one beyond."""

    mean: Tensor
    axes: Tensor
    known: Tensor
    threshold: Tensor

    def __init__(
        self, accurate: nn.Module, robust: nn.Module, features: int, how: RoutedDefense
    ) -> None:
        super().__init__()
        self.accurate, self.robust, self.by = accurate, robust, how.by
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("axes", torch.zeros(how.keep, features))
        self.register_buffer("known", torch.zeros(NEIGHBOURS, features))
        self.register_buffer("threshold", torch.zeros(()))

    def strange(self, x: Tensor) -> Tensor:
        """Return how far each row is from what data look like, (batch,)."""
        flat = x.flatten(1)
        if self.by == "nearest":
            return torch.cdist(flat, self.known).amin(dim=1)
        centred = flat - self.mean
        return (centred - centred @ self.axes.T @ self.axes).norm(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, classes)."""
        robust: Tensor = self.robust(x)
        return torch.where((self.strange(x) > self.threshold)[:, None], robust, self.accurate(x))


def found(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int = 100) -> Tensor:
    """Return inputs (k, n, *shape) made against detector and accurate network; none for others.

    Momentum along the direction of the gradient, from ``x``, of the margin and of what the row is
    still too strange by, weighed in three ways.
    """
    if not isinstance(model, Routed):
        return x.new_zeros((0, *x.shape))
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    spread, kept = float(model.strange(x).std()), []
    for weight in (0.5, 2.0, 8.0):
        at, momentum = x.clone(), torch.zeros_like(x)
        for step in range(steps):
            at = at.detach().requires_grad_()
            logits = model.accurate(at)
            own = logits.gather(1, y[:, None]).squeeze(1)
            margin = own - logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
            over = (model.strange(at) - model.threshold) / spread
            loss = margin.clamp(min=-1) + weight * (over + 0.1).clamp(min=0)
            (gradient,) = torch.autograd.grad(loss.sum(), at)
            length = gradient.flatten(1).norm(dim=1).clamp(min=1e-9)
            momentum = 0.7 * momentum + 0.3 * gradient / length.view(-1, *[1] * (x.dim() - 1))
            rate = 0.15 * (1 - step / steps) + 0.005
            at = torch.minimum(torch.maximum(at.detach() - rate * momentum, low), high)
            if step % 5 == 4:
                kept.append(at)
    return torch.stack(kept)
