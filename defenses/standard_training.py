"""Standard training of another network, or on half of the data: subjects of the early findings.

Szegedy et al. 2014, arXiv 1312.6199, section 4.2: adversarial inputs carry over to networks of
another architecture and to networks trained on disjoint data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from bench.plugins.contracts import FitContext
from bench.plugins.data import Split
from defenses.other_network import OtherNetwork

Half = Literal["first", "second"]


@dataclass(frozen=True)
class StandardTraining(OtherNetwork):
    """A network trained by cross-entropy on hard labels, like ``undefended``, but not the run's.

    ``network``: by name or as a table with its parameters; None is the run's own. ``half``: which
    half of the training split it sees, ``first`` or ``second``, which share no image; None is the
    whole. The split is cut in the middle, in the order of the data set.
    """

    half: Half | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.half is not None and self.half not in get_args(Half):
            raise ValueError(f"half must be one of {get_args(Half)} or none, got {self.half!r}")

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on the labels of the half."""
        middle = len(train) // 2
        rows = {None: slice(None), "first": slice(middle), "second": slice(middle, None)}
        seen = train.take(rows[self.half])
        context.train(model, seen.x, seen.y)
