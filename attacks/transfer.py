"""Adversarial inputs made on another network: the attacker has a model of the same data, not yours.

Papernot, McDaniel, Goodfellow 2016, *Transferability in Machine Learning*, arXiv 1605.07277; seen
first by Szegedy et al. 2014, arXiv 1312.6199, section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from attacks.kit.around import AroundAttack, inner_attack
from bench.base.types import Access, Spec, UserError
from bench.plugins import parameter, registry
from bench.plugins.contracts import AttackContext, Defense, Perturbation

DEFAULTS = {"source": "undefended", "attack": "pgd"}
"""The two tables, and what each holds unless told otherwise."""


@dataclass(frozen=True)
class Transfer(AroundAttack):
    """Craft on ``source``, a defense fitted by the same run, and hand the result to the model.

    ``source``: the defense, its name or a table with its name and parameters. ``attack``: what is
    run against it, in the same way; further keys of a flat table are parameters of that attack,
    so that a sweep reaches them. Threat model, goal and targets are the inner attack's. It sees
    the source alone, and differentiates the source itself: success is judged on the model under
    attack, of which not one query is made.

    Inputs that stop at the source's own boundary transfer badly (distillation at T = 100, eps = 0.2
    on digits: 65 of 100 images stand, and 21 where the attack climbs on), so an inner attack that
    has the parameter ``early_stop`` gets False here unless it is given.

    Raises ``ValueError`` for an unknown defense or attack or a wrong parameter of theirs, and for
    an inner attack that itself needs a source.
    """

    source: Mapping[str, Any] = field(default_factory=lambda: _default("source"), hash=False)
    attack: Mapping[str, Any] = field(default_factory=lambda: _default("attack"), hash=False)

    @classmethod
    def from_params(cls, **params: Any) -> Transfer:
        """Make the plugin from a table: ``source``, ``attack``, and the inner attack's keys."""
        tables = {name: _table(name, params.pop(name)) for name in DEFAULTS.keys() & params.keys()}
        if params:
            tables["attack"] = {**tables.get("attack", _default("attack")), **params}
        return cls(**tables)

    def __post_init__(self) -> None:
        _, source = parameter.resolve(registry.DEFENSES, "source", self.source, DEFAULTS["source"])
        climbing = _climbing_on(_table("attack", self.attack))
        inner, attack = inner_attack(climbing, DEFAULTS["attack"])
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "attack", attack)
        object.__setattr__(self, "inner", inner)

    @property
    def access(self) -> Access:
        """The source alone: the model under attack is not queried."""
        return "transfer"

    @property
    def rowwise(self) -> bool:
        """As the inner attack."""
        return self.inner.rowwise

    def requires(self) -> Mapping[str, Defense | Spec]:
        """Name the source, a fit that the plan shares."""
        return {"source": parameter.as_spec(self.source)}

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Run the inner attack against the source; ``model`` is left alone."""
        if "source" not in context.fitted:
            raise UserError(
                f"attack 'transfer' needs its source {self.source['name']!r} fitted: "
                "name it in a matrix, which fits it"
            )
        return self.inner.perturb(context.fitted["source"], x, y, target, context)


def _default(name: str) -> dict[str, Any]:
    return {"name": DEFAULTS[name]}


def _table(name: str, given: Any) -> dict[str, Any]:
    return parameter.as_table(name, given, DEFAULTS[name])


def _climbing_on(table: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(registry.ATTACKS.get(table["name"]))}
    default = {"early_stop": False} if "early_stop" in names else {}
    return {**default, **table}
