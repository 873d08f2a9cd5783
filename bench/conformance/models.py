"""The checks of a defense and of a network: what their models answer, and what fitting does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from bench.base.types import Spec
from bench.conformance.checks import Checks
from bench.conformance.data import TINY
from bench.measure.query import ContractError, predict
from bench.plugins import registry
from bench.plugins.contracts import Defense, Network
from bench.plugins.data import Dataset
from bench.training.fit import build, fit

ROWS = 6
NETWORK = Spec("mlp", {"width": 32})
"""The reference network that defenses are tried on."""


def defense_checks(checks: Checks, defense: Defense, data: Dataset) -> None:
    """Fit ``defense`` twice on ``data``, rebuild it from its weights, and question its model."""
    found: list[nn.Module] = []
    before = data.train.x.clone()
    if not checks.run("fit", lambda: found.append(fitted(defense, data))):
        return
    model = found[0]
    checks.run("training data", lambda: _unchanged(before, data.train.x, "fit changes train.x"))
    if not _model_checks(checks, model, data, defense.stochastic):
        return
    checks.run("same fit", lambda: same_weights(model, fitted(defense, data)))
    checks.run("rebuild", lambda: _rebuild(defense, model, data))
    if defense.differentiable or type(defense).surrogate is not Defense.surrogate:
        checks.run("gradients", lambda: _gradients(defense.surrogate(model), data))


def network_checks(checks: Checks, network: Network, data: Dataset) -> None:
    """Build ``network`` for ``data`` twice, and question it in eval mode."""
    found: list[nn.Module] = []
    if not checks.run("build", lambda: found.append(_built(network, data))):
        return
    model = found[0]
    if not _model_checks(checks, model, data, stochastic=False):
        return
    checks.run("same build", lambda: same_weights(model, _built(network, data)))
    checks.run("gradients", lambda: _gradients(model, data))


def fitted(defense: Defense | Spec, data: Dataset, seed: int = 0) -> nn.Module:
    """Return ``defense`` fitted on ``data``, and first what it requires."""
    defense = registry.DEFENSES.make(defense) if isinstance(defense, Spec) else defense
    network = registry.NETWORKS.make(NETWORK)
    with torch.random.fork_rng(devices=[]):
        return fit(
            defense, network, data, TINY, seed, _required(defense, data), registry.ATTACKS.make
        )


def _required(defense: Defense, data: Dataset) -> Mapping[str, nn.Module]:
    return {name: fitted(needed, data) for name, needed in defense.requires().items()}


def _built(network: Network, data: Dataset) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network.build(data.info)
    if not isinstance(model, nn.Module):
        raise ContractError(f"build must return a torch.nn.Module, got {type(model).__name__}")
    return model.eval()


def _model_checks(checks: Checks, model: nn.Module, data: Dataset, stochastic: bool) -> bool:
    x = data.test.x[:ROWS].clone()
    ask = partial(predict, model, classes=data.info.classes)
    if not checks.run("forward", lambda: _forward(model, x)):
        return False
    if not checks.run("logits", lambda: _logits(ask(x.clone()))):
        return False
    if not stochastic:
        checks.run("repeated query", lambda: _close(ask(x), ask(x), "two queries differ"))
        checks.run("batch independence", lambda: _rows_alone(ask, x))
    return True


def _rows_alone(ask: Callable[[Tensor], Tensor], x: Tensor) -> str | None:
    alone = torch.cat([ask(row) for row in torch.split(x, 1)])
    return _close(ask(x), alone, "a row alone gets other logits than in a batch")


def _logits(logits: Tensor) -> str | None:
    if not torch.isfinite(logits).all():
        return "some are not finite"
    sums = logits.double().sum(dim=1)
    if logits.min() >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        return "they are probabilities: every row is positive and sums to one"
    return None


def _forward(model: nn.Module, x: Tensor) -> str | None:
    given = x.clone()
    with torch.no_grad():
        model(given)
    return _unchanged(x, given, "forward changes its input")


def _unchanged(before: Tensor, after: Tensor, problem: str) -> str | None:
    return None if torch.equal(before, after) else problem


def _close(first: Tensor, second: Tensor, problem: str) -> str | None:
    scale = float(first.abs().max())
    if torch.allclose(first, second, rtol=1e-4, atol=1e-5 * max(1.0, scale)):
        return None
    return f"{problem}, by up to {float((first - second).abs().max()):.3g}"


def same_weights(first: nn.Module, second: nn.Module) -> str | None:
    """Return how two modules that were made under one seed differ in their weights, or None."""
    one, two = first.state_dict(), second.state_dict()
    if one.keys() != two.keys():
        return "twice under one seed gives other parameters"
    differing = [name for name in one if not torch.equal(one[name], two[name])]
    return f"twice under one seed gives other {', '.join(differing[:3])}" if differing else None


def _rebuild(defense: Defense, model: nn.Module, data: Dataset) -> str | None:
    network = registry.NETWORKS.make(NETWORK)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # other initial weights: nothing may depend on them
        again = build(defense, network, data.info, _required(defense, data), data.train.x.device)
    again.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    if defense.stochastic:
        return None
    x, classes = data.test.x[:ROWS], data.info.classes
    first, second = predict(model, x, classes), predict(again, x, classes)
    return _close(first, second, "built anew with the stored weights it gives other logits")


def _gradients(model: nn.Module, data: Dataset) -> str | None:
    x = data.test.x[:ROWS].clone().requires_grad_()
    logits = model(x)
    if not logits.requires_grad:
        return "the logits have no gradient with respect to the input"
    (gradient,) = torch.autograd.grad(logits.sum(dim=0)[0], x, allow_unused=True)
    if gradient is None or not torch.isfinite(gradient).all():
        return "the gradient with respect to the input is absent or not finite"
    return None if gradient.any() else "the gradient with respect to the input is zero everywhere"
