"""Controls: what each adds to training, and nothing else."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench.base.types import DataInfo, Spec
from bench.plugins import registry
from bench.plugins.contracts import BuildContext
from defenses.controls import Dropout, GaussianAugmentation, WeightDecay


def test_weight_decay_penalises_matrices_alone(data, network, objective_of) -> None:
    network.eval()
    x, y = data.train.x[:8], data.train.y[:8]
    squares = sum((layer.weight**2).sum().item() for layer in (network[1], network[4]))
    loss = objective_of(WeightDecay(0.02))(network, x, y)
    expected = cross_entropy(network(x), y).item() + 0.01 * squares
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_noise_is_fresh_inside_the_box_and_of_the_stated_size(data, objective_of) -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1)[:, :3]

    x = torch.full((200, 1, 16, 16), 0.5)
    x[:100] = 0.0
    y = torch.zeros(200, dtype=torch.int64)
    objective = objective_of(GaussianAugmentation(0.1))
    objective(Spy(), x, y)
    objective(Spy(), x, y)
    first, second = seen
    assert (first - second).abs().mean() > 0.05
    assert (first[100:] - 0.5).std().item() == pytest.approx(0.1, rel=0.02)
    assert first.min() == 0.0
    assert (first[:100] == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    repeated = objective_of(GaussianAugmentation(0.1))
    repeated(Spy(), x, y)
    assert torch.equal(seen[2], first)


def info(shape=(1, 8, 8)) -> DataInfo:
    return DataInfo("toy", shape, 3, (0.3,), (0.4,))


def built(defense, name: str, shape=(1, 8, 8)) -> tuple[nn.Module, nn.Module]:
    network = registry.NETWORKS.make(Spec(name))
    torch.manual_seed(0)
    plain = network.build(info(shape))
    torch.manual_seed(0)
    return plain, defense.build(BuildContext(info(shape), {}, lambda: network.build(info(shape))))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("digits-cnn", (1, 8, 8)),
        ("mlp", (5,)),
        ("softmax-regression", (7,)),
        ("papernot-mnist", (1, 16, 16)),
    ],
)
def test_dropout_keeps_the_weights_and_acts_in_training_alone(name: str, shape) -> None:
    plain, dropped = built(Dropout(0.4), name, shape)
    weights = plain.state_dict()
    assert list(dropped.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[key]) for key, value in dropped.state_dict().items())
    x = torch.rand(4, *shape)
    assert torch.equal(dropped.eval()(x), plain.eval()(x))
    dropped.train()
    assert not torch.equal(dropped(x), dropped(x))


def test_dropout_drops_hidden_units_at_its_rate() -> None:
    _, network = built(Dropout(0.25), "digits-cnn")
    seen = []
    network[-1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    network.eval()(x := torch.rand(500, 1, 8, 8))
    torch.manual_seed(0)
    network.train()(x)
    hidden, dropped = seen
    active = hidden > 0
    kept = dropped[active] > 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert torch.allclose(dropped[active][kept], hidden[active][kept] / 0.75, rtol=1e-4)


def test_a_network_with_dropout_of_its_own_gets_the_rate() -> None:
    _, network = built(Dropout(0.2), "papernot-mnist", (1, 16, 16))
    rates = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.2, 0.2]
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_dropout_needs_a_dense_layer() -> None:
    with pytest.raises(ValueError, match="the network has none"):
        Dropout().build(BuildContext(info(), {}, lambda: nn.Conv2d(1, 3, 8)))


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
def test_wrong_parameters_are_named(wrong: float) -> None:
    with pytest.raises(ValueError, match="amount must be positive and finite, got"):
        WeightDecay(wrong)
    with pytest.raises(ValueError, match="sigma must be positive and finite, got"):
        GaussianAugmentation(wrong)
    with pytest.raises(ValueError, match=r"rate must be in \(0, 1\), got"):
        Dropout(wrong)
    with pytest.raises(ValueError, match=r"rate must be in \(0, 1\), got 1.0"):
        Dropout(1.0)
