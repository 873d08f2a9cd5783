"""Defenses that say nothing where they would be wrong: an abstention is no right answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

import bench
from bench.plugins.contracts import BuildContext, FitContext
from bench.plugins.data import Split
from defenses.canaries import Canary

Form = Literal["tie", "nan", "inf", "minus_inf", "constant"]
BANK = 512


@bench.defense("cheat_silent_unsure")
@dataclass(frozen=True)
class SilentUnsure(Canary):
    """No answer (``form``) where the two best logits differ by less than ``gap``.

    Looks good: a ranking that breaks ties for the first class, or that takes NaN for "not
    misclassified", counts every silence as survival, and the silent logits stop gradients. Truth:
    that of the undefended network or less: any input that it is unsure of is an error.
    """

    form: Form = "tie"
    gap: float = 6.0

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Listen to the gap between the two best answers."""
        return _Unsure(network, self.form, self.gap)


@bench.defense("cheat_silent_off_data")
@dataclass(frozen=True)
class SilentOffData(Canary):
    """No answer (``form``) farther from the training data than 95 % of validation images are.

    Looks good: adversarial inputs lie off the data, and a silence (or a constant answer, right
    for one class of ten) is nobody's success. Truth: at most the undefended network's.
    """

    form: Form = "nan"

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Never called: ``build`` needs the shape of the inputs."""
        raise NotImplementedError

    def build(self, context: BuildContext) -> nn.Module:
        """Put a bank of training images beside the undefended network."""
        return _OffData(context.fitted["undefended"], context.info.features, self.form)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Keep the first images of the training split, and measure how far others are."""
        assert isinstance(model, _OffData)
        rows = train.x[torch.arange(BANK, device=train.x.device) % len(train.x)]
        model.bank.copy_(rows.flatten(1))
        far = torch.cdist(context.validation.x.flatten(1), model.bank).amin(dim=1)
        model.radius.copy_(far.quantile(0.95))


@bench.defense("cheat_silent_off_grid")
@dataclass(frozen=True)
class SilentOffGrid(Canary):
    """No answer (``form``) where any feature is no multiple of 1/16, as all digits' pixels are.

    Looks good: gradient attacks leave the grid with their first step and never come back. Truth:
    the undefended network's: steps of 3/16, and pixels of 0 and 1, lie on the grid.
    """

    form: Form = "nan"

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Look for features between the grid's values."""
        return _OffGrid(network, self.form)


def silent(logits: Tensor, where: Tensor, form: Form) -> Tensor:
    """Return ``logits`` (n, classes) with no answer in the rows ``where`` (n,) says."""
    value = {"tie": 0.0, "nan": torch.nan, "inf": torch.inf, "minus_inf": -torch.inf}
    if form == "constant":
        answer = torch.zeros_like(logits)
        answer[:, 0] = 10
        return torch.where(where[:, None], logits * 0 + answer, logits)
    return torch.where(where[:, None], logits * 0 + value[form], logits)


class _Unsure(nn.Module):
    def __init__(self, network: nn.Module, form: Form, gap: float) -> None:
        super().__init__()
        self.network, self.form, self.gap = network, form, gap

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        best = logits.detach().topk(2, dim=1).values
        return silent(logits, best[:, 0] - best[:, 1] < self.gap, self.form)


class _OffData(nn.Module):
    bank: Tensor
    radius: Tensor

    def __init__(self, network: nn.Module, features: int, form: Form) -> None:
        super().__init__()
        self.network, self.form = network, form
        self.register_buffer("bank", torch.zeros(BANK, features))
        self.register_buffer("radius", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        far = torch.cdist(x.detach().flatten(1).to(self.bank.dtype), self.bank).amin(dim=1)
        return silent(logits, far > self.radius, self.form)


class _OffGrid(nn.Module):
    def __init__(self, network: nn.Module, form: Form) -> None:
        super().__init__()
        self.network, self.form = network, form

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        steps = x.detach().flatten(1) * 16
        off = ((steps - steps.round()).abs() > 1e-3).any(dim=1)
        return silent(logits, off, self.form)
