"""One adapter for every evasion attack of the Adversarial Robustness Toolbox that fits.

Source: Nicolae et al. 2018, *Adversarial Robustness Toolbox*, arXiv 1807.01069. ART's classes
disagree on what ``y`` means, on logits or probabilities, on units and on seeds; ``MAPPED`` says
for each class what is true of it, and everything below is derived from that table.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import Any, Literal, get_args
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from bench.plugin import Attack, AttackContext, Perturbation
from bench.types import Access, DataInfo, Norm, Targets, ThreatModel, Unit, UserError

Goal = Literal["untargeted", "targeted"]
BOTH: tuple[Goal, ...] = ("untargeted", "targeted")
AWAY: tuple[Goal, ...] = ("untargeted",)
TOWARDS: tuple[Goal, ...] = ("targeted",)


@dataclass(frozen=True)
class Mapped:
    """What is true of one ART class.

    ``goals``: an untargeted call gets the label as ``y``, a targeted one the target.
    ``norm``: a norm, ``own`` for ART's keyword ``norm``, None where no norm describes the class.
    ``budget``: the keyword that bounds the perturbation, counted in ``per``; None for minimum
    norm. ``ignores_y``: an untargeted call leaves the model's own prediction. ``output``: what
    the class differentiates or reads. ``levels``: it works on 0 to 255. ``alone``: it takes, or
    decides on, one row a call. ``needs``: a package that ART does not require itself.
    ``defaults``: where ours differ from ART's. ``refuses``: a keyword's value, and why.
    """

    goals: tuple[Goal, ...]
    access: Access
    norm: Norm | Literal["own"] | None
    budget: str | None = None
    unit: Unit = "input"
    per: Literal["one", "level", "pixel"] = "one"
    ignores_y: bool = False
    output: Literal["logits", "probs"] = "logits"
    levels: bool = False
    alone: bool = False
    needs: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=lambda: {"batch_size": 128})
    refuses: Mapping[str, Any] = field(default_factory=dict)


_EPS = Mapped(BOTH, "gradients", "own", "eps")
_ONE: Mapping[str, Any] = {"batch_size": 1}  # all that these classes accept
_DE: Mapping[str, Any] = {"es": 1}
_NO_CMA: Mapping[str, Any] = {"es": (0, "CMA-ES seeds itself by the clock; use 1")}

MAPPED: dict[str, Mapped] = {
    "AutoAttack": Mapped(AWAY, "gradients", "own", "eps", needs="multiprocess"),
    "AutoConjugateGradient": _EPS,
    "AutoProjectedGradientDescent": _EPS,
    "BasicIterativeMethod": Mapped(BOTH, "gradients", "linf", "eps"),
    "BoundaryAttack": Mapped(BOTH, "decisions", "l2", ignores_y=True),
    "CarliniL0Method": Mapped(BOTH, "gradients", "l0", unit="features"),
    "CarliniL2Method": Mapped(BOTH, "gradients", "l2"),
    "CarliniLInfMethod": Mapped(AWAY, "gradients", "linf"),
    "DeepFool": Mapped(AWAY, "gradients", "l2", ignores_y=True),
    "ElasticNet": Mapped(
        BOTH, "gradients", "l2", refuses={"decision_rule": ("L1", "no threat model is l1")}
    ),
    "FastGradientMethod": _EPS,
    "HopSkipJump": Mapped(BOTH, "decisions", "own", ignores_y=True),
    "MomentumIterativeMethod": _EPS,
    "NewtonFool": Mapped(AWAY, "gradients", "l2", ignores_y=True, output="probs"),
    "PixelAttack": Mapped(
        BOTH,
        "scores",
        "l0",
        "th",
        "pixels",
        "pixel",
        output="probs",
        levels=True,
        defaults=_DE,
        refuses=_NO_CMA,
    ),
    "ProjectedGradientDescent": _EPS,
    "ProjectedGradientDescentNumpy": _EPS,
    "ProjectedGradientDescentPyTorch": _EPS,
    "RescalingAutoConjugateGradient": _EPS,
    "SaliencyMapMethod": Mapped(TOWARDS, "gradients", "l0", "gamma", "features"),
    "ShadowAttack": Mapped(TOWARDS, "gradients", None, alone=True, defaults={}),
    "SignOPTAttack": Mapped(AWAY, "decisions", "l2", ignores_y=True),
    "SimBA": Mapped(BOTH, "scores", "l2", output="probs", defaults=_ONE),
    "SpatialTransformation": Mapped(AWAY, "decisions", None, ignores_y=True, alone=True),
    "SquareAttack": Mapped(AWAY, "scores", "own", "eps"),
    "TargetedUniversalPerturbation": Mapped(TOWARDS, "gradients", "own", "eps"),
    "ThresholdAttack": Mapped(
        BOTH,
        "scores",
        "linf",
        "th",
        per="level",
        output="probs",
        levels=True,
        defaults=_DE,
        refuses=_NO_CMA,
    ),
    "UniversalPerturbation": Mapped(AWAY, "gradients", "own", "eps"),
    "VirtualAdversarialMethod": Mapped(AWAY, "scores", "l2", "eps", ignores_y=True, output="probs"),
    "Wasserstein": Mapped(BOTH, "gradients", None),
    "ZooAttack": Mapped(BOTH, "scores", "l2", defaults=_ONE),
}

_PATCH = "makes a printed patch or texture, not a perturbation within a norm"
_AUDIO = "needs a speech recogniser"
_TENSORFLOW = "needs TensorFlow"
_DETECTOR = "needs an object detector"
_GUIDE = "takes guide images where others take labels"
_OBJECT = "needs Python objects or data that a matrix file cannot hold"

REFUSED: dict[str, str] = {
    "AdversarialPatch": _PATCH,
    "AdversarialPatchNumpy": _PATCH,
    "AdversarialPatchPyTorch": _PATCH,
    "AdversarialPatchTensorFlowV2": _TENSORFLOW,
    "AdversarialTexturePyTorch": "needs an object tracker",
    "BrendelBethgeAttack": "needs numba, and has not been mapped yet",
    "CarliniWagnerASR": _AUDIO,
    "CompositeAdversarialAttackPyTorch": "changes colours through kornia, and only in RGB images",
    "DPatch": _DETECTOR,
    "DecisionTreeAttack": "attacks decision trees",
    "FeatureAdversariesNumpy": _GUIDE,
    "FeatureAdversariesPyTorch": _GUIDE,
    "FeatureAdversariesTensorFlowV2": _GUIDE,
    "FrameSaliencyAttack": _OBJECT,
    "GeoDA": "calls numpy.mat, which NumPy 2 no longer has",
    "GRAPHITEBlackbox": _PATCH,
    "GRAPHITEWhiteboxPyTorch": _PATCH,
    "HighConfidenceLowUncertainty": "attacks Gaussian processes",
    "ImperceptibleASR": _AUDIO,
    "ImperceptibleASRPyTorch": _AUDIO,
    "LaserAttack": _OBJECT,
    "LowProFool": _OBJECT,
    "MalwareGDTensorFlow": _TENSORFLOW,
    "OverTheAirFlickeringPyTorch": "attacks video",
    "OverloadPyTorch": _DETECTOR,
    "ProjectedGradientDescentTensorFlowV2": _TENSORFLOW,
    "RobustDPatch": _DETECTOR,
    "SNAL": _DETECTOR,
}

RESERVED = frozenset(
    {
        "estimator",
        "classifier",
        "targeted",
        "verbose",
        "summary_writer",
        "attacks",
        "estimator_orig",
        "adv_criterion",
        "loss",
        "mask",
        "parallel_pool_size",
        "eval_perform",
    }
)
"""ART keywords that the adapter sets itself, or that no matrix file can hold."""


@dataclass(frozen=True)
class Art(Attack):
    """Any mapped ART evasion attack, by class name; see ``MAPPED`` and ``REFUSED``.

    ``attack``: ART's class name. ``targets``: which attempts the runner makes; a class that
    cannot make them is refused. ``params``: the class' own keywords, complete with its defaults
    (``norm = "inf"`` for infinity; ``batch_size`` 128 where it does not change the attack).
    ``threat_norm``, ``threat_budget``, ``threat_unit``: the threat model of a class that has no
    norm (``SpatialTransformation``, ``ShadowAttack``, ``Wasserstein``), and of no other.

    Raises ``UserError`` for an unknown or unmapped class, an unknown keyword, a value that ART
    refuses, an L1 norm, or where ART is missing.
    """

    attack: str
    targets: Targets = "untargeted"
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
                f"attack 'art' needs the name of an ART class: attack = one of {_names()}"
            )
        nested = params.pop("params", {})
        if not isinstance(nested, Mapping):
            raise UserError(f"params of attack 'art' must be a table, got {nested!r}")
        keywords = {k: v for k, v in params.items() if k not in names} | dict(nested)
        return cls(**{k: v for k, v in params.items() if k in names}, params=keywords)

    def __post_init__(self) -> None:
        row = _row(self.attack)
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
        return Perturbation(generate(Call(self.attack, self.params), model, x, y, target, context))


@dataclass(frozen=True)
class Call:
    """A mapped ART class, its keywords, and what its loss gradients differentiate.

    ``loss`` is called with logits and one-hot labels (default: cross-entropy); it sums over rows,
    so that no row depends on its neighbours.
    """

    attack: str
    params: Mapping[str, Any]
    loss: nn.Module | None = None


def generate(
    call: Call,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    target: Tensor | None,
    context: AttackContext,
) -> Tensor:
    """Run an ART attack; return ``x_adv``, of the shape, dtype and device of ``x``.

    ``x``: (batch, *shape) in [0, 1]; ``y``, ``target``: (batch,) int64, ``target`` None for an
    untargeted attempt. ART works in float32. Rows that the model misclassifies are left as they
    are by a class that ignores ``y``, which would otherwise move them towards it. The model, its
    mode and gradients, and every global generator are left as they were.
    """
    row = _row(call.attack)
    x_adv = x.detach().clone()
    with _sandbox(x.device, context.seed), _frozen(model):
        rows = torch.ones(len(x), dtype=torch.bool, device=x.device)
        if row.ignores_y and target is None:
            with torch.no_grad():
                rows = model(x).argmax(1) == y
        if rows.any():
            function = _Function(model, row, x.dtype)
            classifier = _classifier(function, x.device, context.info, call.loss)
            attack = _build(call.attack, call.params, classifier, targeted=target is not None)
            goal = y if target is None else target
            onehot = np.eye(context.info.classes, dtype=np.float32)[goal[rows].cpu().numpy()]
            x_adv[rows] = _run(attack, x_adv[rows], onehot, row)
    return x_adv


def _run(attack: Any, x: Tensor, y: np.ndarray, row: Mapped) -> Tensor:
    clean = x.cpu().numpy()
    inputs = clean.astype(np.float32) * np.float32(_scale(row))
    size = 1 if row.alone else len(x)
    output = np.concatenate(
        [
            attack.generate(inputs[i : i + size].copy(), y[i : i + size])
            for i in range(0, len(x), size)
        ]
    )
    if row.levels:  # undo our own scaling, exactly where nothing changed
        output = np.where(output == inputs, clean, output / _scale(row))
    return torch.from_numpy(output).to(x)


class _Function(nn.Module):
    """A model as a function: ART sees no parameters to move, no mode to switch, no gradients.

    It is no ``nn.Sequential`` either, whose layers ART would call one by one, past the hooks and
    the ``forward`` of the whole.
    """

    def __init__(self, model: nn.Module, row: Mapped, dtype: torch.dtype) -> None:
        super().__init__()
        self.scale = _scale(row)
        self._hidden = (model, row.output, dtype)

    def forward(self, x: Tensor) -> Tensor:
        model, output, dtype = self._hidden
        logits: Tensor = model((x if self.scale == 1 else x / self.scale).to(dtype))
        return logits.softmax(1) if output == "probs" else logits


def _classifier(
    function: _Function, device: torch.device, info: DataInfo, loss: nn.Module | None = None
) -> Any:
    return _art("art.estimators.classification").PyTorchClassifier(
        model=function,
        loss=loss or nn.CrossEntropyLoss(reduction="sum"),
        input_shape=tuple(info.shape),
        nb_classes=info.classes,
        clip_values=(0.0, function.scale),
        device_type="gpu" if device.type == "cuda" else "cpu",
    )


def _build(name: str, params: Mapping[str, Any], classifier: Any, *, targeted: bool) -> Any:
    """Make the ART attack, quiet, with Python values for what a matrix file writes otherwise."""
    known = _keywords(name)
    values = {k: _to_python(v, known[k]) for k, v in params.items()}
    for key, value in {"targeted": targeted, "verbose": False}.items():
        if key in known:
            values.setdefault(key, value)
    if "attacker_params" in known:
        values["attacker_params"] = _inner(values, targeted=targeted)
    attack = _art("art.attacks.evasion").__dict__[name](classifier, **values)
    for inner in getattr(attack, "attacks", []):
        inner.verbose = False
    return attack


def _inner(values: Mapping[str, Any], *, targeted: bool) -> dict[str, Any] | None:
    """Return the parameters of a universal attack's inner one, which ART makes untargeted."""
    params = {} if values["attacker"] == "fgsm" else {"verbose": False}
    if targeted:
        params["targeted"] = True
    return {**params, **(values["attacker_params"] or {})} or None


