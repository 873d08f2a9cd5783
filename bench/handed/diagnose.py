"""Why a trained model is not as good as it should be: likely causes, tried alone and in pairs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from torch import Tensor, nn

from bench.base.types import Document
from bench.plugins.data import Split

ROWS = 200
"""Rows that each cause is tried on: enough for a difference of ten points."""

SURE = 1e-4
"""Below this probability that as many rows turn right by chance, a cause is named: some 30 are
tried, and an honest model must not be blamed."""

FEW = 60
"""Rows that pairs of causes are chosen on: a hundred pairs cost what thirty causes do on ROWS."""

KEPT = 3
"""So many of them are tried on all rows."""

AND = "; and "

LEAST = 0.05
"""By how much accuracy must rise for a cause to be worth naming."""

STATISTICS = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "CIFAR-100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "SVHN": ((0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197)),
    "MNIST": ((0.1307,), (0.3081,)),
    "Fashion-MNIST": ((0.286,), (0.353,)),
}
"""Means and standard deviations that training scripts normalise with, by channel, of [0, 1]."""


@dataclass(frozen=True)
class Suspect:
    """A cause that would explain a low accuracy.

    ``cause``: in words; ``accuracy``: the model's, on the rows tried, once the cause is undone;
    ``before``: the same as things are; ``mend``: what to change.
    """

    cause: str
    accuracy: float
    before: float
    mend: str

    def __str__(self) -> str:
        return f"{self.cause} ({self.before:.0%} → {self.accuracy:.0%}): {self.mend}"


@dataclass(frozen=True)
class _Trial:
    cause: str
    mend: str
    change: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Tried:
    """What a model says once some causes are undone.

    ``x``: the inputs as changed; ``names``: the label of each class that it answers; ``right``: of
    the rows that count, which are right.
    """

    causes: tuple[str, ...]
    mends: tuple[str, ...]
    x: Tensor
    names: Tensor
    right: Tensor

    @property
    def accuracy(self) -> float:
        return float(self.right.double().mean())

    def better_than(self, other: _Tried) -> bool:
        """Whether surely more rows are right: a sign test, row by row, of those that count here."""
        rows = min(len(self.right), len(other.right))
        after, before = self.right[-rows:], other.right[-rows:]
        better, worse = int((after & ~before).sum()), int((before & ~after).sum())
        gain = (better - worse) / rows
        return gain >= LEAST and binomtest(better, better + worse, 0.5, "greater").pvalue <= SURE


def doubt(model: nn.Module, test: Split, expected: float | None = None) -> Document:
    """Return what is odd about a trained model on ``test``: JSON, ``HandedRow`` in bench.base.rows.

    ``expected``: the accuracy that its author states.
    """
    few = test.take(_some(len(test), ROWS).to(test.y.device))
    found = diagnose(model, few.x, few.y)
    return {"expected": expected, "suspects": [asdict(item) for item in found]}


def _some(count: int, rows: int) -> Tensor:
    # Not the first ones: a folder of images comes class by class.
    return torch.from_numpy(np.random.RandomState(0).permutation(count)[:rows].astype(np.int64))


def diagnose(
    model: nn.Module, x: Tensor, y: Tensor, classes: int | None = None, rows: int = ROWS
) -> list[Suspect]:
    """Return the causes under which ``model`` is surely better than it is, the likeliest first.

    ``x``: (n, *shape) float32 in [0, 1] on the model's device, ``y``: (n,) labels; ``rows`` of
    them are asked, always the same. Tried: normalisation missing or done twice, the range of the
    inputs, the order of channels and axes, the statistics of batch normalisation, labels that are
    shifted or in another order; then one cause more on top of the best, and, where something is
    wrong or the model guesses, two at once. An honest
    model has none: each is held against the model as it is, or with the first cause undone, row by
    row (a sign test), and those that explain less than the best are left out.
    """
    chosen = _some(len(x), rows).to(x.device)
    x, y = x[chosen], y[chosen]
    if not len(x):
        return []
    logits = _ask(model, x)
    names = torch.arange(classes or int(logits.shape[1]), device=y.device)
    as_is = _Tried((), (), x, names, logits.argmax(dim=1) == y)
    if 0.5 ** int((~as_is.right).sum()) > SURE:
        return []  # were all of them to turn right, it might be chance
    found = list(_explain(model, y, as_is))
    if found or at_chance(as_is.accuracy, len(names), len(x)):
        bases = [max(found, key=lambda tried: tried.accuracy)] if found else []
        bases += [_undone(model, y, as_is, value) for value in _promising(model, y, as_is)]
        pairs = [pair for base in bases for pair in _explain(model, y, base)]
        found += [pair for pair in pairs if pair.better_than(as_is)]
    likely = sorted(found, key=lambda tried: -tried.accuracy)
    return [
        Suspect(AND.join(tried.causes), tried.accuracy, as_is.accuracy, AND.join(tried.mends))
        for tried in likely
        if tried.accuracy > likely[0].accuracy - LEAST
    ]


def _explain(model: nn.Module, y: Tensor, before: _Tried) -> Iterator[_Tried]:
    """Yield what makes the model surely better than ``before``, one cause more each."""
    answers = _ask(model, before.x).argmax(dim=1)
    tried = [_undone(model, y, before, trial) for trial in _trials(before.x)]
    tried += _training(model, y, before)
    tried += _labels(answers, y, before)
    return (one for one in tried if one.better_than(before))


def _undone(model: nn.Module, y: Tensor, before: _Tried, trial: _Trial) -> _Tried:
    x = trial.change(before.x)
    right = before.names[_ask(model, x).argmax(dim=1)] == y
    return _Tried(
        (*before.causes, trial.cause), (*before.mends, trial.mend), x, before.names, right
    )


def _promising(model: nn.Module, y: Tensor, before: _Tried) -> list[_Trial]:
    """Return wrong values that, together with a second cause, explain the most.

    For each alone may leave a model at chance. Tried on a few rows: there are a hundred pairs.
    """
    few, y = replace(before, x=before.x[:FEW], right=before.right[:FEW]), y[:FEW]
    scores = []
    for value in _values(before.x):
        first = _undone(model, y, few, value)
        seconds = [_undone(model, y, first, place) for place in _places(few.x)]
        seconds += _shifted(_ask(model, first.x).argmax(dim=1), y, first)
        scores.append((max(second.accuracy for second in seconds), value))
    best = sorted(scores, key=lambda score: -score[0])[:KEPT]
    return [value for score, value in best if score > best[0][0] - LEAST]


def _ask(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(rows.clone()) for rows in torch.split(x, 100)])


def _trials(x: Tensor) -> Iterator[_Trial]:
    yield from _values(x)
    yield from _places(x)


def _values(x: Tensor) -> Iterator[_Trial]:
    """Yield what may be wrong with the values of the inputs."""
    for name, (mean, std) in [*STATISTICS.items(), ("[−1, 1]", ((0.5,), (0.5,))), _own(x)]:
        yield from _normalised(name, mean, std, x)
    yield _Trial(
        "the model takes levels of 0 to 255, or the data were divided by 255 twice",
        'give the checkpoint range = "0,255", or the data once divided', lambda x: 255 * x,
    )  # fmt: skip
    yield _Trial(
        "inputs are multiplied by 255 needlessly", "leave out the range", lambda x: x / 255
    )
    yield _Trial("light and dark are exchanged", "give 1 − x", lambda x: 1 - x)


def _own(x: Tensor) -> tuple[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    axes = (0, 2, 3) if x.dim() == 4 else tuple(range(x.dim()))
    mean, std = x.mean(dim=axes).flatten(), x.std(dim=axes).clamp(min=1e-6).flatten()
    rounded = [tuple(round(float(v), 4) for v in values) for values in (mean, std)]
    return "these data", (rounded[0], rounded[1])


def _normalised(
    name: str, mean: Sequence[float], std: Sequence[float], x: Tensor
) -> Iterator[_Trial]:
    channels = x.shape[1] if x.dim() == 4 else 1
    if len(mean) not in (1, channels):
        return
    view = (1, len(mean), 1, 1) if x.dim() == 4 else (1,) * x.dim()
    middle = torch.tensor(mean, device=x.device).view(view)
    spread = torch.tensor(std, device=x.device).view(view)
    words = [",".join(f"{v:g}" for v in values) for values in (mean, std)]
    said = 'range = "-1,1"' if name == "[−1, 1]" else f'mean = "{words[0]}", std = "{words[1]}"'
    what = "the range [−1, 1] is" if name == "[−1, 1]" else f"normalisation by {name} is"
    yield _Trial(f"{what} missing", f"give the checkpoint {said}", lambda x: (x - middle) / spread)
    yield _Trial(
        f"{what} done twice", f"take it away once: {said} stands beside one inside the model",
        lambda x: x * spread + middle,
    )  # fmt: skip


def _places(x: Tensor) -> Iterator[_Trial]:
    """Yield what may be wrong with the places of the inputs' values."""
    if x.dim() != 4:
        return
    if x.shape[1] == 3:
        yield _Trial("the channels are BGR", 'give the checkpoint order = "bgr"', _flipped(1))
    if x.shape[2] == x.shape[3]:
        yield _Trial("rows and columns are exchanged", "give x.transpose(2, 3)", _transposed)
    yield _Trial("the images are upside down", "give x.flip(2)", _flipped(2))
    yield _Trial("the images are mirrored", "give x.flip(3)", _flipped(3))
    if x.shape[1] > 1:
        yield _Trial(
            "the images were reshaped from channels last to channels first",
            "give x.transpose(0, 3, 1, 2) of the array with channels last",
            lambda x: x.reshape(len(x), *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2),
        )


