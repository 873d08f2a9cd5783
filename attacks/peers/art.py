"""One adapter for every evasion attack of the Adversarial Robustness Toolbox that fits.

Source: Nicolae et al. 2018, *Adversarial Robustness Toolbox*, arXiv 1807.01069. What is true of
each class stands in ``attacks.peers.art_table``; how one is run, in ``attacks.peers.art_call``.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from attacks.peers.art_call import Call, Queried, build, classifier_of, generate, keywords
from attacks.peers.art_table import AWAY, MAPPED, RESERVED, Goal, Mapped, mapped_names, row_of
from bench.base.types import Access, DataInfo, Norm, Targets, ThreatModel, Unit, UserError
from bench.measure.recast import check_temperature, view
from bench.plugins.contracts import Attack, AttackContext, Perturbation


@dataclass(frozen=True)
class Art(Attack):
    """Any mapped ART evasion attack, by class name; see ``attacks.peers.art_table``.

    ``attack``: ART's class name. ``targets``: which attempts the runner makes; a class that
    cannot make them is refused. ``params``: the class' own keywords, complete with its defaults
    (``norm = "inf"`` for infinity; ``batch_size`` 128 where it does not change the attack).
    ``output``: give a class that sees gradients the logits, or probabilities, where its usual
    (in ``attacks.peers.art_table``) is not wanted: JSMA-F is ``SaliencyMapMethod`` on ``probs``.
    ``temperature`` divides the logits that it sees, as Carlini and Wagner 2016 did to attack a
    distilled network (arXiv 1607.04311).
    ``threat_norm``, ``threat_budget``, ``threat_unit``: the threat model of a class that has no
    norm (``SpatialTransformation``, ``ShadowAttack``, ``Wasserstein``), and of no other.

    Raises ``UserError`` for an unknown or unmapped class, an unknown keyword, a value that ART
    refuses, an L1 norm, or where ART is missing.
    """

    attack: str
    targets: Targets = "untargeted"
    output: Literal["logits", "probs"] | None = None
    temperature: float = 1.0
    threat_norm: Norm | None = None
    threat_budget: float | None = None
    threat_unit: Unit | None = None
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def from_params(cls, **params: Any) -> Art:
        """Make the plugin from a flat table: our fields, and every other key for ART's class.

        A nested table ``params`` also goes to ART's class; there SimBA finds its own ``attack``.
        So ``Art.from_params(**asdict(art)) == art``.
        """
        names = {f.name for f in fields(cls)} - {"params"}
        if "attack" not in params:
            raise UserError(
                f"attack 'art' needs the name of an ART class: attack = one of {mapped_names()}"
            )
        nested = params.pop("params", {})
        if not isinstance(nested, Mapping):
            raise UserError(f"params of attack 'art' must be a table, got {nested!r}")
        keywords = {k: v for k, v in params.items() if k not in names} | dict(nested)
        return cls(**{k: v for k, v in params.items() if k in names}, params=keywords)

    def __post_init__(self) -> None:
        row = row_of(self.attack)
        if self.output is not None and row.access != "gradients":
            raise UserError(
                f"output chooses what gradients are taken of, and ART's {self.attack} takes none"
            )
        for name, valid in (("targets", Targets), ("threat_norm", Norm), ("threat_unit", Unit)):
            value = getattr(self, name)
            if value is not None and value not in get_args(valid):
                raise UserError(f"{name} must be one of {get_args(valid)}, got {value!r}")
        goal: Goal = "untargeted" if self.targets == "untargeted" else "targeted"
        if goal not in row.goals:
            expected = "'untargeted'" if row.goals == AWAY else "'all', 'random' or 'runner-up'"
            raise UserError(
                f"ART's {self.attack} cannot make {goal} attempts, "
                f"got targets {self.targets!r}, expected {expected}"
            )
        check_temperature(self.temperature)
        object.__setattr__(self, "params", _complete(self.attack, row, self.params))
        _check_threat(self, row)
        _check_values(self.attack, row, self.params, goal)

    @property
    def access(self) -> Access:
        """What the ART class sees of the model: gradients, scores or decisions."""
        return MAPPED[self.attack].access

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return the threat model that ART's class and its keywords imply for ``shape``."""
        row = MAPPED[self.attack]
        if self.threat_norm is not None:
            return ThreatModel(self.threat_norm, self.threat_budget, self.threat_unit or "input")
        norm = row.norm
        if norm is None or norm == "own":
            norm = _norm(self.attack, self.params["norm"])
        budget = self.params[row.budget] if row.budget else None
        if budget is None:
            return ThreatModel(norm, None, row.unit)
        if row.per == "pixel":
            return ThreatModel(norm, min(1.0, budget / _pixels(shape)), row.unit)
        return ThreatModel(norm, budget / 255 if row.per == "level" else budget, row.unit)

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Run ART on ``x`` (batch, *shape) in [0, 1]; what it returns is passed on unaltered."""
        call = Call(self.attack, self.params, output=self.output)
        seen, _ = view(model, x, "float32", self.temperature)
        return Perturbation(generate(call, seen, x, y, target, context))


def _complete(name: str, row: Mapped, params: Mapping[str, Any]) -> dict[str, Any]:
    """Check the keywords against ART's signature; return all of them, as JSON values."""
    known = keywords(name)
    valid = known.keys() - _reserved(name)
    for key in params:
        if key in known and key not in valid:
            raise UserError(
                f"{key!r} of ART's {name} is set by the adapter"
                + (": use targets" if key == "targeted" else "")
            )
        if key not in valid:
            nearest = difflib.get_close_matches(key, valid, 1, 0.0)[0]
            raise UserError(
                f"unknown parameter {key!r} of ART's {name}; did you mean {nearest!r}? "
                f"Valid are {', '.join(sorted(valid))}"
            )
    for key, (value, reason) in row.refuses.items():
        if params.get(key) == value:
            raise UserError(f"{key} = {value!r} of ART's {name} is not mapped: {reason}")
    given = {k: row.defaults.get(k, known[k]) for k in valid} | dict(params)
    return {k: _to_json(name, k, given[k], known[k]) for k in sorted(given)}