def _row(name: str) -> Mapped:
    name = str(name)
    if name in MAPPED:
        return MAPPED[name]
    if name in REFUSED:
        raise UserError(f"ART's {name} is not mapped: it {REFUSED[name]}; mapped are {_names()}")
    nearest = difflib.get_close_matches(name, MAPPED, 1, 0.0)[0]
    raise UserError(f"unknown ART attack {name!r}; did you mean {nearest!r}? Mapped are {_names()}")


def _complete(name: str, row: Mapped, params: Mapping[str, Any]) -> dict[str, Any]:
    """Check the keywords against ART's signature; return all of them, as JSON values."""
    known = _keywords(name)
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


def _keywords(name: str) -> dict[str, Any]:
    """Return the keywords of ART's class with their defaults, without the estimator."""
    evasion = _art("art.attacks.evasion")
    if not hasattr(evasion, name):
        raise UserError(f"the installed ART {_art('art').__version__} has no {name}")
    parameters = list(inspect.signature(getattr(evasion, name)).parameters.values())
    return {p.name: p.default for p in parameters[1:]}


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


def _to_python(value: Any, default: Any) -> Any:
    if value == "inf" and not isinstance(default, str):
        return np.inf
    return tuple(value) if isinstance(value, list) and isinstance(default, tuple) else value


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
        function = _Function(nn.Flatten(), row, torch.float32)
        classifier = _classifier(function, torch.device("cpu"), info)
        _build(name, params, classifier, targeted=goal == "targeted")
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"ART's {name} refuses its parameters: {error}") from error


