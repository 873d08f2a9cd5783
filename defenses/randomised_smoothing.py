"""Randomised smoothing: Cohen, Rosenfeld, Kolter 2019, arXiv 1902.02918. It holds, by a proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

from bench.plugins.contracts import BuildContext, Defense, FitContext
from bench.plugins.data import Split
from bench.suspicion.average import LEAST_DRAWS, ROWS, Average
from defenses.crafting import check_positive, check_steps
from defenses.votes import mean_answer


@dataclass(frozen=True)
class RandomisedSmoothing(Defense):
    """A network trained on noisy inputs, which answers the mean over ``draws`` noisy copies of x.

    ``sigma``: of the Gaussian noise, in input units, positive; ``draws``: at least 1. The paper
    counts votes; the mean of the probabilities has a gradient for the attack and the same
    certificate is had from votes by ``certified_radius``.
    """

    sigma: float = 0.25
    draws: int = 16

    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive(sigma=self.sigma)
        check_steps(self.draws, "draws")

    def build(self, context: BuildContext) -> nn.Module:
        """Return the smoothed network."""
        return Smoothed(context.network(), self.sigma, self.draws)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on the labels of noisy inputs."""
        assert isinstance(model, Smoothed)

        def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            assert isinstance(model, Smoothed)
            noise = torch.randn(x.shape, generator=context.generator, device=x.device)
            return F.cross_entropy(model.network(x + self.sigma * noise).float(), y)

        context.train(model, train.x, train.y, objective=objective)

    def surrogate(self, model: nn.Module) -> nn.Module:
        """Return the mean over more noisy copies, the same noise at every query."""
        assert isinstance(model, Smoothed)
        return Steadied(model.network, self.sigma, max(4 * self.draws, LEAST_DRAWS))


class Smoothed(nn.Module):
    """The logarithm of the mean probability of ``network`` over ``draws`` noisy copies."""

    def __init__(self, network: nn.Module, sigma: float, draws: int) -> None:
        super().__init__()
        self.network = network
        self.sigma = sigma
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities (batch, classes); noise from torch's global generator."""
        copies = x.repeat_interleave(self.draws, dim=0)
        logits = self.network(copies + self.sigma * torch.randn_like(copies))
        return mean_answer(logits.view(len(x), self.draws, -1).transpose(0, 1))


class Steadied(Average):
    """The same mean over ``draws`` copies, with noise that no query draws anew.

    Its answers follow from the input, so that an attack knows whether a step was one forward. What
    fools 64 draws fools most others.
    """

    def __init__(self, network: nn.Module, sigma: float, draws: int) -> None:
        super().__init__(network, draws)
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities (batch, classes)."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.draws, 1, *x.shape[1:], generator=generator).to(x)
        together = max(1, ROWS // max(1, len(x)))
        found = [
            self.model((x + self.sigma * part).flatten(0, 1)).view(len(part), len(x), -1)
            for part in torch.split(noise, together)
        ]
        return mean_answer(torch.cat(found))


@torch.no_grad()
def certified_radius(
    model: Smoothed, x: Tensor, *, draws: int = 1000, alpha: float = 0.001
) -> tuple[Tensor, Tensor]:
    """Return class and L2 radius within which the smoothed vote is proven, by row of ``x``.

    Cohen et al., theorem 1 and figure 1 (CERTIFY): a tenth of ``draws`` guess the class, all of
    them bound its probability from below at confidence 1 - ``alpha`` (Clopper and Pearson), and the
    radius is sigma times the normal quantile of the bound. The class is -1 and the radius 0 where
    the bound is no more than 1/2.
    """
    guess = _votes(model, x, max(1, draws // 10)).argmax(dim=1)
    hits = _votes(model, x, draws).gather(1, guess[:, None]).squeeze(1).cpu().numpy()
    # Two-sided at 2 alpha is one-sided at alpha.
    low, _ = proportion_confint(hits, draws, alpha=2 * alpha, method="beta")
    bound = torch.as_tensor(low, dtype=torch.float64, device=x.device).nan_to_num(0.0)
    proven = bound > 0.5
    radius = (model.sigma * torch.special.ndtri(bound)).to(x.dtype)
    return torch.where(proven, guess, -1), torch.where(proven, radius, 0)


def _votes(model: Smoothed, x: Tensor, draws: int) -> Tensor:
    total: Tensor | None = None
    for _ in range(draws):
        logits = model.network(x + model.sigma * torch.randn_like(x))
        votes = F.one_hot(logits.argmax(dim=1), logits.shape[1])
        total = votes if total is None else total + votes
    assert total is not None
    return total
