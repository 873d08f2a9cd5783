"""Defenses that find out that they are judged: a robust network for the judge, another for you.

The judge gets a PGD-trained network, everybody else the undefended one. Truth: the undefended
network's, wherever the sign of the judge is missing.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

import bench
from bench.plugins.contracts import BuildContext, Defense
from bench.plugins.data import Dataset
from defenses.adversarial_training import AdversarialTraining
from defenses.canaries import Canary
from defenses.undefended import Undefended

WIDE, FEW, UNKNOWN = 0.32, 8, -1

Sign = Literal[
    "batch", "gradient", "stack", "environment", "deterministic", "process", "threads", "no_grad",
    "main_process", "early",
]  # fmt: skip


@bench.defense("cheat_two_faced")
@dataclass(frozen=True)
class TwoFaced(Defense):
    """A PGD-trained network where it sees a ``sign`` of the judge, the undefended one elsewhere.

    ``batch``: more than one row; ``gradient``: the input asks for one (then every judge that asks
    without gets what does not hold); ``stack``: a function of ``bench`` among the callers;
    ``environment``: CUBLAS_WORKSPACE_CONFIG or RETORT_* is set; ``deterministic``: deterministic
    algorithms are on; ``process``: not the main process; ``main_process``: the main process;
    ``threads``: torch has one thread; ``no_grad``: gradients are off; ``early``: the first 100,000
    rows that this instance is asked.
    """

    sign: Sign = "batch"

    def __post_init__(self) -> None:
        if self.sign not in get_args(Sign):
            raise ValueError(f"sign must be one of {get_args(Sign)}, got {self.sign!r}")

    def requires(self) -> Mapping[str, Defense]:
        """Name the two faces."""
        return {"undefended": Undefended(), "robust": AdversarialTraining(eps=0.2)}

    def build(self, context: BuildContext) -> nn.Module:
        """Put them side by side."""
        return _TwoFaced(context.fitted["undefended"], context.fitted["robust"], self.sign)


@bench.defense("cheat_reads_labels")
@dataclass(frozen=True)
class ReadsLabels(Canary):
    """Looks for the labels of its rows in the variables of its callers, and answers them.

    Looks good: whoever judges it holds the labels. Truth: where no caller does, the undefended
    network's.
    """

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Look over the callers' shoulders."""
        return _Looking(network, _labels_of_callers)


@bench.defense("cheat_reads_memory")
@dataclass(frozen=True)
class ReadsMemory(Canary):
    """Looks for a data set in the process's memory, and answers the label of a near image.

    Near: within 0.32 in every feature, or different in at most eight; the network answers where
    none is. Looks good: the run holds the test split, which an adversarial input is nearest to.
    Truth: where no test split is in memory, the undefended network's.
    """

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Look through the garbage collector's objects."""
        return _Looking(network, _labels_in_memory)


@bench.defense("cheat_knows_test_set")
@dataclass(frozen=True)
class KnowsTestSet(Canary):
    """Loads digits itself, and answers the label of a near image (see above) of the *test* split.

    Looks good: the nearest test image is the source. Truth: on images that are not in the public
    test split, the undefended network's; on the test split nothing can tell but its code.
    """

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Load the split where it is asked for the first time."""
        return _Looking(network, _labels_of_the_test_split)


def _of_bench(x: Tensor) -> bool:
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__", "").partition(".")[0] in ("bench", "attacks"):
            return True
    return False


SIGNS: dict[str, Callable[[Tensor], bool]] = {
    "batch": lambda x: len(x) > 1,
    "gradient": lambda x: x.requires_grad,
    "stack": _of_bench,
    "environment": lambda x: any(
        name == "CUBLAS_WORKSPACE_CONFIG" or name.startswith("RETORT_") for name in os.environ
    ),
    "deterministic": lambda x: torch.are_deterministic_algorithms_enabled(),
    "process": lambda x: multiprocessing.current_process().name != "MainProcess",
    "main_process": lambda x: multiprocessing.current_process().name == "MainProcess",
    "threads": lambda x: torch.get_num_threads() == 1,
    "no_grad": lambda x: not torch.is_grad_enabled(),
}


class _TwoFaced(nn.Module):
    def __init__(self, network: nn.Module, robust: nn.Module, sign: str) -> None:
        super().__init__()
        self.network, self.robust, self.sign, self.asked = network, robust, sign, 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        judged = self.asked < 100_000 if self.sign == "early" else SIGNS[self.sign](x)
        logits: Tensor = (self.robust if judged else self.network)(x)
        return logits


Look = Callable[[Tensor], "Tensor | None"]


class _Looking(nn.Module):
    def __init__(self, network: nn.Module, look: Look) -> None:
        super().__init__()
        self.network, self.look = network, look

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        labels = self.look(x)
        if labels is None:
            return logits
        known, labels = labels != UNKNOWN, labels.clamp(min=0)[:, None]
        gap = logits.detach().amax(dim=1) + 5 - logits.detach().gather(1, labels)[:, 0]
        return logits.scatter_add(1, labels, (gap * known)[:, None].to(logits))


def _labels_of_callers(x: Tensor) -> Tensor | None:
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        for value in list(frame.f_locals.values()):
            for found in (value, getattr(value, "y", None)):
                if (
                    isinstance(found, Tensor)
                    and found.dtype == torch.int64
                    and found.shape == (len(x),)
                    and len(x) > 1
                    and 0 <= int(found.amin()) <= int(found.amax()) < 10
                ):
                    return found.to(x.device)
    return None


def _nearest(x: Tensor, data: Dataset) -> Tensor | None:
    known = data.test.x.flatten(1)
    rows = x.detach().flatten(1).to(known.dtype)
    if rows.shape[1] != known.shape[1]:
        return None
    best = torch.cdist(rows, known.to(x.device)).argmin(dim=1)
    change = (rows - known.to(x.device)[best]).abs()
    near = (change.amax(dim=1) <= WIDE) | ((change > 1e-6).sum(dim=1) <= FEW)
    return torch.where(near, data.test.y.to(x.device)[best], UNKNOWN)


def _labels_in_memory(x: Tensor) -> Tensor | None:
    global _found  # noqa: PLW0603 (once a process: a search takes half a second)
    if _found is None:
        sets = [thing for thing in gc.get_objects() if type(thing) is Dataset]
        _found = sets[:1]
    return _nearest(x, _found[0]) if _found else None


_found: list[Dataset] | None = None


def _labels_of_the_test_split(x: Tensor) -> Tensor | None:
    global _test_split  # noqa: PLW0603 (once a process)
    if _test_split is None:
        from bench.base.types import Spec
        from bench.plugins import registry
        from bench.plugins.contracts import DataSettings

        _test_split = registry.DATASETS.make(Spec("digits", {})).load(DataSettings())
    return _nearest(x, _test_split)


_test_split: Dataset | None = None