def _reserved(name: str) -> frozenset[str]:
    # AutoAttack is always given the label; its ``targeted`` adds attacks towards every class.
    return RESERVED - {"targeted"} if name == "AutoAttack" else RESERVED


def _to_json(name: str, key: str, value: Any, default: Any) -> Any:
    if key == "norm" and value != "wasserstein":
        value = "inf" if value in ("inf", np.inf) else value
        return int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(value, tuple):
        return list(value)
    if not isinstance(value, (str, int, float, bool, list, dict, type(None))):
        raise UserError(f"{key} of ART's {name} must be a JSON value, got {value!r}")
    return value


def _norm(name: str, value: Any) -> Norm:
    norms: dict[Any, Norm] = {"inf": "linf", 2: "l2"}
    if value not in norms:
        raise UserError(f"norm = {value!r} of ART's {name} has no threat model, expected inf or 2")
    return norms[value]


def _check_threat(attack: Art, row: Mapped) -> None:
    own = (attack.threat_norm, attack.threat_budget, attack.threat_unit)
    if row.norm is not None and own != (None, None, None):
        raise UserError(
            f"ART's {attack.attack} has a norm of its own: leave out threat_norm, threat_budget "
            f"and threat_unit, got {own}"
        )
    if row.norm is None and attack.threat_norm is None:
        raise UserError(
            f"no norm describes what ART's {attack.attack} changes: "
            "give threat_norm = 'l0', 'l2' or 'linf' (and threat_budget, threat_unit) to use it"
        )
    try:
        attack.threat((1, 8, 8))
    except (ValueError, TypeError) as error:
        raise UserError(f"ART's {attack.attack}: {error}") from error


def _check_values(name: str, row: Mapped, params: Mapping[str, Any], goal: Goal) -> None:
    """Let ART check the values now, on a stand-in, and not in the middle of a run."""
    if row.needs and importlib.util.find_spec(row.needs) is None:
        raise UserError(f"ART's {name} needs {row.needs!r}: pip install {row.needs}")
    info = DataInfo("stand-in", (1, 8, 8), 64, (0.0,), (1.0,))
    try:
        function = Queried(nn.Flatten(), row, torch.float32)
        classifier = classifier_of(function, torch.device("cpu"), info)
        build(name, params, classifier, targeted=goal == "targeted")
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"ART's {name} refuses its parameters: {error}") from error


def _pixels(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[-2:]))
