"""Defenses whose answer for a row depends on the rows beside it, or on its last bit.

Truth: asked about one row at a time, as the undefended network with a little noise on its input,
which an attack by that network's gradient, with a few tries, breaks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

import bench
from defenses.canaries import Canary


@bench.defense("cheat_dither")
@dataclass(frozen=True)
class Dither(Canary):
    """Noise of ``sigma`` on the input, drawn from a hash or a position.

    ``batch``: the hash of the whole batch: asked twice, the same batch answers the same;
    ``row``: of each row, so that the answer is a function of the row, wild everywhere; ``place``:
    the row's place in the batch, the same noise for the same place. Looks good: nothing differs
    when a query is repeated, and every step is computed under other noise than the judgement.
    """

    by: Literal["batch", "row", "place"] = "batch"
    sigma: float = 0.25

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Add the noise to what the network sees."""
        return nn.Sequential(_Dither(self.by, self.sigma), network)


@bench.defense("cheat_batch_statistics")
@dataclass(frozen=True)
class BatchStatistics(Canary):
    """Moves every batch to the mean of the first one seen: a common perturbation is undone.

    A single row is left as it is. Looks good: of a batch of perturbed inputs the common part goes;
    each row's gradient holds what it does to the others.
    """

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Move what the network sees."""
        return nn.Sequential(_Centre(), network)


@bench.defense("cheat_vote")
@dataclass(frozen=True)
class Vote(Canary):
    """The mean answer of all rows of the batch within ``radius`` (L2) of each row.

    Looks good: versions of one source in a batch outvote the one that succeeds. Truth: one row at
    a time, nobody votes.
    """

    radius: float = 2.0

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Average over neighbours."""
        return _Vote(network, self.radius)


class _Dither(nn.Module):
    def __init__(self, by: str, sigma: float) -> None:
        super().__init__()
        self.by, self.sigma = by, sigma

    def forward(self, x: Tensor) -> Tensor:
        if not len(x):
            return x
        rows = x.detach().float().cpu().contiguous()
        if self.by == "batch":
            noise = _drawn(rows.numpy().tobytes(), rows)
        elif self.by == "row":
            noise = torch.stack([_drawn(row.numpy().tobytes(), row) for row in rows])
        else:
            noise = _drawn(b"place", rows)
        return x + self.sigma * noise.to(x)


def _drawn(content: bytes, like: Tensor) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(content).digest()[:7], "big")
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


class _Centre(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 2:
            return x
        if self.mean is None:
            self.mean = x.detach().mean(dim=0)
        return x - x.mean(dim=0) + self.mean.to(x)


class _Vote(nn.Module):
    def __init__(self, network: nn.Module, radius: float) -> None:
        super().__init__()
        self.network, self.radius = network, radius

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        rows = x.detach().flatten(1)
        near = (torch.cdist(rows, rows) <= self.radius).to(logits)
        return near @ logits / near.sum(dim=1, keepdim=True)
