"""The contracts: what the author of a defense, an attack, a network or a data set subclasses.

Every plugin is a frozen dataclass whose fields are its parameters, so that a parameter can be
written in a matrix file, swept, hashed and shown. Inputs are ``(batch, *shape)`` float32 in
[0, 1]; labels and targets are ``(batch,)`` int64; a model returns logits ``(batch, classes)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bench.base.types import Access, DataInfo, Spec, Targets, ThreatModel, UserError

if TYPE_CHECKING:
    from bench.plugins.data import Dataset, Split
    from bench.plugins.recipes import Objective, Recipe


@dataclass(frozen=True)
class BuildContext:
    """What ``Defense.build`` may use.

    ``info`` describes the data set; ``fitted`` holds the fitted models that ``requires`` named;
    ``network()`` makes a fresh, untrained reference network.
    """

    info: DataInfo
    fitted: Mapping[str, nn.Module]
    network: Callable[[], nn.Module]


class Train(Protocol):
    """``bench.training.loop.train`` with the run's recipe and generator filled in."""

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        targets: Tensor,
        *,
        temperature: float = 1.0,
        objective: Objective | None = None,
    ) -> None:
        """Train ``model`` in place on labels (n,) or probabilities (n, classes).

        ``objective`` replaces the cross-entropy at ``temperature``: the loss of one batch.
        """


@dataclass(frozen=True)
class FitContext:
    """What ``Defense.fit`` may use.

    ``fitted`` holds the fitted models that ``requires`` named; ``validation`` is for choosing
    (the test split is never within reach); ``recipe`` says how the run trains and ``train`` does
    it; ``generator`` is seeded by the run, on the device of the data, as torch's global generator
    is. ``make_attack`` makes an attack by name, for a defense that trains on adversarials.
    """

    info: DataInfo
    fitted: Mapping[str, nn.Module]
    validation: Split
    recipe: Recipe
    generator: torch.Generator
    train: Train
    make_attack: Callable[[Spec], Attack]


@dataclass(frozen=True)
class AttackContext:
    """What ``Attack.perturb`` may use: the data set's facts, a seed, the models it required.

    ``sample_ids``: (batch,) int64, the index in the test split of each row passed to ``perturb``.
    """

    info: DataInfo
    seed: int = 0
    fitted: Mapping[str, nn.Module] = field(default_factory=dict)
    sample_ids: Tensor | None = field(default=None, compare=False)

    def generator(self, device: torch.device) -> torch.Generator:
        """Return a generator on ``device``, seeded by the run."""
        return torch.Generator(device).manual_seed(self.seed)


NOT_SUBMITTED = "not_submitted"
"""The stop reason of a row that nothing was tried on: its clean input is returned."""


SPENT = "max-passes"
"""The stop reason of a row whose attack the runner stopped: it may cost no more passes."""


@dataclass(frozen=True)
class Perturbation:
    """What an attack returns; the runner believes none of it and measures again.

    ``x_adv``: the shape, dtype and device of ``x``. ``iterations``: ``(batch,)`` integers, the
    steps each row took. ``stop_reason``: one short word a row. ``zero_gradients``: ``(batch,)``
    integers, the gradients of each row that were exactly zero everywhere.
    """

    x_adv: Tensor
    iterations: Tensor | None = None
    stop_reason: Sequence[str] | None = None
    zero_gradients: Tensor | None = None


