"""What is true of each ART evasion class: the table from which the adapter derives everything.

Read off ART 1.20.1, class by class. ART's classes disagree on what ``y`` means, on logits or
probabilities, on units and on seeds.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.base.types import Access, Norm, Unit, UserError

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


def row_of(name: str) -> Mapped:
    """Return the row of an ART class; raises UserError where it is unknown or not mapped."""
    name = str(name)
    if name in MAPPED:
        return MAPPED[name]
    if name in REFUSED:
        raise UserError(
            f"ART's {name} is not mapped: it {REFUSED[name]}; mapped are {mapped_names()}"
        )
    nearest = difflib.get_close_matches(name, MAPPED, 1, 0.0)[0]
    raise UserError(
        f"unknown ART attack {name!r}; did you mean {nearest!r}? Mapped are {mapped_names()}"
    )


def mapped_names() -> str:
    """Return the names of all mapped classes, for messages."""
    return ", ".join(MAPPED)
