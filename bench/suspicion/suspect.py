"""The harness suspects a model: is the gradient that of the answers, an answer that of its row.

Asked of one model, once, on a few of the sources and on points that an attack passes through.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.measure.query import NO_ANSWER, answer, differs, predict
from bench.suspicion.average import Average
from bench.suspicion.consistency import consistency
from bench.suspicion.difference import SHARES, agreement, base_points, finding
from bench.suspicion.routes import around, routed, wanted

SOURCES = 40
"""Sources that are looked at: enough for a median, and for one row in ten."""

WORST = ("foreign", "shattered", "partial", "broken", "unknown", "agrees")
"""What ``difference.Finding`` may say, the gravest first."""


@dataclass(frozen=True)
class Suspicion:
    """What was found of one model; shares are of the rows asked.

    ``gradient``: the gravest finding over the base points (``difference.Finding``), ``where`` it
    was found, at which ``step`` and with which ``value``. ``stochastic``, ``stateful``,
    ``batch_dependent``: rows whose answer is no function of the row. ``no_answer``: rows at which
    no class wins, of sources and of points within the budget. ``surrogate``: how often what is
    attacked instead of the model answers as it does, None without one; ``averages``: whether it
    answers twice the same where the model does not. ``routed``: how many of one kind use other
    weights than most (``routes``), None where none has a gradient. ``shapes``: of the weights
    that the answers depend on, ascending. ``errors``: what could not be measured, and why.
    """

    gradient: str
    where: str | None
    step: float | None
    value: float | None
    stochastic: float
    stateful: float
    batch_dependent: float
    no_answer: float
    surrogate: float | None
    averages: bool | None
    routed: float | None
    shapes: list[list[int]]
    errors: dict[str, str]

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def suspect(
    anew: Callable[[], nn.Module],
    attacked: Callable[[nn.Module], nn.Module],
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    seed: int = 0,
) -> Suspicion:
    """Look at a model on the first sources ``x`` (n, *shape), labels ``y`` (n,).

    ``anew`` builds it from its weights; ``attacked`` returns what gradient attacks differentiate of
    it: itself, or a surrogate. ``eps``: the scale, in input units, at which it will be attacked.
    """
    x, y = x[:SOURCES], y[:SOURCES]
    errors: dict[str, str] = {}
    model = anew()
    shares = _answers(model, anew, x, seed, errors)
    subject = attacked(model)
    gravest: tuple[str, float | None, float] = ("unknown", None, math.nan)
    where: str | None = None
    points: dict[str, Tensor] = {"sources": x}
    try:
        points = base_points(subject, x, y, eps, seed=seed)
        gravest, where = _gradient(subject, points, y, eps, seed)
    except torch.OutOfMemoryError:
        raise  # the device's, not the model's: it is asked again with fewer rows
    except Exception as error:  # noqa: BLE001 (other people's code: the reason is kept and shown)
        errors["gradient-mismatch"] = f"{type(error).__name__}: {error}"
    asked = torch.cat(list(points.values())) if len(x) else x
    classes = int(predict_any(model, x).shape[1]) if len(x) else 0
    answers = answer(predict(model, asked, classes)) if len(x) else y
    surrogate, averages = None, None
    if subject is not model and len(x):
        surrogate, averages = _surrogate(model, subject, asked, classes)
    ways = None
    try:
        steady = shares["stochastic"] == 0
        ways = routed(model, around(x, eps, seed), seed, steady=steady)
    except torch.OutOfMemoryError:
        raise  # the device's, not the model's: it is asked again with fewer rows
    except Exception as error:  # noqa: BLE001 (other people's code: the reason is kept and shown)
        errors["routed"] = f"{type(error).__name__}: {error}"
    kind, step, value = gravest
    return Suspicion(
        gradient=kind,
        where=where,
        step=step,
        value=value if math.isfinite(value) else None,
        **shares,
        no_answer=float((answers == NO_ANSWER).double().mean()) if len(x) else 0.0,
        surrogate=surrogate,
        averages=averages,
        routed=ways,
        shapes=_shapes(model, x),
        errors=errors,
    )


def predict_any(model: nn.Module, x: Tensor) -> Tensor:
    """Return the logits of the first row of ``x``, whatever their number."""
    with torch.no_grad():
        logits: Tensor = model(x[:1])
    return logits


def _gradient(
    model: nn.Module, points: dict[str, Tensor], y: Tensor, eps: float, seed: int
) -> tuple[tuple[str, float | None, float], str | None]:
    steps = [share * eps for share in SHARES]
    found = {
        name: finding(agreement(model, point, y, steps, seed=seed), single=name != "iterates")
        for name, point in points.items()
    }
    where = min(found, key=lambda name: WORST.index(found[name].kind))
    gravest = found[where]
    return (gravest.kind, gravest.step, gravest.value), where


def _answers(
    model: nn.Module, anew: Callable[[], nn.Module], x: Tensor, seed: int, errors: dict[str, str]
) -> dict[str, float]:
    names = {"stochastic": "stochastic", "stateful": "stateful", "batch-dependent": ""}
    try:
        found = consistency(model, x, anew, seed=seed)
    except torch.OutOfMemoryError:
        raise  # the device's, not the model's: it is asked again with fewer rows
    except Exception as error:  # noqa: BLE001 (a model may refuse to be asked in these ways)
        errors["answers"] = f"{type(error).__name__}: {error}"
        return {"stochastic": 0.0, "stateful": 0.0, "batch_dependent": 0.0}
    if refused := sorted(set(found.refused)):
        errors["answers"] = "; ".join(f"{way}: {found.refused[way]}" for way in refused)
    return {
        (names[cause] or "batch_dependent"): float(found.rows(cause).double().mean())
        for cause in ("stochastic", "stateful", "batch-dependent")
    }


def _surrogate(model: nn.Module, subject: nn.Module, x: Tensor, classes: int) -> tuple[float, bool]:
    """Return how often both answer alike, and whether the surrogate is steadier than the model."""
    first, second = (predict(subject, x, classes) for _ in range(2))
    usual = answer(predict(Average(model), x, classes))
    alike = float((answer(first) == usual).double().mean())
    own = differs(*(predict(model, x, classes) for _ in range(2)))
    moved = (answer(first) != answer(second)).double().mean()
    return alike, bool(not own.any() or moved <= 0.1)


def _shapes(model: nn.Module, x: Tensor) -> list[list[int]]:
    """Return the shapes of the weights that an answer has a gradient for, or of all, ascending."""
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    try:
        with wanted(weights), torch.enable_grad():
            logits = model(x[:1])
            if not logits.requires_grad:
                return sorted(list(weight.shape) for weight in weights)
            found = torch.autograd.grad(logits.float().sum(), weights, allow_unused=True)
    except RuntimeError:
        return []
    used = [list(w.shape) for w, grad in zip(weights, found, strict=True) if grad is not None]
    return sorted(used)