def _flipped(axis: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.flip(axis)


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(2, 3)


def _training(model: nn.Module, y: Tensor, before: _Tried) -> Iterator[_Tried]:
    """Yield what the statistics of a batch give in place of those that are stored."""
    normalising = (nn.modules.batchnorm._BatchNorm, nn.InstanceNorm2d)  # noqa: SLF001 (its base)
    if not any(isinstance(module, normalising) for module in model.modules()):
        return
    try:
        other = copy.deepcopy(model)
    except Exception:  # noqa: BLE001 (a module may hold what cannot be copied)
        return
    for module in other.modules():
        if isinstance(module, normalising):
            module.training = True
    yield _undone(
        other, y, before, _Trial(
            "the stored statistics of batch normalisation are not those of training",
            "save the buffers running_mean and running_var with the weights, after training",
            lambda x: x,
        ),
    )  # fmt: skip


def _labels(answers: Tensor, y: Tensor, before: _Tried) -> Iterator[_Tried]:
    yield from _shifted(answers, y, before)
    # Which class is which, learnt on one half of the rows and tried on the other.
    half, classes = len(y) // 2, len(before.names)
    if half < 5 * classes:
        return
    counts = np.zeros((classes, classes))
    np.add.at(counts, (answers[:half].cpu().numpy(), y[:half].cpu().numpy()), 1)
    order = torch.from_numpy(linear_sum_assignment(-counts)[1]).to(y.device)
    yield _renamed(
        "the classes are in another order than the model's",
        "sort the labels as the training data had them: the model's class k is label "
        f"{', '.join(map(str, order.tolist()[:10]))}{' …' if classes > 10 else ''}",
        order, answers[half:], y[half:], before,
    )  # fmt: skip


def _shifted(answers: Tensor, y: Tensor, before: _Tried) -> Iterator[_Tried]:
    for shift, how in ((1, "too high"), (-1, "too low")):
        yield _renamed(
            f"the labels are one {how}", f"give y {'−' if shift > 0 else '+'} 1",
            (before.names + shift) % len(before.names), answers, y, before,
        )  # fmt: skip


def _renamed(
    cause: str, mend: str, names: Tensor, answers: Tensor, y: Tensor, before: _Tried
) -> _Tried:
    causes, mends = (*before.causes, cause), (*before.mends, mend)
    return _Tried(causes, mends, before.x, names, names[answers] == y)


def at_chance(accuracy: float, classes: int, rows: int) -> bool:
    """Whether so many ``rows`` cannot tell an accuracy from guessing among ``classes``."""
    chance = 1 / classes
    return accuracy <= chance + 3 * math.sqrt(chance * (1 - chance) / max(1, rows))