@dataclass(frozen=True)
class Defense:
    """A way to make a network: its structure (``build``) and what it learns (``fit``).

    The two are never mixed: a cached fit is ``build`` plus stored weights, so everything that can
    be trained can be reloaded. Declare ``stochastic`` where the same query may answer
    differently, and ``differentiable = False`` where gradients do not exist or mean nothing.
    """

    stochastic: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    whole: ClassVar[tuple[str, ...]] = ()
    """Parameters whose value may be a list: a matrix does not sweep them."""

    def trained(self) -> Sequence[Defense] | None:
        """Return it once for each training seed that it brings, where it was trained elsewhere.

        None, the default: it is fitted at the seeds of the run.
        """
        return None

    def requires(self) -> Mapping[str, Defense | Spec]:
        """Name the defenses that must be fitted first, as ``{name: defense}``."""
        return {}

    def plain(self) -> Defense | Spec | None:
        """Name its undefended counterpart: the same network, recipe and data, without the defense.

        None, the default: the reference of the run. A defense that changes the architecture
        names one of its own, or is compared with nothing like it, and never found to hold.
        """
        return None

    def files(self) -> Sequence[Path]:
        """Name the files that ``fit`` reads: their SHA-256 is part of the fit's identity."""
        return ()

    def code(self) -> Sequence[Callable[..., Any]]:
        """Name classes and functions that a parameter chose: their source is part of it too."""
        return ()

    def build(self, context: BuildContext) -> nn.Module:
        """Return the untrained module: ``(batch, *shape)`` in [0, 1] to logits at T = 1."""
        return context.network()

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Learn in place from ``train``; the default has nothing to learn."""
        return

    def surrogate(self, model: nn.Module) -> nn.Module:
        """Return what gradient attacks differentiate; success is judged on ``model`` itself."""
        return model


@runtime_checkable
class HandedOver(Protocol):
    """What a defense adds whose model others trained: ``fit`` looks at no training data.

    ``expect_accuracy``: what its author says of its clean accuracy, in (0, 1], or None.
    """

    expect_accuracy: float | None

    def notes(self, context: BuildContext) -> Sequence[str]:
        """Load the model as a run does, and return what was guessed on the way, in words.

        Raises UserError where it cannot be loaded, or does not fit the data of ``context``.
        """


@dataclass(frozen=True)
class Attack(ABC):
    """A way to perturb inputs. No metrics, no files, no caching inside.

    ``access`` says what the attacker sees: gradients, scores, decisions, or only other models
    (``transfer``). ``targets`` says which attempts the runner makes of a correctly classified
    source: one untargeted attempt, all wrong classes, one random wrong class, or the runner-up.
    """

    @property
    def access(self) -> Access:
        """What the attacker sees."""
        return "gradients"

    @property
    def targets(self) -> Targets:
        """Which targets the runner chooses for each source."""
        return "untargeted"

    @property
    def targeted(self) -> bool:
        """Whether the goal is a target class, rather than any class but the label."""
        return self.targets != "untargeted"

    @property
    def confidence(self) -> float | None:
        """The probability in an attempt's goal, None where predictions alone decide.

        Untargeted: it succeeds where no class has this probability (Papernot et al. 2016, arXiv
        1511.07528, section II: the weakest of an adversary's goals). Targeted: where the target
        wins with at least this one (Nguyen et al. 2015, arXiv 1412.1897).
        """
        return None

    @property
    def adaptive(self) -> bool:
        """Whether a gradient attack differentiates ``Defense.surrogate``, or the model as it is."""
        return True

    @property
    def rowwise(self) -> bool:
        """Whether what becomes of a row depends on that row alone, but for rounding.

        Then a large cell is attacked block by block (``bench.measure.cell.blocks``). False, the
        default: rows are attacked in one call, for one may learn from another or draw before it.
        """
        return False

    def unavailable(self) -> str | None:
        """Say why the attack cannot run here (a missing extra, say): its cells are skipped."""
        return None

    @abstractmethod
    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return the threat model for inputs of ``shape`` (batch dimension excluded)."""

    def requires(self) -> Mapping[str, Defense | Spec]:
        """Name the source models that a transfer attack needs, as ``{name: defense}``."""
        return {}

    def files(self) -> Sequence[Path]:
        """Name the files that ``perturb`` reads: their SHA-256 is part of the cell's identity."""
        return ()

    def code(self) -> Sequence[Callable[..., Any]]:
        """Name classes and functions that a parameter chose: their source is part of it too."""
        return ()

    @abstractmethod
    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Perturb ``x`` (batch, *shape) with labels ``y``; ``target`` is None if untargeted."""


LEARNT = "learnt"
"""What an attack learnt itself, among the models of ``AttackContext.fitted``: no requirement's."""


@dataclass(frozen=True)
class LearningAttack(Attack):
    """An attack that learns something about a model before it perturbs: a generator, a patch.

    Its fit is a node of its own, made once for a fitted model and stored with its weights; the
    two halves are those of a defense: what was learnt is ``build`` plus stored weights.
    """

    @abstractmethod
    def build(self, info: DataInfo) -> nn.Module:
        """Return the untrained module; raises ValueError where it does not suit the data."""

    @abstractmethod
    def fit(self, model: nn.Module, train: Split, context: FitContext) -> nn.Module:
        """Return what was learnt from ``train`` against ``model``, with the weights of ``build``.

        ``model`` is what ``perturb`` will be given: neither it nor ``train`` may change.
        """

    def fitted_as(self) -> LearningAttack:
        """Return the attack that is fitted for this one: those that return the same share a fit.

        Itself, the default: every parameter may matter to what it learns.
        """
        return self

    def learnt(self, context: AttackContext) -> nn.Module:
        """Return what ``fit`` returned, built anew from its weights, in eval mode.

        Raises UserError where the attack was called without: inside another attack, say.
        """
        if LEARNT not in context.fitted:
            raise UserError(
                f"{type(self).__name__} learns before it attacks, and was handed nothing that it "
                "learnt: let a run or bench.evaluate call it, not another attack"
            )
        return context.fitted[LEARNT]


@dataclass(frozen=True)
class Network(ABC):
    """A reference architecture."""

    @abstractmethod
    def build(self, info: DataInfo) -> nn.Module:
        """Return an untrained module for the data set; normalisation lives inside it."""


@dataclass(frozen=True)
class DataSettings:
    """Where data may lie and whether a download is allowed."""

    data_dir: Path | None = None
    cache_dir: Path | None = None
    offline: bool = False


@dataclass(frozen=True)
class DataSource(ABC):
    """A data set; ``network`` and ``recipe`` name what a run uses unless told otherwise.

    ``paper_recipe`` is what ``recipe = "paper"`` means on it, where a paper gives one.
    """

    network: ClassVar[str] = "mlp"
    recipe: ClassVar[str] = "default"
    paper_recipe: ClassVar[str | None] = None

    @abstractmethod
    def load(self, settings: DataSettings) -> Dataset:
        """Load the whole set into memory, in its fixed splits."""


Plugin = Defense | Attack | Network | DataSource
