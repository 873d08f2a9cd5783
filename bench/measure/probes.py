"""What is measured on a fitted model without an attack: one row an image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor, nn

from bench.base.types import rows_at_once
from bench.measure.logits import columns as logit_columns
from bench.measure.logits import measures
from bench.measure.query import BATCH, answer, ask, differs, predict
from bench.measure.recast import View
from bench.plugins.data import Dataset, Split

CHUNK = 256
"""Images a gradient, small ones: fixed, so that every probe sums in the same order."""

TRAINING = 10_000
"""Images of the training split that are looked at: enough for its accuracy to 0.2 points."""

JACOBIANS = 100
"""Images whose whole Jacobian is taken: one backward pass a class each."""

GRADIENTS = (
    "sensitivity", "float32_zero", "jacobian", "cross_entropy_zero", "gradient_cosine",
    "answer_differs",
)  # fmt: skip
"""Columns that are measured on some of the test images; NaN on the others."""


@dataclass(frozen=True)
class Samples:
    """Which test images the gradients are measured on: the first ones in the order of the sources.

    ``gradients``: at most how many (None: all); ``sources``: how many of them are attacked too.
    """

    gradients: int | None
    sources: int | None
    seed: int


@dataclass(frozen=True)
class Probe:
    """What a probe found: ``rows``, one a test image, then one a training image.

    ``errors``: what could not be measured (``gradients``, ``float64``), and why.
    """

    rows: pd.DataFrame
    errors: dict[str, str] = field(default_factory=dict)


def probe(model: nn.Module, data: Dataset, samples: Samples) -> Probe:
    """Measure ``model`` on the test split and the first 10,000 training images at T = 1.

    Every row has ``prediction``, ``confidence``, ``entropy`` (nats), ``max_logit``, ``logit_gap``
    (max minus runner-up; both: Seguin et al. 2021, arXiv 2108.12001), ``mean_abs_logit``,
    ``finite``, ``sums_to_one``: whether the output looks like probabilities, and the logits
    themselves.

    On the images of ``samples``: ``sensitivity``, the base-10 logarithm of the mean absolute input
    gradient of the predicted probability (Papernot et al. 2016, arXiv 1511.04508, section V-C);
    ``float32_zero``, whether that gradient is exactly zero when computed in float32; ``jacobian``,
    the base-10 logarithm of the Frobenius norm of the whole Jacobian (the first 100);
    ``answer_differs``, whether a second query, in another order, gives other logits. On the sources
    ``cross_entropy_zero``, whether the float32 gradient of the loss is exactly zero, and
    ``gradient_cosine``, its cosine with the float64 gradient of the log-odds (0 where it is zero).
    """
    classes = data.info.classes
    test = describe(model, data.test, classes)
    train = describe(model, training_sample(data), classes, "train")
    for name in GRADIENTS:
        test[name] = math.nan
        train[name] = math.nan
    ids = data.sources(None, samples.seed)[: samples.gradients]
    errors: dict[str, str] = {}
    for name, values in _gradients(model, data.test.take(ids), samples, classes, errors).items():
        test.loc[ids[: len(values)].numpy(), name] = values.double().cpu().numpy()
    return Probe(pd.concat([test, train], ignore_index=True), errors)


def training_sample(data: Dataset) -> Split:
    """Return the training images that a probe looks at."""
    return data.train.take(slice(None, TRAINING))


def describe(model: nn.Module, split: Split, classes: int, name: str = "test") -> pd.DataFrame:
    """Return what a forward pass tells of every image of ``split``, which is called ``name``."""
    logits = torch.cat([predict(model, part.x, classes) for part in split.parts(BATCH)])
    exact = logits.double()
    sums = (exact.sum(dim=1) - 1).abs() < 1e-4
    columns = {
        "sample_id": torch.arange(len(split)),
        "label": split.y,
        "prediction": answer(logits),
        **measures(logits),
        "mean_abs_logit": exact.abs().mean(dim=1),
        "finite": torch.isfinite(logits).all(dim=1),
        "sums_to_one": sums & (exact >= 0).all(dim=1),
        **logit_columns(logits),
    }
    frame = pd.DataFrame({key: column.cpu().numpy() for key, column in columns.items()})
    frame.insert(0, "split", name)
    return frame


def _gradients(
    model: nn.Module, split: Split, samples: Samples, classes: int, errors: dict[str, str]
) -> dict[str, Tensor]:
    """Return the columns of ``GRADIENTS`` for the first rows of ``split``, each as many as known.

    A model whose backward pass raises has no gradients: the reason is put into ``errors``.
    """
    sources = split.take(slice(None, samples.sources))
    # Asked again in another order, in other batches: an answer is a function of its row.
    again = ask(model, split.x, classes, samples.seed)
    columns = {"answer_differs": differs(predict(model, split.x, classes), again)}
    try:
        found = _chunked(lambda m, x, _: sensitivity(m, x), model, split)
        columns["sensitivity"], columns["float32_zero"] = found[:, 0], found[:, 1]
        few = split.take(slice(None, JACOBIANS))
        columns["jacobian"] = _chunked(lambda m, x, _: jacobian(m, x), model, few)
        loss = _chunked(_cross_entropy, model, sources)
        columns["cross_entropy_zero"] = ~loss.any(dim=1)
    except torch.OutOfMemoryError:
        raise  # the device's, not the model's: it is asked again with fewer rows
    except Exception as error:  # noqa: BLE001 (other people's code: the reason is kept and shown)
        errors["gradients"] = f"{type(error).__name__}: {error}"
        return columns
    try:
        exact = _chunked(_log_odds, View(model, torch.float64), sources)
    except torch.OutOfMemoryError:
        raise  # the device's, not the model's: it is asked again with fewer rows
    except Exception as error:  # noqa: BLE001 (a model may hold constants of one dtype)
        # What casts inside is held against the same gradient in its own precision.
        errors["float64"] = f"{type(error).__name__}: {error}"
        exact = _chunked(
            lambda m, x, y: _log_odds(lambda leaf: m(leaf.float()), x, y), model, sources
        )
    # Descending the loss is climbing the log-odds. Scaled first: a norm of 1e-30 squares to zero.
    loss, exact = -loss.double(), exact.double()
    loss, exact = (g / g.abs().amax(dim=1, keepdim=True).clamp(min=1e-300) for g in (loss, exact))
    columns["gradient_cosine"] = torch.nn.functional.cosine_similarity(loss, exact, eps=1e-300)
    return columns


def _chunked(
    measure: Callable[[nn.Module, Tensor, Tensor], Tensor], model: nn.Module, split: Split
) -> Tensor:
    rows = rows_at_once(split.stored.shape[1:], CHUNK, 8 if isinstance(model, View) else 4)
    return torch.cat([measure(model, part.x, part.y) for part in split.parts(rows)])


def sensitivity(model: nn.Module, x: Tensor) -> Tensor:
    """Return (n, 2) float64: log10 of mean |dF_p/dx| for the predicted class p, float32 zero.

    In the log domain, so that it never underflows: dF_p = F_p (1 - F_p) dlog-odds_p, and both
    factors are kept as logarithms. (The same as d log F_p = -sum over j != p of F_j d(z_p - z_j),
    with the sum taken relative to its largest term.) The second column is 1 where the same
    gradient, computed in float32 as an attack would, is zero everywhere.
    """
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
    exact = logits.detach().double()
    top = exact.argmax(dim=1)
    log_probs = exact.log_softmax(dim=1)
    own = log_probs.gather(1, top[:, None]).squeeze(1)
    others = log_probs.scatter(1, top[:, None], -torch.inf)
    weights = -others.softmax(dim=1).scatter(1, top[:, None], -1.0)
    slope = pull(logits, leaf, weights.to(logits.dtype), keep=True).double().abs().mean(dim=1)
    scale = own + others.logsumexp(dim=1)
    probs = logits.detach().softmax(dim=1)
    chosen = torch.zeros_like(probs).scatter_(1, top[:, None], 1)
    naive = pull(logits, leaf, probs.gather(1, top[:, None]) * (chosen - probs))
    return torch.stack([slope.log10() + scale / math.log(10), ~naive.any(dim=1)], dim=1)


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """Return (n,) float64: log10 of the Frobenius norm of dF/dx, taken in the log domain.

    dF_j = F_j (1 - F_j) (dz_j - sum over l != j of F_l / (1 - F_j) dz_l).
    """
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
    classes = logits.shape[1]
    of_logits = torch.stack(
        [
            pull(logits, leaf, unit.expand_as(logits), keep=label < classes - 1)
            for label, unit in enumerate(torch.eye(classes, dtype=logits.dtype, device=x.device))
        ],
        dim=1,
    ).double()
    log_probs = logits.detach().double().log_softmax(dim=1)
    rows = []
    for label in range(classes):
        column = torch.full_like(log_probs[:, :1], label, dtype=torch.int64)
        others = log_probs.scatter(1, column, -torch.inf)
        weights = -others.softmax(dim=1).scatter(1, column, -1.0)
        norm = torch.einsum("nc,ncd->nd", weights, of_logits).norm(dim=1)
        rows.append(norm.log() + log_probs[:, label] + others.logsumexp(dim=1))
    squared = torch.logsumexp(2 * torch.stack(rows, dim=1), dim=1)
    return squared / (2 * math.log(10))


def _cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the float32 gradient of the cross-entropy of the deployed output, (n, d)."""
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
    label = torch.zeros_like(logits).scatter_(1, y[:, None], 1)
    return pull(logits, leaf, logits.detach().softmax(dim=1) - label)


def _log_odds(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the label's log-odds, (n, d), in the model's own precision."""
    leaf = x.detach().double().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
    others = logits.detach().scatter(1, y[:, None], -torch.inf)
    return pull(logits, leaf, -others.softmax(dim=1).scatter(1, y[:, None], -1.0))


def pull(logits: Tensor, leaf: Tensor, weights: Tensor, *, keep: bool = False) -> Tensor:
    """Return the gradient of sum(weights · logits) with respect to ``leaf``, (n, d).

    Zero where the logits do not depend on the leaf: a detached output has no other gradient.
    """
    if not logits.requires_grad:
        return torch.zeros_like(leaf).flatten(1)
    (gradient,) = torch.autograd.grad(logits, leaf, weights, retain_graph=keep, allow_unused=True)
    return torch.zeros_like(leaf).flatten(1) if gradient is None else gradient.flatten(1)
