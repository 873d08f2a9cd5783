"""One training loop, and the recipes that name its settings."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

from bench.plugins.recipes import Objective, Recipe


class DivergedError(Exception):
    """Training ended in a loss that is not finite: there is no network to speak of."""


def cross_entropy(temperature: float = 1.0) -> Objective:
    """Return the cross-entropy of softmax(logits / temperature), the mean over a batch."""

    def objective(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(x).float() / temperature, targets)

    return objective


def train(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    recipe: Recipe,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    objective: Objective | None = None,
) -> None:
    """Train ``model`` in place by cross-entropy of softmax(logits / temperature), or ``objective``.

    ``x``: (n, *shape) float32 in [0, 1]; ``targets``: (n,) int64 labels or (n, classes)
    probabilities. Everything lies on one device and no loader stands between. ``generator``, on
    that device, shuffles. ``objective`` replaces the cross-entropy (adversarial training crafts
    its batch there); it runs in the recipe's precision and returns a scalar. The model is left in
    eval mode. Raises DivergedError where the loss of an epoch is not finite.
    """
    loss_of = cross_entropy(temperature) if objective is None else objective
    batches = -(-len(x) // recipe.batch_size)
    optimizer, scheduler = _optimizer(model, recipe, recipe.epochs * batches)
    autocast = (
        torch.autocast(x.device.type, torch.bfloat16) if recipe.bf16 else contextlib.nullcontext()
    )
    if x.dim() == 4:
        model.to(memory_format=torch.channels_last)  # faster, above all max pooling on a CPU
    model.train()
    for epoch in range(recipe.epochs):
        total = torch.zeros((), device=x.device)
        order = torch.randperm(len(x), generator=generator, device=x.device)
        for rows in torch.split(order, recipe.batch_size):
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                loss = loss_of(model, x[rows], targets[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
            total += loss.detach()
        if not torch.isfinite(total):
            raise DivergedError(
                f"training diverged: the loss of epoch {epoch + 1} is {float(total)}"
            )
    model.to(memory_format=torch.contiguous_format).eval()


def _optimizer(
    model: nn.Module, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adam":
        optimizer = torch.optim.Adam(parameters, lr=recipe.lr, fused=True)
    else:
        optimizer = torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, fused=True)
    if recipe.schedule == "one-cycle":
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps)
        return optimizer, cycle
    return optimizer, _Halving(optimizer, steps // recipe.epochs * recipe.period, recipe)


class _Halving(torch.optim.lr_scheduler.LRScheduler):
    """Halve learning rate and momentum together every ``steps`` steps; ``constant`` never does."""

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, recipe: Recipe) -> None:
        self.steps = steps
        self.recipe = recipe
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rates of this step."""
        halvings = self.last_epoch // self.steps if self.recipe.schedule == "halving" else 0
        for group in self.optimizer.param_groups:
            if "momentum" in group:
                group["momentum"] = self.recipe.momentum * 0.5**halvings
        return [base * 0.5**halvings for base in self.base_lrs]
