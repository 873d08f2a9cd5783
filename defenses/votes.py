"""What several answers to one input say together."""

from __future__ import annotations

import math

from torch import Tensor


def mean_answer(logits: Tensor) -> Tensor:
    """Return the logarithm of the mean probability of ``logits`` (voters, batch, classes)."""
    found = logits.log_softmax(dim=2)
    return found.logsumexp(dim=0) - math.log(len(logits))
