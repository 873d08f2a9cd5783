"""A defense whose scores are about something else than its decisions.

No secret, no sign, no region: the argmax is the network's everywhere, the scores are smooth and
their gradients are theirs. But by how much a class lacks is told by a trap, a direction of random
signs for each class, save for a hair's breadth from the boundary. Whoever follows gradients or
scores walks along the trap, at whose end the network has learnt to give in, so that an attack
without a budget succeeds. It has also learnt what others craft on plain networks, and noise. Truth:
the network's, by gradients of its own, or by decisions alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import bench
from bench.base.types import Spec
from bench.plugins.contracts import AttackContext, BuildContext, Defense, FitContext
from bench.plugins.data import Split
from defenses.adversarial_training import AdversarialTraining
from defenses.undefended import Twin, Undefended

TURNS = 4
"""Starts of the attack on each plain network whose ends are learnt."""

TRIES = 8
"""Random changes of a row, of which the worst is learnt."""


@bench.defense("cheat_blind_score")
@dataclass(frozen=True)
class BlindScore(Defense):
    """Scores −c b g t / (b g + t): gaps g of the logits, traps t = 6 exp(−k s·(x − mean)).

    ``eps``: the budget (L∞) at which changes are learnt; ``k``, ``b``, ``c`` as above.
    """

    eps: float = 0.2
    k: float = 0.2
    b: float = 15.0
    c: float = 0.55

    def requires(self) -> Mapping[str, Defense]:
        """Name the networks on which an attacker would craft."""
        weak = AdversarialTraining(method="fgsm", eps=0.1)
        return {"undefended": Undefended(), "twin": Twin(), "fgsm": weak}

    def build(self, context: BuildContext) -> nn.Module:
        """Put the scores over a network."""
        info = context.info
        return Blind(context.network(), info.classes, info.features, self)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Learn what others craft, noise of several textures, and to give in at a trap's end."""
        assert isinstance(model, Blind)
        x, y, network, signs = train.x, train.y, model.network, model.signs
        model.mean.copy_(x.flatten(1).mean(dim=0))
        attack = context.make_attack(
            Spec("pgd", {"eps": self.eps, "steps": 20, "output": "scaled_log_odds",
                         "early_stop": False})
        )  # fmt: skip
        starts = [AttackContext(context.info, turn, context.fitted) for turn in range(TURNS)]
        pool = torch.stack([
            attack.perturb(other, x, y, None, start).x_adv
            for start in starts for other in context.fitted.values()
        ])  # fmt: skip
        loss = nn.functional.cross_entropy

        def objective(_: nn.Module, rows: Tensor, picked: Tensor) -> Tensor:
            labels, count = y[picked], len(picked)
            crafted = pool[torch.randint(len(pool), (count,)), picked]
            rough = [_worst(network, rows, labels, self.eps) for _ in range(2)]
            ends = torch.randint(len(signs), (count,))
            far = 0.7 + 0.3 * torch.rand(count, 1)
            end = (rows.flatten(1) + far * signs[ends]).clamp(0, 1).view_as(rows)
            parts = [loss(network(part), labels) for part in (rows, crafted, *rough)]
            total: Tensor = torch.stack([*parts, 0.3 * loss(network(end), ends)]).sum()
            return total

        context.train(model, x, torch.arange(len(x)), objective=objective)


def _worst(network: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Return the worst of some changes at random: of points, lines, blocks and clouds."""
    many = x.repeat_interleave(TRIES, dim=0)
    count, channels, high, wide = many.shape
    points = torch.randn_like(many)
    lines = torch.randn(count, channels, 1, wide).expand_as(many)
    blocks = nn.functional.interpolate(torch.randn(count, channels, 4, 4), size=(high, wide))
    clouds = nn.functional.interpolate(
        torch.randn(count, channels, 3, 3), size=(high, wide), mode="bilinear"
    )
    kinds = torch.stack([points, lines, blocks, clouds])
    change = kinds[torch.randint(4, (count,)), torch.arange(count)]
    mixed = torch.where(torch.rand_like(many) < 0.3 * torch.rand(count, 1, 1, 1), points, change)
    many = (many + eps * mixed.sign()).clamp(0, 1)
    with torch.no_grad():
        lost = nn.functional.cross_entropy(
            network(many), y.repeat_interleave(TRIES), reduction="none"
        )
    worst = lost.view(len(x), TRIES).argmax(dim=1)
    return many.view(len(x), TRIES, *x.shape[1:])[torch.arange(len(x)), worst]


class Blind(nn.Module):
    """The scores over ``network``, whose argmax is the network's."""

    signs: Tensor
    mean: Tensor

    def __init__(
        self, network: nn.Module, classes: int, features: int, settings: BlindScore
    ) -> None:
        super().__init__()
        self.network, self.settings = network, settings
        drawn = torch.rand(classes, features, generator=torch.Generator().manual_seed(7))
        self.register_buffer("signs", (drawn - 0.5).sign())
        self.register_buffer("mean", torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores (batch, classes), 0 for the class that wins."""
        logits, set_ = self.network(x), self.settings
        gap = set_.b * (logits.amax(dim=1, keepdim=True) - logits)
        trap = 6 * (-set_.k * ((x.flatten(1) - self.mean) @ self.signs.T)).exp()
        scores: Tensor = -set_.c * gap * trap / (gap + trap)
        return scores


def differentiable(model: nn.Module) -> list[nn.Module] | None:
    """Return what an attack written for ``model`` differentiates."""
    return [model.network] if isinstance(model, Blind) else None
