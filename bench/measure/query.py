"""Independent re-verification: the attack's word is not taken, the model is asked again."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from bench.base.types import ThreatModel, rows_at_once

BATCH = 512
"""Rows a query, of small inputs: fixed, so that every verification sums in the same order."""

ODD_BATCH = 193
"""Rows a query where a model is to be judged: a size at which no attack asks."""

TOLERANCE = 1e-6
"""Slack on the box, on the budget and on what counts as a changed feature, in input units."""


SHARE_TOLERANCE = 1e-9
"""Slack on a budget that is a fraction of features."""

NO_ANSWER = -1
"""The answer of a row whose logits tie at the top, or are not all finite: it names no class."""

DRAWS = 11
"""How often a stochastic model is asked: odd, so that two answers do not tie."""

ROUNDING = 0.01
"""How far two answers to one input may lie apart, relative to the spread of a row's logits.

A matrix product rounds otherwise in another batch: by 1e-6 of the spread in float32, by up to a
few thousandths in bfloat16.
"""

Anew = Callable[[], nn.Module]
"""Builds a model anew: the same weights, and nothing that it could remember."""


class ContractError(Exception):
    """A model or an attack returned something that its contract does not allow."""


def predict(model: nn.Module, x: Tensor, classes: int) -> Tensor:
    """Return the logits (n, classes) of ``x``, queried ``BATCH`` rows at a time, or fewer.

    The model gets a copy of its rows. Raises ContractError where it changes that, or returns
    another shape or no floating numbers.
    """
    parts = []
    with torch.no_grad():
        for rows in torch.split(x, rows_at_once(x.shape[1:], BATCH)) if len(x) else ():
            given = rows.clone()
            logits = model(given)
            if not torch.equal(given, rows) and not _alike(given, rows):
                raise ContractError("the model changes its input in place: let it clone that first")
            if not isinstance(logits, Tensor) or logits.shape != (len(rows), classes):
                got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise ContractError(
                    f"the model must return logits of shape {(len(rows), classes)}, got {got}"
                )
            if logits.device != rows.device:
                raise ContractError(
                    f"the model must answer on the device of its input, {rows.device}, "
                    f"got {logits.device}"
                )
            if not logits.is_floating_point():
                raise ContractError(f"the model must return floating logits, got {logits.dtype}")
            parts.append(logits)
    return torch.cat(parts) if parts else x.new_empty((0, classes))


def slack(threat: ThreatModel) -> float:
    """Return by how much a distance may exceed the budget of ``threat``, in the budget's unit.

    A fraction of features is a count divided by their number: it is exact but for rounding, and a
    millionth of it would be a feature too many where there are a million.
    """
    return SHARE_TOLERANCE if threat.norm == "l0" else TOLERANCE


def _alike(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.isnan(), second.isnan()) and torch.equal(
        first.nan_to_num(), second.nan_to_num()
    )


def ask(model: nn.Module, x: Tensor, classes: int, seed: int = 0, draws: int = 1) -> Tensor:
    """Return what ``model`` answers when it cannot tell what it is asked for, (n, classes).

    The rows are cloned, shuffled by ``seed`` and asked in batches of an odd size, ``draws`` times
    over; of several draws the mean of the logits is returned for each row's most frequent answer,
    and NaN where that is none.
    """
    found = [_shuffled(model, x, classes, seed + draw) for draw in range(draws)]
    if draws == 1:
        return found[0]
    every = torch.stack(found)
    answers = torch.stack([answer(logits) for logits in found])
    usual = answers.mode(dim=0).values
    chosen = (answers == usual)[:, :, None]
    mean = every.masked_fill(~chosen, 0).sum(dim=0) / chosen.sum(dim=0)
    # Of draws that name no class no mean may name one: ties between other pairs, a NaN.
    return mean.masked_fill((usual == NO_ANSWER)[:, None], math.nan)


def _shuffled(model: nn.Module, x: Tensor, classes: int, seed: int) -> Tensor:
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(x))).to(x.device)
    logits = x.new_empty((len(x), classes))
    with torch.no_grad():
        for rows in torch.split(order, rows_at_once(x.shape[1:], ODD_BATCH)) if len(x) else ():
            logits[rows] = predict(model, x[rows].clone(), classes).to(logits.dtype)
    return logits


def copies(model: nn.Module) -> Anew:
    """Return what makes copies of ``model`` as it is now; of what cannot be copied, itself."""
    try:
        kept = copy.deepcopy(model)
    except Exception:  # noqa: BLE001 (a module may hold a lock, a handle, a generator)
        return lambda: model
    return lambda: copy.deepcopy(kept)


def answer(logits: Tensor) -> Tensor:
    """Return the class that wins strictly, (n,) int64; ``NO_ANSWER`` where none does.

    A row whose logits tie at the top, or are not all finite, names no class: for whoever asks, it
    is not the label.
    """
    top = logits.argmax(dim=1)
    firm = torch.isfinite(logits).all(dim=1) & (lead(logits, top) > 0)
    return torch.where(firm, top, torch.full_like(top, NO_ANSWER))


def differs(first: Tensor, second: Tensor) -> Tensor:
    """Return where two answers to the same rows, (n, classes), differ beyond rounding, (n,)."""
    if not len(first):
        return torch.zeros(0, dtype=torch.bool, device=first.device)
    gap = (first.double() - second.double()).abs().amax(dim=1)
    both_broken = ~torch.isfinite(first).all(dim=1) & ~torch.isfinite(second).all(dim=1)
    spread = first.double().std(dim=1, correction=0).clamp(min=1e-30)
    return ~(gap <= ROUNDING * spread) & ~both_broken


def confidence(logits: Tensor) -> Tensor:
    """Return the top softmax probability at T = 1, (n,) float64."""
    return logits.double().softmax(dim=1).amax(dim=1)


def lead(logits: Tensor, label: Tensor) -> Tensor:
    """Return z_label − max over j ≠ label of z_j, (n,): positive where ``label`` wins strictly."""
    chosen = logits.gather(1, label[:, None]).squeeze(1)
    others = logits.scatter(1, label[:, None], -math.inf)
    return chosen - others.amax(dim=1)


@dataclass(frozen=True)
class Distances:
    """How far adversarials lie from their sources, (n,) each; NaN counts as infinitely far."""

    l0_features: Tensor
    l0_pixels: Tensor
    l2: Tensor
    linf: Tensor
    finite: Tensor
    in_box: Tensor

    def within(self, threat: ThreatModel, shape: tuple[int, ...]) -> Tensor:
        """Return whether each row keeps to the budget of ``threat``, (n,) bool.

        Without a budget, and so for inputs without a source, whether it is finite.
        """
        if threat.budget is None:
            return self.finite
        pixels = math.prod(shape[1:]) if len(shape) == 3 else math.prod(shape)
        spent = {
            ("l0", "features"): self.l0_features / math.prod(shape),
            ("l0", "pixels"): self.l0_pixels / pixels,
            ("l2", "input"): self.l2,
            ("linf", "input"): self.linf,
        }[threat.norm, threat.unit]
        return self.finite & (spent <= threat.budget + slack(threat))


def distances(x: Tensor, x_adv: Tensor) -> Distances:
    """Measure ``x_adv`` against ``x``, both (n, *shape), in float64.

    A pixel of an image (channels, height, width) counts as changed when any of its channels is.
    ``BATCH`` rows at a time, or fewer: in float64 all of them together take six times their memory.
    """
    size = rows_at_once(x.shape[1:], BATCH, 8)
    parts = [
        _distances(*rows)
        for rows in zip(torch.split(x, size), torch.split(x_adv, size), strict=True)
    ]
    columns = {
        column.name: torch.cat([getattr(part, column.name) for part in parts])
        for column in fields(Distances)
    }
    return Distances(**columns)


def _distances(x: Tensor, x_adv: Tensor) -> Distances:
    change = (x_adv.double() - x.double()).abs().flatten(1)
    finite = torch.isfinite(x_adv.flatten(1)).all(dim=1)
    change = change.nan_to_num(nan=math.inf)
    changed = change > TOLERANCE
    pixels = (changed.view(x.shape).any(dim=1) if x.dim() == 4 else changed).flatten(1)
    low, high = x_adv.flatten(1).amin(dim=1), x_adv.flatten(1).amax(dim=1)
    return Distances(
        l0_features=changed.sum(dim=1),
        l0_pixels=pixels.sum(dim=1),
        l2=change.square().sum(dim=1).sqrt(),
        linf=change.amax(dim=1),
        finite=finite,
        in_box=finite & (low >= -TOLERANCE) & (high <= 1 + TOLERANCE),
    )


def hashes(x: Tensor) -> list[str]:
    """Return the SHA-256 (16 hexadecimal digits) of the bytes of each row of ``x``."""
    rows = x.detach().cpu().contiguous().numpy()
    return [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in rows]
