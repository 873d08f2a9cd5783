"""What is measured on a fitted model without an attack: one row a test image."""

from __future__ import annotations

import pandas as pd
import torch
from torch import nn

from bench.data import Split
from bench.measure import confidence, predict


def probe(model: nn.Module, test: Split, classes: int) -> pd.DataFrame:
    """Return prediction, confidence, max logit and logit gap of every test image at T = 1.

    ``max_logit`` and ``logit_gap`` (max minus runner-up): Seguin et al. 2021, arXiv 2108.12001.
    """
    logits = predict(model, test.x, classes)
    top = logits.double().topk(2, dim=1).values
    columns = {
        "sample_id": torch.arange(len(test)),
        "label": test.y,
        "prediction": logits.argmax(dim=1),
        "confidence": confidence(logits),
        "max_logit": top[:, 0],
        "logit_gap": top[:, 0] - top[:, 1],
        "finite": torch.isfinite(logits).all(dim=1),
    }
    return pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
