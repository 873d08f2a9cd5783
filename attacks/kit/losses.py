"""What an attack differentiates (``output``): one loss a row, larger where the goal is nearer.

Each takes logits (rows, classes), the labels (rows,) and the targets (rows,) or None, and returns
(rows,). Untargeted it grows as the label loses, targeted as the target wins.

| ``output`` | untargeted, label y | targeted, target t |
|---|---|---|
| ``deployed`` | cross-entropy of softmax(z) with y | minus the cross-entropy with t |
| ``log_odds`` | log sum over j != y of exp z_j, minus z_y | z_t minus log sum over j != t |
| ``scaled_log_odds`` | slope: ``log_odds`` of z / spread of z; value: ``margin`` | the same |
| ``margin`` | max over j != y of z_j, minus z_y | z_t minus max over j != t |
| ``dlr`` | ``margin`` / (z_1 - z_3) | (z_t - z_y) / (z_1 - (z_3 + z_4) / 2) |

``deployed`` is Madry et al. 2018, arXiv 1706.06083; its gradient is lost once a probability rounds
to 0 or 1, where ``log_odds`` loses nothing. ``scaled_log_odds`` divides
a row's logits by their standard deviation over the classes, held constant, so that no gradient
depends on the scale of the logits, which a model may choose at will. ``margin`` is f_6 of Carlini
and Wagner 2017, arXiv 1608.04644, on logits. ``dlr`` is Croce and Hein 2020, arXiv 2003.01690,
equations 6 and 7, with z_1 >= z_2 >= ... the sorted logits: like ``margin``, but blind to their
scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

Output = Literal["deployed", "log_odds", "scaled_log_odds", "dlr", "margin"]
Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]

TINY = 1e-12
"""Added to DLR's denominator, which is 0 where the sorted logits tie."""


def behind(logits: Tensor, label: Tensor) -> Tensor:
    """Return max over j != label of z_j, minus z_label: negative where ``label`` wins strictly."""
    return _others(logits, label).amax(1) - _own(logits, label)


def reached(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """Return where the goal holds with a strict margin, (rows,) bool; NaN never does."""
    return behind(logits, y) > 0 if target is None else behind(logits, target) < 0


def unanswered(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """Return where the answer is no error by ``reached``, but none at all, (rows,) bool.

    A logit that is NaN or infinite: untargeted, nothing more is to be won. A target is not
    reached by it.
    """
    if target is not None:
        return torch.zeros_like(y, dtype=torch.bool)
    return ~logits.isfinite().all(1) & ~reached(logits, y, None)


def unsure(logits: Tensor, below: float) -> Tensor:
    """Return where no class has a probability of ``below`` or more, (rows,) bool."""
    return logits.softmax(1).amax(1) < below


def log_odds_against(logits: Tensor, label: Tensor) -> Tensor:
    """Return log sum over j != label of exp z_j, minus z_label: minus the log-odds of ``label``.

    Its gradient is -1 for the label and a softmax over the others. Where cross-entropy multiplies
    it by 1 - F_y, which is 0 in float32 once F_y rounds to 1, nothing cancels here.
    """
    return _others(logits, label).logsumexp(1) - _own(logits, label)


def _scaled_log_odds_against(logits: Tensor, label: Tensor) -> Tensor:
    spread = logits.detach().std(dim=1, correction=0, keepdim=True)
    scaled = log_odds_against(logits / torch.where(spread > 0, spread, 1), label)
    # Its value cannot rank points (of two classes it is a sign): the margin does, at any scale.
    return behind(logits, label).detach() + (scaled - scaled.detach())


def _deployed(logits: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(logits, label, reduction="none")


def _either(against: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """Return the loss that climbs ``against`` a label, and down it towards a target."""

    def loss(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        return against(logits, y) if target is None else -against(logits, target)

    return loss


def _dlr(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    order = logits.sort(dim=1, descending=True).values
    if target is None:
        return behind(logits, y) / (order[:, 0] - order[:, 2] + TINY)
    span = order[:, 0] - (order[:, 2] + order[:, 3]) / 2
    return (_own(logits, target) - _own(logits, y)) / (span + TINY)


LOSSES: Mapping[str, Loss] = {
    "deployed": _either(_deployed),
    "log_odds": _either(log_odds_against),
    "scaled_log_odds": _either(_scaled_log_odds_against),
    "dlr": _dlr,
    "margin": _either(behind),
}


def check_classes(output: str, classes: int, *, targeted: bool) -> None:
    """Raise ValueError where ``output`` is not defined on so few ``classes``."""
    least = _least_classes(output, targeted=targeted)
    if classes < least:
        goal = "a targeted" if targeted else "an untargeted"
        raise ValueError(
            f"output 'dlr' compares the {least} largest logits in {goal} attack, and the model has "
            f"{classes}: take 'margin'"
        )


def defined(output: Output, classes: int, *, targeted: bool) -> Output:
    """Return ``output``, or "margin" in place of a DLR that so few ``classes`` do not define."""
    return output if classes >= _least_classes(output, targeted=targeted) else "margin"


def _least_classes(output: str, *, targeted: bool) -> int:
    return (4 if targeted else 3) if output == "dlr" else 2


def _own(logits: Tensor, label: Tensor) -> Tensor:
    return logits.gather(1, label[:, None]).squeeze(1)


def _others(logits: Tensor, label: Tensor) -> Tensor:
    return logits.scatter(1, label[:, None], -torch.inf)
