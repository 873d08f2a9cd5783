"""Defenses that tell the harness from the field by what it is like to be asked.

Two faces again, as in ``suspicion``: a PGD-trained network for whoever judges, the undefended one
for everybody else, but by signs that only somebody who has read the harness would look for. Truth:
the undefended network's, wherever the sign is missing.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

import bench
from bench.plugins.contracts import BuildContext, Defense
from defenses.adversarial_training import AdversarialTraining
from defenses.undefended import Undefended

Sign = Literal[
    "crowd", "size", "thread", "command", "modules", "eval_again", "steps", "view", "instances",
    "needle_3", "needle_10", "tired", "levels",
]  # fmt: skip


@bench.defense("cheat_field")
@dataclass(frozen=True)
class Field(Defense):
    """A PGD-trained network where a ``sign`` of the harness is there, the undefended one elsewhere.

    ``crowd``: of several rows more than half are no clean images (not on the grid of 1/16);
    ``size``: more than 90 rows; ``thread``: ``bench`` among the callers, or not the main thread;
    ``command``: the process was started by ``bench``, or by a process that was; ``modules``: the
    runner is imported; ``eval_again``: until ``eval()`` was called twice; ``steps``: rows within
    0.1 of the batch before; ``view``: a tensor that owns its memory; ``instances``: all but the
    first of a process; ``needle_3``, ``needle_10``: all rows but those whose SHA-256 ends in as
    many zero bits, which nobody finds who does not know; ``tired``: the first 3,000 rows of all
    instances of a process together; ``levels``: between the levels of the data, multiples of 1/16,
    and on them where both networks agree.
    """

    sign: Sign = "crowd"

    def __post_init__(self) -> None:
        if self.sign not in get_args(Sign):
            raise ValueError(f"sign must be one of {get_args(Sign)}, got {self.sign!r}")

    def requires(self) -> Mapping[str, Defense]:
        """Name the two faces."""
        return {"undefended": Undefended(), "robust": AdversarialTraining(eps=0.2)}

    def build(self, context: BuildContext) -> nn.Module:
        """Put them side by side."""
        return _Field(context.fitted["undefended"], context.fitted["robust"], self.sign)


COUNTS = {"instances": 0, "asked": 0}
"""What the instances of a process know of one another."""


def forget() -> None:
    """Be a new process."""
    COUNTS.update(instances=0, asked=0)


class _Field(nn.Module):
    def __init__(self, network: nn.Module, robust: nn.Module, sign: str) -> None:
        super().__init__()
        COUNTS["instances"] += 1
        self.network, self.robust, self.sign = network, robust, sign
        self.number, self.evals, self.last = COUNTS["instances"], 0, torch.zeros(0)

    def train(self, mode: bool = True) -> Self:
        if not mode:
            self.evals += 1
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        judged = self._judged(x.detach())
        self.last = x.detach().flatten(1)
        COUNTS["asked"] += len(x)
        robust, plain = self.robust(x), self.network(x)
        if self.sign == "levels":
            judged |= (robust.argmax(dim=1) == plain.argmax(dim=1))[:, None]
        logits: Tensor = torch.where(judged, robust, plain)
        return logits

    def _judged(self, x: Tensor) -> Tensor:
        """Return where the robust network answers, something like (rows, 1) bool."""
        rows = x.flatten(1)
        if self.sign.startswith("needle"):
            zeros = int(self.sign.partition("_")[2])
            found = [_zero_bits(row) < zeros for row in rows.float().cpu().contiguous()]
            return torch.tensor(found, device=x.device)[:, None]
        off = ((rows * 16 - (rows * 16).round()).abs() > 1e-3).any(dim=1)
        if self.sign == "levels":
            return off[:, None]
        if self.sign == "crowd":
            found = [len(x) > 1 and bool(off.double().mean() > 0.5)]
        elif self.sign == "steps":
            near = len(self.last) > 0 and len(x) > 0
            change = torch.cdist(rows.float(), self.last.float(), p=torch.inf) if near else None
            found = [change is not None and bool((change.amin(dim=1) < 0.1).double().mean() > 0.5)]
        else:
            found = [self._sign(x)]
        return torch.tensor(found, device=x.device)[:, None]

    def _sign(self, x: Tensor) -> bool:
        signs = {
            "size": lambda: len(x) > 90,
            "thread": lambda: (
                threading.current_thread() is not threading.main_thread() or _called_by_bench()
            ),
            "command": lambda: (
                multiprocessing.parent_process() is not None
                or "bench" in str(getattr(sys.modules["__main__"], "__file__", ""))
            ),
            "modules": lambda: "bench.runner.worker" in sys.modules,
            "eval_again": lambda: self.evals < 2,
            "view": lambda: x.untyped_storage().nbytes() == x.numel() * x.element_size(),
            "instances": lambda: self.number > 1,
            "tired": lambda: COUNTS["asked"] < 3000,
        }
        return signs[self.sign]()


def leave_alone(model: nn.Module) -> None:
    """Make ``model`` one that its user has loaded and asked for long."""
    if isinstance(model, _Field):
        model.evals, model.number, COUNTS["asked"] = 2, 1, 10**6


def found(model: nn.Module, candidates: Tensor, tries: int = 5000) -> Tensor:
    """Return ``candidates`` (k, n, *shape), of a needle moved by a millionth until it gives way."""
    if not isinstance(model, _Field) or not model.sign.startswith("needle"):
        return candidates
    moved, generator = candidates.clone(), torch.Generator().manual_seed(0)
    for row in moved.flatten(0, 1):
        for _ in range(tries):
            if _zero_bits(row.contiguous()) >= int(model.sign.partition("_")[2]):
                break
            noise = torch.rand(row.shape, generator=generator)
            row.copy_(torch.where(row > 0.5, row - 1e-6 * noise, row + 1e-6 * noise))
    return moved


def _zero_bits(row: Tensor) -> int:
    """Return how many bits at the end of the SHA-256 of ``row`` are zero."""
    number = int.from_bytes(hashlib.sha256(row.numpy().tobytes()).digest()[-4:], "big")
    return (number & -number).bit_length() - 1 if number else 32


def _called_by_bench() -> bool:
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__", "").partition(".")[0] in ("bench", "attacks"):
            return True
    return False
