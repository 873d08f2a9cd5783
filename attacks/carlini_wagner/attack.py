"""Carlini and Wagner's attacks as a function: batches in, the nearest adversarials out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attacks.carlini_wagner.l0 import L0Search
from attacks.carlini_wagner.l2 import L2Search
from attacks.carlini_wagner.linf import LinfSearch
from attacks.carlini_wagner.search import Found
from attacks.carlini_wagner.settings import Settings
from attacks.kit.ball import check_inputs, default_chunk
from attacks.kit.ball_attack import ClimbResult
from attacks.kit.model import Model, chunks
from attacks.kit.view import View
from bench.base.types import Norm
from bench.measure.at_rest import at_rest

SEARCHES: Mapping[Norm, type[L2Search | L0Search | LinfSearch]] = {
    "l2": L2Search,
    "l0": L0Search,
    "linf": LinfSearch,
}


@dataclass(frozen=True)
class CarliniWagnerResult(ClimbResult):
    """As ``ClimbResult``, `x_adv` being the nearest adversarial found, or x.

    `success`: the goal holds strictly, and by kappa. `distance`: the norm of the change (under l0
    the number of features or pixels), infinite where nothing was found. `iterations`: passes.
    """

    distance: Tensor


def carlini_wagner(
    model: Model, x: Tensor, y: Tensor, target: Tensor | None = None, **parameters: Any
) -> CarliniWagnerResult:
    """Find an adversarial of each row of x as near as possible, by Adam in tanh space.

    With x' = 1/2 + (1/2 + epsilon) tanh(w), clipped to the box, each row descends
    penalty(x' - x) + c f(x') over w, for one value of c after another:

    - l2: the squared length. Each c starts from x; c grows tenfold until one succeeds, then is
      searched for by bisection.
    - l0: the same, but at the first success the features that did least, by |gradient · change|,
      are fixed at x for good, and it goes on from there; c grows where it fails.
    - linf: the sum over features of max(|change| - tau, 0). At a success within tau, tau becomes
      ``shrink`` times the largest change; c grows where it fails. It ends below 1 / 256. Adam's
      steps are in proportion to tau, where the paper leaves them as they are.

    An attempt ends early where its objective no longer falls. Nothing is drawn.

    Args:
        model: maps (rows, *shape) to logits (rows, classes). An `nn.Module` runs in eval mode
            with frozen weights; both are restored, and no `.grad` is touched.
        x: (batch, *shape), floating-point, in [0, 1].
        y: (batch,) integers, the labels to leave.
        target: (batch,) integers, the classes to reach instead.
        parameters: the fields of `attacks.carlini_wagner.settings.Settings`: norm, loss, kappa,
            steps, searches, learning_rate, initial_const, shrink, pixels, chunk.

    Raises:
        ValueError, TypeError: an argument is invalid, or the model's output has the wrong shape.

    """
    return attack(Settings(**parameters), model, x, y, target)


def attack(
    settings: Settings, model: Model, x: Tensor, y: Tensor, target: Tensor | None
) -> CarliniWagnerResult:
    """Run the attack that ``settings`` describe, as ``carlini_wagner`` does."""
    check_inputs(x, y, target, None)
    if settings.pixels and x.dim() != 4:
        got = tuple(x.shape)
        raise ValueError(f"pixels=True needs x of shape (batch, C, H, W), got {got}")
    with torch.inference_mode(mode=False), torch.enable_grad(), at_rest(model):
        view = View(model, x, y, target)
        found = Found(view.clean)
        every = torch.arange(len(x), device=x.device)
        for rows in chunks(every, settings.chunk or default_chunk(x)):
            SEARCHES[settings.norm].of(settings, view, rows).run(view, found)
    return CarliniWagnerResult(
        found.x_adv.view_as(x), found.success, found.steps, found.zero_gradients, found.distance
    )
