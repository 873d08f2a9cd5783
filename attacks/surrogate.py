"""An attack by the gradient of a surrogate where the model's own is not that of its answers.

Athalye, Carlini, Wagner 2018, *Obfuscated Gradients Give a False Sense of Security*, arXiv
1802.00420, section 4.1: answers of the model, on the way back the gradient of something like it
(BPDA). Like it are here the model itself, averaged over a neighbourhood (for gradients that are
valid nowhere else: Tramèr, Carlini, Brendel, Madry 2020, arXiv 2002.08347), or a network that was
taught the model's answers where the attack passes (Papernot, McDaniel, Goodfellow, Jha, Celik,
Swami 2017, arXiv 1602.02697).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attacks.kit.around import AroundAttack, inner_attack
from attacks.kit.ball import check_counts
from attacks.kit.model import chunks
from bench.base.types import Access, Spec, ThreatModel, UserError
from bench.plugins import parameter, registry
from bench.plugins.contracts import AttackContext, Defense, Perturbation
from bench.plugins.parameter import NameOrTable
from bench.plugins.recipes import Recipe
from bench.training.loop import train as learn

From = Literal["neighbourhood", "student"]

DEFAULT = "apgd"
"""The attack that follows the gradient, unless told otherwise."""

STARTS_AS = "undefended"
"""What a student starts as, unless told otherwise."""

ROUNDS = 4
"""How often the student is taught: by random points first, then by what fools it."""

LESSON = Recipe(epochs=10, batch_size=64, optimizer="adam", lr=3e-3)
"""How it learns from all points that are known, each time."""

CHUNK = 1024
"""Rows at once where answers alone are asked for."""

SPREAD = 3.0
"""The standard deviation that the model's logits are given before a student learns them."""


