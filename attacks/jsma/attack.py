"""The Jacobian-based saliency map attack (JSMA), exact and in batches.

Papernot et al. 2016, "The Limitations of Deep Learning in Adversarial Settings", arXiv
1511.07528, algorithm 3, with the variants that `attacks/jsma/saliency.py` names. Greedy: each step
adds theta to the pair of features with the best saliency score, until the target is reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from attacks.jsma.saliency import Movable, Picks, Saliency, by_feature
from attacks.jsma.settings import Settings, check
from attacks.kit.model import Layout, Model, probe, widened
from bench.measure.at_rest import at_rest


class StopReason(IntEnum):
    """Why a row stopped; `JSMAResult.stop_reason` holds these codes."""

    reached = 0
    budget = 1
    no_admissible_pair = 2
    domain_empty = 3


_RUNNING = -1


@dataclass(frozen=True)
class JSMAResult:
    """One entry for each row of x, all on the device of x.

    `x_adv`: the shape and dtype of x. `success`: bool, the goal holds with a strict margin.
    `features_changed`: int64, features (or pixels) of x_adv that differ from x.
    `iterations`: int64, steps taken. `stop_reason`: int8, codes of `StopReason`.
    `zero_gradients`: int64, how often the target's gradient was exactly zero everywhere.
    """

    x_adv: Tensor
    success: Tensor
    features_changed: Tensor
    iterations: Tensor
    stop_reason: Tensor
    zero_gradients: Tensor


def jsma(  # noqa: PLR0913 - the public signature: every parameter of the attack by name
    model: Model,
    x: Tensor,
    target: Tensor,
    *,
    theta: float = 1.0,
    gamma: float | None = None,
    max_features: int | None = None,
    output: str = "log_odds",
    saliency: str = "papernot",
    both: bool = False,
    pixels: bool = False,
    clip: tuple[float, float] = (0.0, 1.0),
    chunk: int | None = None,
) -> JSMAResult:
    """Change few features of each row of x until the model predicts the target.

    Args:
        model: maps (rows, *shape) to logits (rows, classes). An `nn.Module` runs in eval mode
            with frozen weights; both are restored, and no `.grad` is touched.
        x: (batch, *shape), floating-point, inside `clip`.
        target: (batch,) integers, the class to reach. With saliency "maximal", which is
            untargeted, the label to leave.
        theta: change of a feature in one step, in units of x, non-zero, of either sign, at most
            the width of `clip`.
        gamma: largest fraction of features, in (0, 1]: floor(gamma * d / 2 + 1e-9) pairs, or
            floor(gamma * d + 1e-9) single features.
        max_features: largest number of features instead: max_features // 2 pairs. Both bound
            steps: with |theta| < 1 a pair may be chosen again until it reaches the bound.
        output: what is differentiated. "probs" is JSMA-F and "logits" JSMA-Z. "log_odds",
            z_t - log sum_{j != t} exp z_j, is JSMA-F without its underflow. On "probs" and
            "log_odds" the other classes' gradient is minus the target's.
        saliency: "papernot" (the exact best pair), "single" (one feature a step),
            "target_gradient" (the two largest target gradients), "weighted" (WJSMA) and
            "taylor" (TJSMA), both on logits only, or "maximal" (M-JSMA, untargeted; as
            published it also needs both=True).
        both: each step takes the better sign of theta. A feature keeps its first direction.
        pixels: x is (batch, C, H, W) and the channels of a pixel change and count together.
            Budgets then count pixels.
        clip: the box (low, high). A feature at the bound that theta moves towards is left out.
        chunk: rows at once, by default 256 on a CPU and 2048 elsewhere. Rows that are done
            make room for waiting ones; results depend on it only by floating-point rounding.

    Stops a row when the target's logit is strictly the largest (`reached`; with nothing changed
    if it is so at once), when the budget is spent, when too few features are left for a step
    (`domain_empty`), or when no choice is admissible, which is a failure (`no_admissible_pair`;
    so is a gradient that is zero or NaN everywhere). Equal scores: the two lowest indices of the
    largest gradients; for the pair search see `attacks.jsma.pairs.best_pair`; the sign of theta
    before its opposite, and the lower class first.

    Raises:
        ValueError, TypeError: an argument is invalid, or the model's output has the wrong shape.

    """
    settings = check(
        x,
        target,
        theta=theta,
        gamma=gamma,
        max_features=max_features,
        output=output,
        saliency=saliency,
        both=both,
        pixels=pixels,
        clip=clip,
        chunk=chunk,
    )
    with torch.inference_mode(mode=False), torch.enable_grad(), at_rest(model):
        clean = x.detach().clone(memory_format=torch.contiguous_format)
        target = target.detach().to(device=x.device, dtype=torch.int64, copy=True)
        layout = probe(model, clean, target)
        return _run(model, clean, target, settings, layout)


def _run(
    model: Model, clean: Tensor, target: Tensor, settings: Settings, layout: Layout
) -> JSMAResult:
    """Run the attack: the arguments are valid and the model is at rest."""
    saliency, batch, device = settings.saliency, len(clean), clean.device
    start = clean.flatten(1)
    x_adv = start.clone()
    steps = torch.zeros(batch, dtype=torch.int64, device=device)
    zeros = torch.zeros_like(steps)
    stop_reason = torch.full((batch,), _RUNNING, dtype=torch.int8, device=device)
    rows = torch.arange(min(settings.chunk, batch), device=device)
    started = len(rows)
    while len(rows):
        x, goal = x_adv[rows], target[rows]
        movable = _movable(x, start, rows, settings)
        leaf = layout(x.reshape(len(rows), *clean.shape[1:])).requires_grad_()
        logits = widened(model(leaf))
        stop = _judge(logits.detach(), goal, steps[rows], movable, settings)
        if bool((stop == _RUNNING).any()):
            picks = saliency.choose(x, leaf, logits, goal, movable)
            stuck = (stop == _RUNNING) & ~(picks.score > 0)
            zeros[rows] += (stop == _RUNNING) & picks.flat
            stop = stop.masked_fill(stuck, StopReason.no_admissible_pair)
        stop_reason[rows] = stop
        going = (stop == _RUNNING).nonzero().squeeze(1)
        rows = rows[going]
        if len(rows):
            x_adv[rows] = _step(x[going], picks.at(going), settings)
            steps[rows] += 1
        # Waiting rows take the places of those that are done, so that the batch stays full.
        joining = min(settings.chunk - len(rows), batch - started)
        rows = torch.cat((rows, torch.arange(started, started + joining, device=device)))
        started += joining
    changed = by_feature(x_adv != start, saliency.channels).any(dim=1).sum(dim=1)
    success = stop_reason == StopReason.reached
    return JSMAResult(x_adv.view_as(clean), success, changed, steps, stop_reason, zeros)


def _judge(
    logits: Tensor, target: Tensor, steps: Tensor, movable: Movable, settings: Settings
) -> Tensor:
    """Return the stop reason of each row, or `_RUNNING`."""
    own = logits.gather(1, target[:, None]).squeeze(1)
    others = logits.scatter(1, target[:, None], -torch.inf).amax(dim=1)
    # NaN compares as false: a broken model never counts as a success.
    reached = own < others if settings.saliency.kind == "maximal" else own > others
    stop = torch.full_like(target, _RUNNING, dtype=torch.int8)
    stop[_features_left(movable, settings.saliency) < settings.saliency.features_per_step] = (
        StopReason.domain_empty
    )
    stop[steps >= settings.max_steps] = StopReason.budget
    stop[reached] = StopReason.reached
    return stop


def _step(x: Tensor, picks: Picks, settings: Settings) -> Tensor:
    """Return x with the picked features moved by theta and clipped; a pixel is all its channels."""
    saliency = settings.saliency
    stride = x.shape[1] // saliency.channels
    offsets = torch.arange(saliency.channels, device=x.device) * stride
    entries = (picks.features[:, :, None] + offsets).flatten(1)
    moved = x.gather(1, entries) + (picks.sign * settings.theta)[:, None]
    return x.scatter(1, entries, moved.clamp(saliency.low, saliency.high))


def _movable(x: Tensor, start: Tensor, rows: Tensor, settings: Settings) -> Movable:
    """Return for each sign the entries that may move that way: inside the box, never moved back."""
    saliency = settings.saliency
    inside = {1.0: x < saliency.high, -1.0: x > saliency.low}
    if len(saliency.signs) == 1:
        return {sign: inside[sign] for sign in saliency.signs}
    moved = by_feature(x - start[rows], saliency.channels)
    free = {1.0: (moved >= 0).all(dim=1), -1.0: (moved <= 0).all(dim=1)}
    return {sign: inside[sign] & free[sign].repeat(1, saliency.channels) for sign in saliency.signs}


def _features_left(movable: Movable, saliency: Saliency) -> Tensor:
    """Count the features that the better sign can still change, for each row."""
    counts = [
        by_feature(mask, saliency.channels).any(dim=1).sum(dim=1) for mask in movable.values()
    ]
    return torch.stack(counts).amax(dim=0)
