"""Networks that no harness likes: each must end in a reasoned outcome, and in no better verdict.

The undefended network in one way hard to ask. Two or three classes and flat inputs need no
defense: ``breast_cancer`` and an ``.npz`` file hold them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

import bench
from defenses.canaries import AlterGradient, Canary

Way = Literal[
    "no_single_rows", "no_empty_batch", "even_batches_only", "no_gradient_for_some", "slow",
    "another_device", "float64_answers", "half_answers", "no_float64", "in_place", "view_by_size",
    "extra_class", "one_class_fewer", "integers", "raises_sometimes", "raises_on_backward",
    "no_grad_inside", "inference_mode", "prints", "exits", "nan_once", "changes_input",
    "list_answer", "trains_itself", "big_batches_only",
]  # fmt: skip


@bench.defense("awkward")
@dataclass(frozen=True)
class Awkward(Canary):
    """The undefended network, awkward in one ``way``.

    ``no_single_rows``, ``even_batches_only``, ``big_batches_only`` (8 rows), ``no_empty_batch``:
    raises for other batches; ``view_by_size``: ``view(x.size(0), -1)``, which no empty batch
    survives; ``no_gradient_for_some``: rows of a dark first half have no graph; ``slow``:
    ``seconds`` a call; ``another_device``: answers on ``meta``; ``in_place``: clamps its input in
    place; ``changes_input``: writes into it; ``nan_once``: the first call answers NaN;
    ``trains_itself``: puts itself in training mode.
    """

    way: Way = "no_single_rows"
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.way not in get_args(Way):
            raise ValueError(f"way must be one of {get_args(Way)}, got {self.way!r}")

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Make it awkward."""
        return _Awkward(network, self.way, self.seconds)


class _Awkward(nn.Module):
    def __init__(self, network: nn.Module, way: Way, seconds: float) -> None:
        super().__init__()
        self.network, self.way, self.seconds, self.calls = network, way, seconds, 0
        self.back = AlterGradient(self._refuse)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self._before(x)
        if self.way in ("no_grad_inside", "inference_mode"):
            with torch.no_grad() if self.way == "no_grad_inside" else torch.inference_mode():
                inner: Tensor = self.network(x)
            return inner
        logits: Tensor = self.network(x)
        return self._after(x, logits)

    def _before(self, x: Tensor) -> Tensor:
        wrong = {
            "no_single_rows": len(x) == 1,
            "no_empty_batch": len(x) == 0,
            "even_batches_only": len(x) % 2 == 1,
            "big_batches_only": len(x) < 8,
            "raises_sometimes": self.calls % 50 == 0,
            "no_float64": x.dtype == torch.float64,
        }
        if wrong.get(self.way):
            raise ValueError(f"awkward: no answer to {len(x)} rows of {x.dtype}")
        if self.way == "view_by_size":
            x = x.view(x.size(0), -1).view(x.shape)
        elif self.way == "slow":
            time.sleep(self.seconds)
        elif self.way == "prints":
            print("awkward")  # noqa: T201 (what it is about)
        elif self.way == "exits" and self.calls == 20:
            raise SystemExit(3)
        elif self.way == "in_place":
            x.clamp_(0, 1)
        elif self.way == "changes_input":
            with torch.no_grad():
                x.zero_()
        elif self.way == "trains_itself":
            self.train()
        elif self.way == "raises_on_backward":
            x = self.back(x)
        return x

    def _after(self, x: Tensor, logits: Tensor) -> Tensor:
        if self.way == "no_gradient_for_some":
            dark = x.detach().flatten(1)[:, : x[0].numel() // 2].mean(dim=1) < 0.3 if len(x) else x
            if bool(dark.all()):
                return logits.detach()
            return torch.where(dark[:, None], logits.detach(), logits)
        if self.way == "nan_once" and self.calls == 1:
            return logits * torch.nan
        if self.way == "extra_class":
            return torch.cat([logits, logits[:, :1] - 1], dim=1)
        answers = {
            "another_device": lambda: logits.to("meta"),
            "float64_answers": logits.double,
            "half_answers": logits.half,
            "one_class_fewer": lambda: logits[:, :-1],
            "integers": logits.long,
            "list_answer": logits.tolist,
        }
        answer: Any = answers.get(self.way, lambda: logits)()
        return answer  # type: ignore[no-any-return]

    def _refuse(self, gradient: Tensor) -> Tensor:
        raise RuntimeError(f"awkward: no way back for {len(gradient)} rows")