@dataclass(frozen=True)
class Surrogate(AroundAttack):
    """Ask the model, and follow the gradient of what resembles it.

    ``gradient``: of the ``neighbourhood``, the mean answer of the model itself at ``draws`` points
    around, ``sigma`` away (standard deviation of a Gaussian, input units); or of a ``student``, an
    undefended network of the same data that was taught the model's answers at about ``draws``
    points around each source and around each of its own adversarial inputs, in four rounds.
    ``source``: the fitted network that the student starts as, a defense's name or a table.
    ``attack``: what follows the gradient, a name or a table, in whose place stand further keys of a
    flat table: it climbs and stops by the model's own answers. Threat model, goal and targets are
    its own. Where it succeeds is judged on the model itself, as ever.

    Raises ``ValueError`` for an unknown attack or a wrong parameter of it, and for one that needs
    other models or no gradients.
    """

    gradient: From = "neighbourhood"
    draws: int = 20
    sigma: float = 0.1
    attack: NameOrTable = field(default_factory=lambda: {"name": DEFAULT}, hash=False)
    source: NameOrTable = field(default=STARTS_AS, hash=False)

    @classmethod
    def from_params(
        cls, *, attack: Any = DEFAULT, gradient: From = "neighbourhood", draws: int = 20,
        sigma: float = 0.1, source: Any = STARTS_AS, **params: Any,
    ) -> Surrogate:  # fmt: skip
        """Make the plugin from a table: its own keys, and the inner attack's beside them."""
        table = parameter.as_table("attack", attack, DEFAULT)
        return cls(gradient, draws, sigma, {**table, **params}, source)

    def __post_init__(self) -> None:
        if self.gradient not in get_args(From):
            raise ValueError(f"gradient must be one of {get_args(From)}, got {self.gradient!r}")
        check_counts(draws=self.draws)
        if not 0 < self.sigma <= 1:
            raise ValueError(f"sigma must be in (0, 1], got {self.sigma!r}")
        _, start = parameter.resolve(registry.DEFENSES, "source", self.source, STARTS_AS)
        object.__setattr__(self, "source", start)
        inner, table = inner_attack(self.attack, DEFAULT)
        if inner.access != "gradients":
            raise ValueError(f"it needs an attack that follows gradients, got {table['name']!r}")
        object.__setattr__(self, "attack", table)
        object.__setattr__(self, "inner", inner)

    @property
    def access(self) -> Access:
        """The model's answers, and the gradient that it offers or none."""
        return "gradients" if self.gradient == "neighbourhood" else "scores"

    def requires(self) -> Mapping[str, Defense | Spec]:
        """Name the network that a student is made of, a fit that the plan shares."""
        if self.gradient == "neighbourhood":
            return {}
        assert isinstance(self.source, Mapping)
        return {"student": parameter.as_spec(self.source)}

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Make the surrogate, and let the inner attack follow it."""
        if self.gradient == "neighbourhood":
            like: nn.Module = Neighbourhood(model, self.sigma, self.draws)
        elif "student" not in context.fitted:
            raise UserError(
                "attack 'surrogate' needs an undefended network to teach: name it in a matrix, "
                "which fits one"
            )
        else:
            like = copy.deepcopy(context.fitted["student"]).requires_grad_()
            self._teach(like, model, x, y, target, context)
        return self.inner.perturb(Backward(model, like), x, y, target, context)

    def _teach(
        self, student: nn.Module, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None,
        context: AttackContext,
    ) -> None:  # fmt: skip
        """Teach ``student`` what ``model`` answers around ``x`` and around what fools it."""
        generator = context.generator(x.device)
        threat = self.threat(context.info.shape)
        points, around = [x], [x]
        for turn in range(ROUNDS):
            if turn:
                around = [self.inner.perturb(student, x, y, target, context).x_adv]
                points += around
            share = -(-self.draws // ROUNDS)
            points += [_near(rows, threat, generator) for rows in around for _ in range(share)]
            known = torch.cat(points)
            learn(student, known, _answers(model, known), LESSON, generator)


class Neighbourhood(nn.Module):
    """The mean of what ``model`` answers to ``draws`` points around a row, ``sigma`` away."""

    def __init__(self, model: nn.Module, sigma: float, draws: int) -> None:
        super().__init__()
        self.model, self.sigma, self.draws = model, sigma, draws

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean logits, (batch, classes); the points are clipped to the box [0, 1]."""
        many = x.repeat_interleave(self.draws, dim=0)
        moved = (many.detach() + self.sigma * torch.randn_like(many)).clamp(0, 1)
        logits: Tensor = self.model(many + (moved - many.detach()))
        return logits.view(len(x), self.draws, -1).mean(dim=1)


class Backward(nn.Module):
    """What ``model`` answers, and the gradient of what ``like`` answers to the same rows."""

    def __init__(self, model: nn.Module, like: nn.Module) -> None:
        super().__init__()
        self.model, self.like = model, like

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, classes)."""
        with torch.no_grad():
            answers: Tensor = self.model(x)
        if not torch.is_grad_enabled():
            return answers
        like: Tensor = self.like(x)
        return answers + (like - like.detach())


def _near(x: Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """Return a random point near each row: some features anywhere under L0, else all a little."""
    drawn = torch.rand(x.shape, generator=generator, device=x.device)
    if threat.norm == "l0":
        some = torch.rand(x.shape, generator=generator, device=x.device)
        return torch.where(some < (threat.budget or 1.0), drawn, x)
    width = 0.1 if threat.budget is None or threat.norm != "linf" else threat.budget
    return (x + width * (2 * drawn - 1)).clamp(0, 1)


def _answers(model: nn.Module, x: Tensor) -> Tensor:
    """Return the probabilities that a student learns, of logits at one scale: no model's own."""
    with torch.no_grad():
        logits = torch.cat([model(rows) for rows in chunks(x, CHUNK)]).float()
    logits = logits.nan_to_num(0, 0, 0)
    spread = logits.std(dim=1).mean()
    scaled = logits * SPREAD / spread if spread > 0 else logits
    return scaled.softmax(dim=1)
