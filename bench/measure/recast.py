"""The same weights seen otherwise: at another precision, with the logits divided by a number."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "float64"]


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless ``temperature`` is positive and finite."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive and finite, got {temperature!r}")


def view(
    model: nn.Module, x: Tensor, precision: Precision, temperature: float
) -> tuple[nn.Module, Tensor]:
    """Return the model and the inputs that an attack sees: themselves, where nothing is changed."""
    if precision == "float32" and temperature == 1:
        return model, x
    dtype = getattr(torch, precision)
    return View(model, dtype, temperature), x.to(dtype)


class View(nn.Module):
    """``model`` computed in ``dtype``, its logits divided by ``temperature``.

    Inputs of any floating dtype are cast first; the logits come back in ``dtype``. The weights
    stay the model's own, so its hooks fire and its gradients are the view's.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype = torch.float32, temperature: float = 1.0
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.model = model
        self.dtype = dtype
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, classes) of ``x`` (batch, *shape)."""
        # One entry a module and name: a module may stand in several places, a tensor in several
        # modules, and what is put in its place twice would not be taken out again.
        state = {
            f"{prefix}.{name}" if prefix else name: value
            for prefix, module in self.model.named_modules()
            for own in (module.named_parameters, module.named_buffers)
            for name, value in own(recurse=False, remove_duplicate=False)
        }
        made = {
            id(value): value.to(self.dtype) if value.is_floating_point() else value
            for value in state.values()
        }
        cast = {name: made[id(value)] for name, value in state.items()}
        logits: Tensor = torch.func.functional_call(
            self.model, cast, (x.to(self.dtype),), tie_weights=False
        )
        return logits / self.temperature
