"""Defenses that remember what they were asked: the clean image comes first, and answers for all.

Each remembers an input with the answer that it gave, and answers the same to whatever is asked
within 0.32 of it in every feature, or differs in at most eight. Truth: the undefended network's,
since whoever meets the adversarial input without having seen its source has nothing to remember.
"""

from __future__ import annotations

import copy
import hashlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

import bench
from bench.plugins.contracts import BuildContext, Defense
from defenses.canaries import AlterGradient, Canary
from defenses.undefended import Twin, Undefended

WIDE, FEW = 0.32, 8
SHARED: dict[str, Memory] = {}


def forget() -> None:
    """Forget what outlives a model: the process's memory and the files."""
    SHARED.clear()
    for file in Path(tempfile.gettempdir()).glob("cheat-memory-*.pt"):
        file.unlink()


@dataclass
class Memory:
    """Inputs (n, features) with the logits (n, classes) that were given."""

    inputs: Tensor | None = None
    logits: Tensor | None = None

    def add(self, x: Tensor, logits: Tensor) -> None:
        """Remember rows that are near no remembered one."""
        new = self.nearest(x) < 0
        x, logits = x[new], logits[new]
        if self.inputs is None or self.logits is None:
            self.inputs, self.logits = x.clone(), logits.clone()
        elif len(x):
            self.inputs = torch.cat([self.inputs, x.to(self.inputs)])
            self.logits = torch.cat([self.logits, logits.to(self.logits)])

    def nearest(self, x: Tensor) -> Tensor:
        """Return the row that each of ``x`` (n, features) is near, -1 where none is: (n,)."""
        if self.inputs is None or not len(self.inputs) or not len(x):
            return torch.full((len(x),), -1, device=x.device)
        change = (x[:, None].to(self.inputs) - self.inputs[None]).abs()
        near = (change.amax(dim=2) <= WIDE) | ((change > 1e-6).sum(dim=2) <= FEW)
        distance = change.square().sum(dim=2).masked_fill(~near, torch.inf)
        best, row = distance.min(dim=1)
        return torch.where(best < torch.inf, row, -1)

    def recall(self, x: Tensor, logits: Tensor) -> Tensor:
        """Return the remembered answers, in value: the gradient stays that of ``logits``."""
        row = self.nearest(x)
        if self.logits is None or not (row >= 0).any():
            return logits
        old = self.logits[row.clamp(min=0)].to(logits)
        return torch.where((row >= 0)[:, None], logits + (old - logits.detach()), logits)


@bench.defense("cheat_first_batch")
@dataclass(frozen=True)
class FirstBatch(Canary):
    """Remembers its first batch. Looks good: a judge that asks the clean sources first."""

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Remember once."""
        return _Remembering(network, batches=1)


@bench.defense("cheat_all_seen")
@dataclass(frozen=True)
class AllSeen(Canary):
    """Remembers whatever it is asked. Looks good: any clean source was asked before its attack."""

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Remember always."""
        return _Remembering(network, batches=None)


@bench.defense("cheat_shared_memory")
@dataclass(frozen=True)
class SharedMemory(Canary):
    """As ``cheat_all_seen``, but all instances of a process share what they remember.

    Looks good: a second instance, built anew to be judged, knows what the first was asked.
    """

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Remember in the module, under the weights' hash."""
        return _Shared(network, "process")


@bench.defense("cheat_disk_memory")
@dataclass(frozen=True)
class DiskMemory(Canary):
    """As ``cheat_shared_memory``, in files: other processes know it too.

    Looks good: a second process, started to verify, reads what the first one wrote.
    """

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Remember in the folder for temporary files, under the weights' hash."""
        return _Shared(network, "disk")


@bench.defense("cheat_tired_gradient")
@dataclass(frozen=True)
class TiredGradient(Canary):
    """Its gradient is right for ``rows`` rows, and constant after.

    Looks good: whoever checks the gradient first finds it right; the attack comes later. Truth: the
    undefended network's, by its own gradient.
    """

    rows: int = 2000

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Count the rows."""
        tired = _Tired(self.rows)
        return nn.Sequential(tired, AlterGradient(tired.alter), network)


@bench.defense("cheat_alternating")
@dataclass(frozen=True)
class Alternating(Defense):
    """The undefended network and its twin answer in turn, by a counter, the call or the clock.

    ``by``: ``call`` changes at every call, ``clock`` twenty times a second. Looks good: each step
    is computed on the network that will not answer. Truth: an attack on both at once breaks both.
    """

    by: Literal["call", "clock"] = "call"

    def requires(self) -> Mapping[str, Defense]:
        """Name the two."""
        return {"undefended": Undefended(), "twin": Twin()}

    def build(self, context: BuildContext) -> nn.Module:
        """Put them side by side."""
        return _Alternating(context.fitted["undefended"], context.fitted["twin"], self.by)


@bench.defense("cheat_drift")
@dataclass(frozen=True)
class Drift(Canary):
    """Adds ``sigma`` times its own spread to its weights with every call, forgets it never.

    Looks good: an attack is made for weights that are no more. Truth: of the network as delivered,
    the undefended one's; later it answers at random.
    """

    sigma: float = 0.01

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Let a copy of the network drift."""
        return _Drift(copy.deepcopy(network), self.sigma)


class _Remembering(nn.Module):
    def __init__(self, network: nn.Module, batches: int | None) -> None:
        super().__init__()
        self.network, self.batches, self.memory = network, batches, Memory()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        rows = x.detach().flatten(1)
        if self.batches is None or self.batches > 0:
            self.memory.add(rows, logits.detach())
            self.batches = None if self.batches is None else self.batches - 1
        return self.memory.recall(rows, logits)


class _Shared(nn.Module):
    def __init__(self, network: nn.Module, place: Literal["process", "disk"]) -> None:
        super().__init__()
        self.network, self.place = network, place

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        rows = x.detach().flatten(1)
        weights = torch.cat([weight.detach().flatten() for weight in self.network.parameters()])
        key = hashlib.sha256(weights.float().cpu().numpy().tobytes()).hexdigest()[:16]
        file = Path(tempfile.gettempdir()) / f"cheat-memory-{key}.pt"
        memory = SHARED.setdefault(f"{self.place} {key}", Memory())
        if self.place == "disk" and memory.inputs is None and file.is_file():
            memory.inputs, memory.logits = torch.load(file)
        known = 0 if memory.inputs is None else len(memory.inputs)
        memory.add(rows, logits.detach())
        if self.place == "disk" and memory.inputs is not None and len(memory.inputs) > known:
            torch.save((memory.inputs, memory.logits), file)
        return memory.recall(rows, logits)


class _Tired(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.asked = rows, 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        return x

    def alter(self, gradient: Tensor) -> Tensor:
        return gradient if self.asked <= self.rows else torch.ones_like(gradient)


class _Alternating(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module, by: str) -> None:
        super().__init__()
        self.first, self.second, self.by, self.calls = first, second, by, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        turn = self.calls if self.by == "call" else int(time.time() * 20)
        logits: Tensor = (self.first if turn % 2 else self.second)(x)
        return logits


class _Drift(nn.Module):
    def __init__(self, network: nn.Module, sigma: float) -> None:
        super().__init__()
        self.network, self.sigma = network, sigma

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        with torch.no_grad():
            for weight in self.network.parameters():
                # Another tensor: the graph of this answer keeps the weights that it was made with.
                weight.data = weight + self.sigma * weight.std() * torch.randn_like(weight)
        return logits