def _art(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken installation raises anything
        raise UserError(
            "ART is missing or broken: pip install adversarial-robustness-toolbox "
            f"({type(error).__name__}: {error})"
        ) from error


def _names() -> str:
    return ", ".join(MAPPED)


def _scale(row: Mapped) -> float:
    return 255.0 if row.levels else 1.0


def _pixels(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[-2:]))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no gradient reach the parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    _require_grad(trained, on=False)
    try:
        yield
    finally:
        _require_grad(trained, on=True)


def _require_grad(parameters: Iterable[nn.Parameter], *, on: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(on)


class _SeededState(np.random.RandomState):
    """Unseeded, as HopSkipJump and BoundaryAttack make it, it follows the global generator."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(np.random.randint(2**31) if seed is None else seed)


@contextmanager
def _sandbox(device: torch.device, seed: int) -> Iterator[None]:
    """Seed what ART draws from, silence its log, and restore both."""
    cuda = device.type == "cuda"
    log = logging.getLogger("art")
    states = np.random.get_state(), random.getstate(), log.level
    try:
        with (
            torch.random.fork_rng([device] if cuda else []),
            torch.cuda.device(device) if cuda else nullcontext(),
            patch.object(np.random, "RandomState", _SeededState),
        ):
            np.random.seed(seed % 2**32)
            random.seed(seed)
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed(seed)
            log.setLevel(logging.CRITICAL)
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
        log.setLevel(states[2])
