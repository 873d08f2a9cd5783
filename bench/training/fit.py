"""Train a defense, or rebuild it from stored weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from bench.base.types import DataInfo, Spec
from bench.plugins.contracts import (
    Attack,
    BuildContext,
    Defense,
    FitContext,
    LearningAttack,
    Network,
)
from bench.plugins.data import Dataset, Split
from bench.plugins.recipes import Objective, Recipe
from bench.training.loop import DivergedError, train


def derive_seed(seed: int, name: str) -> int:
    """Return the seed of one defense's training: from the run's seed and its registered name.

    So a sweep shares its initial weights and batches, and two defenses do not: at T = 1
    ``temperature_only`` is an independently seeded twin of ``undefended``.
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "big")


def build(
    defense: Defense,
    network: Network,
    info: DataInfo,
    fitted: Mapping[str, nn.Module],
    device: torch.device,
) -> nn.Module:
    """Return the untrained module of ``defense``, in eval mode, on ``device``."""
    module = defense.build(BuildContext(info, fitted, partial(network.build, info)))
    if not isinstance(module, nn.Module):
        raise TypeError(f"build must return a torch.nn.Module, got {type(module).__name__}")
    return module.to(device).eval()


def fit(
    defense: Defense,
    network: Network,
    data: Dataset,
    recipe: Recipe,
    seed: int,
    fitted: Mapping[str, nn.Module],
    make_attack: Callable[[Spec], Attack],
) -> nn.Module:
    """Build ``defense`` and let it learn from the training split (``seed``: ``derive_seed``)."""
    torch.manual_seed(seed)
    device = data.train.x.device
    model = build(defense, network, data.info, fitted, device)
    generator = torch.Generator(device).manual_seed(seed)
    loop = partial(_train, recipe=recipe, generator=generator, validation=data.validation)
    context = FitContext(data.info, fitted, data.validation, recipe, generator, loop, make_attack)
    defense.fit(model, data.train, context)
    return model.eval()


def fit_attack(
    attack: LearningAttack,
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    seed: int,
    fitted: Mapping[str, nn.Module],
    make_attack: Callable[[Spec], Attack],
) -> nn.Module:
    """Let ``attack`` learn about ``model`` from the training split (``seed``: ``derive_seed``).

    Raises ValueError where what it returns cannot be built anew from its weights, DivergedError
    where these are not finite.
    """
    torch.manual_seed(seed)
    device = data.train.stored.device
    generator = torch.Generator(device).manual_seed(seed)
    # As ``fit`` makes it, whose code is in the key of every trained network: it stays as it is.
    loop = partial(_train, recipe=recipe, generator=generator, validation=data.validation)
    context = FitContext(data.info, fitted, data.validation, recipe, generator, loop, make_attack)
    module = attack.fit(model, data.train, context)
    if not isinstance(module, nn.Module):
        raise TypeError(f"fit must return a torch.nn.Module, got {type(module).__name__}")
    refuse_infinite(module)
    try:
        attack.build(data.info).to(device).load_state_dict(module.state_dict())
    except RuntimeError as error:
        raise ValueError(f"fit must return a module with the weights of build: {error}") from error
    return module.eval()


def untaught(data: str) -> str:
    """Return why an attack that learns cannot run on a data set of that name."""
    return f"the attack learns before it attacks, and {data!r} has no training data"


def refuse_infinite(module: nn.Module) -> None:
    """Raise DivergedError where a weight of ``module`` is NaN or infinite."""
    state = {name: value for name, value in module.state_dict().items() if torch.is_tensor(value)}
    if broken := [name for name, value in state.items() if not torch.isfinite(value).all()]:
        raise DivergedError(f"the fitted weights are not finite: {', '.join(broken)}")


def _train(  # noqa: PLR0913 (FitContext.train, with what the run fills in)
    model: nn.Module,
    x: torch.Tensor,
    targets: torch.Tensor,
    *,
    recipe: Recipe,
    generator: torch.Generator,
    validation: Split,
    temperature: float = 1.0,
    objective: Objective | None = None,
) -> None:
    train(model, x, targets, recipe, generator, temperature=temperature, objective=objective)
    refuse_constant(model, validation)


def refuse_constant(model: nn.Module, validation: Split) -> None:
    """Raise DivergedError where ``model`` names one class for images of several.

    A network that answers the same whatever it sees cannot be fooled, and would look robust.
    """
    with torch.no_grad():
        answers = torch.cat([model(rows).argmax(dim=1) for rows in torch.split(validation.x, 512)])
    if (
        len(answers) > 1
        and len(answers.unique()) == 1  # type: ignore[no-untyped-call]
        and len(validation.y.unique()) > 1  # type: ignore[no-untyped-call]
    ):
        raise DivergedError(
            f"training collapsed: class {int(answers[0])} for each of {len(answers)} validation "
            "images; train longer, or with a lower learning rate"
        )
