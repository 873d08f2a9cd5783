"""Honest unusual networks: none hides anything, and none may be called ``masked``.

Each is ``honest`` with one ``kind``: of images of at least 6 × 6 (``linear_svm``, ``rbf`` and
``attention`` too).
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

import bench
from bench.plugins.contracts import BuildContext, Defense, FitContext
from bench.plugins.data import Split

Kind = Literal[
    "batch_norm", "group_norm", "attention", "sigmoid", "tanh", "gelu", "average_pool", "rbf",
    "linear_svm", "ensemble", "averaged_weights", "long", "float_cast", "half", "bfloat16", "int8",
    "weight_decay", "dropout", "input_noise_trained", "mlp", "standardised",
]  # fmt: skip
BODIES: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU,
}  # fmt: skip
MEMBERS = 3


@bench.defense("honest")
@dataclass(frozen=True)
class Honest(Defense):
    """A network of one ``kind``, trained by cross-entropy on hard labels unless it says otherwise.

    ``linear_svm``: multi-class hinge; ``ensemble``: the mean logits of three; ``averaged_weights``:
    the mean of the weights at three ends of training; ``long``: six times the epochs;
    ``float_cast``: ``x.float()`` in ``forward``; ``half``, ``bfloat16``: weights stored so, and
    computed with in float32; ``int8``: weights rounded to 255 levels a tensor; ``weight_decay``:
    5e-3 of L2; ``input_noise_trained``: on inputs with Gaussian noise of 0.3, which helps a
    little.
    """

    kind: Kind = "batch_norm"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {get_args(Kind)}, got {self.kind!r}")

    def build(self, context: BuildContext) -> nn.Module:  # noqa: PLR0911 (one a kind)
        """Return the network of the kind."""
        info = context.info
        if self.kind in ("batch_norm", "group_norm", "average_pool", "dropout", *BODIES):
            return _convolutional(info.shape[0], info.shape[-1], info.classes, self.kind)
        if self.kind == "attention":
            return _Attention(info.features, info.shape[-1], info.classes)
        if self.kind == "rbf":
            return _Rbf(info.features, info.classes)
        if self.kind == "linear_svm":
            return nn.Sequential(nn.Flatten(), nn.Linear(info.features, info.classes))
        if self.kind == "mlp":
            return nn.Sequential(
                nn.Flatten(), nn.Linear(info.features, 128), nn.ReLU(),
                nn.Linear(128, info.classes),
            )  # fmt: skip
        if self.kind == "ensemble":
            return _Ensemble([context.network() for _ in range(MEMBERS)])
        if self.kind == "float_cast":
            return _FloatCast(context.network())
        if self.kind == "standardised":
            return nn.Sequential(_Shifted(), context.network())
        return context.network()

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on the labels, and round or average what is to be."""
        if isinstance(model, _Ensemble):
            for member in model.members:
                context.train(member, train.x, train.y)
            return
        if isinstance(model, _Rbf):
            model.centres.data.copy_(train.x[: len(model.centres)].flatten(1))
        if self.kind == "averaged_weights":
            _average(model, train, context)
        elif self.kind == "long":
            for _ in range(6):
                context.train(model, train.x, train.y)
        else:
            context.train(model, train.x, train.y, objective=self.objective)
        _stored(model, self.kind)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of one batch."""
        if self.kind == "linear_svm":
            return nn.functional.multi_margin_loss(model(x), y)
        if self.kind == "input_noise_trained":
            x = (x + 0.3 * torch.randn_like(x)).clamp(0, 1)
        loss = nn.functional.cross_entropy(model(x), y)
        if self.kind == "weight_decay":
            loss = loss + 5e-3 * sum(weight.square().sum() for weight in model.parameters())
        return loss


def _convolutional(channels: int, side: int, classes: int, kind: str) -> nn.Sequential:
    def after(width: int) -> list[nn.Module]:
        body: nn.Module = BODIES.get(kind, nn.ReLU)()
        norms: dict[str, nn.Module] = {
            "batch_norm": nn.BatchNorm2d(width), "group_norm": nn.GroupNorm(4, width),
        }  # fmt: skip
        return [norms[kind], body] if kind in norms else [body]

    return nn.Sequential(
        nn.Conv2d(channels, 16, 3), *after(16), nn.Conv2d(16, 32, 3), *after(32),
        nn.AvgPool2d(2) if kind == "average_pool" else nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(0.3 if kind == "dropout" else 0.0),
        nn.Linear(32 * ((side - 4) // 2) ** 2, 64), BODIES.get(kind, nn.ReLU)(),
        nn.Linear(64, classes),
    )  # fmt: skip


def _average(model: nn.Module, train: Split, context: FitContext) -> None:
    context.train(model, train.x, train.y)
    total = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = dataclasses.replace(context.recipe, epochs=10, lr=context.recipe.lr / 10)
    from bench.training.loop import train as learn

    for _ in range(MEMBERS - 1):
        learn(model, train.x, train.y, recipe, context.generator)
        for name, value in model.state_dict().items():
            total[name] += value
    model.load_state_dict({name: value / MEMBERS for name, value in total.items()})


@torch.no_grad()
def _stored(model: nn.Module, kind: str) -> None:
    for weight in model.parameters():
        if kind == "half":
            weight.copy_(weight.half())
        elif kind == "bfloat16":
            weight.copy_(weight.bfloat16())
        elif kind == "int8":
            step = weight.abs().amax() / 127
            weight.copy_((weight / step).round() * step)


class _Attention(nn.Module):
    """One encoder layer over the rows of an image, as a small vision transformer has it."""

    def __init__(self, features: int, side: int, classes: int) -> None:
        super().__init__()
        self.side = side
        self.embed = nn.Linear(features // side, 32)
        self.place = nn.Parameter(0.1 * torch.randn(side, 32))
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32 * side, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1).view(len(x), self.side, -1)
        logits: Tensor = self.head(self.layer(self.embed(tokens) + self.place).flatten(1))
        return logits


class _Rbf(nn.Module):
    """A linear layer over Gaussian kernels around 256 training images."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.rand(256, features))
        self.width = nn.Parameter(torch.tensor(0.3))
        self.head = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)
        square = (rows.square().sum(1, keepdim=True) + self.centres.square().sum(1)
                  - 2 * rows @ self.centres.T)  # fmt: skip
        logits: Tensor = self.head((-self.width * square).exp())
        return logits


class _Ensemble(nn.Module):
    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(copy.deepcopy(members))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(dim=0)


class _FloatCast(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.float())
        return logits


class _Shifted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.3) / 0.37
