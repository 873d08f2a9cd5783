"""One adapter for the attacks of foolbox that fit: the extra ``peers``.

Source: Rauber, Zimmermann, Bethge, Brendel 2020, *Foolbox Native*, JOSS 5(53), 2607. What is true
of each class stands in ``attacks.peers.foolbox_table``. FMN is Pintor et al. 2021, arXiv
2102.12827.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import Any, get_args

import torch
from torch import Tensor, nn

from attacks.peers.foolbox_table import complete, row_of
from bench.base.types import Targets, ThreatModel, UserError
from bench.measure.at_rest import at_rest
from bench.plugins.contracts import Attack, AttackContext, Perturbation


@dataclass(frozen=True)
class Foolbox(Attack):
    """Any mapped foolbox attack, by the name that ``foolbox.attacks`` gives it.

    ``attack``: that name; see ``attacks.peers.foolbox_table``. ``eps``: the budget of a class that
    has one (PGD), in input units, and of no other. ``targets``: which attempts the runner makes.
    ``adaptive``: whether a defense's surrogate is differentiated, where it has one. ``chunk``:
    rows at a time. ``params``: the class' own keywords, complete with its defaults.

    Raises ``UserError`` for an unknown class or keyword, a value out of range, or targets that
    the class cannot reach for. Its cells are skipped where foolbox is not installed.
    """

    attack: str
    eps: float | None = None
    targets: Targets = "untargeted"
    adaptive: bool = True
    chunk: int = 256
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def from_params(cls, **params: Any) -> Foolbox:
        """Make the plugin from a flat table: our fields, and every other key for foolbox's class.

        A nested table ``params`` also goes to the class:
        ``Foolbox.from_params(**asdict(attack)) == attack``.
        """
        names = {f.name for f in fields(cls)} - {"params"}
        if "attack" not in params:
            row_of(None)
        nested = params.pop("params", {})
        if not isinstance(nested, Mapping):
            raise UserError(f"params of attack 'foolbox' must be a table, got {nested!r}")
        keywords = {k: v for k, v in params.items() if k not in names} | dict(nested)
        return cls(**{k: v for k, v in params.items() if k in names}, params=keywords)

    def __post_init__(self) -> None:
        row = row_of(self.attack)
        object.__setattr__(self, "params", complete(self.attack, self.params))
        if self.targets not in get_args(Targets):
            raise UserError(f"targets must be one of {get_args(Targets)}, got {self.targets!r}")
        if self.targeted and not row.targeted:
            raise UserError(
                f"foolbox's {self.attack} cannot reach for a target: targets must be "
                f"'untargeted', got {self.targets!r}"
            )
        if not isinstance(self.adaptive, bool):
            raise UserError(f"adaptive must be true or false, got {self.adaptive!r}")
        if not isinstance(self.chunk, int) or self.chunk < 1:
            raise UserError(f"chunk must be an integer of at least 1, got {self.chunk!r}")
        if row.fixed and not (isinstance(self.eps, int | float) and 0 < self.eps < float("inf")):
            raise UserError(
                f"foolbox's {self.attack} needs eps, its budget: a positive number, "
                f"got {self.eps!r}"
            )
        if not row.fixed and self.eps is not None:
            raise UserError(
                f"foolbox's {self.attack} looks for the minimum norm: leave out eps, "
                f"got {self.eps!r}"
            )

    def unavailable(self) -> str | None:
        """Name the extra where it is not installed."""
        if importlib.util.find_spec("foolbox") is None:
            return "foolbox is not installed: pip install 'retort-bench[peers]'"
        return None

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return the class' norm with our ``eps``, whatever the ``shape``."""
        row = row_of(self.attack)
        return ThreatModel(row.norm, self.eps, row.unit)

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Run foolbox on ``x`` (batch, *shape) in [0, 1]; what it returns is passed on unaltered.

        Of a class with a budget that is the result clipped to it. Draws depend on the batch.
        """
        foolbox = load()
        attack = getattr(foolbox.attacks, self.attack)(**self.params)
        found = [x[:0]]
        with torch.enable_grad(), at_rest(model), _seeded(x.device, context.seed):
            wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
            for first in range(0, len(x), self.chunk):
                rows = slice(first, first + self.chunk)
                criterion = (
                    foolbox.Misclassification(y[rows])
                    if target is None
                    else foolbox.TargetedMisclassification(target[rows])
                )
                _, x_adv, _ = attack(wrapped, x[rows], criterion, epsilons=self.eps)
                found.append(x_adv.detach())
        return Perturbation(torch.cat(found))


def load() -> ModuleType:
    """Import foolbox; raises UserError where it is missing or broken."""
    try:
        with warnings.catch_warnings():
            # Its blur attack imports a name that SciPy has moved.
            warnings.filterwarnings(
                "ignore", "Please import `gaussian_filter`", DeprecationWarning, r"foolbox\."
            )
            return importlib.import_module("foolbox")
    except Exception as error:  # a broken installation raises anything
        raise UserError(
            "foolbox is missing or broken: pip install 'retort-bench[peers]' "
            f"({type(error).__name__}: {error})"
        ) from error


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed what foolbox draws from, which are torch's generators, and restore them."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
