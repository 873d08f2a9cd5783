"""The reference networks: sizes, shapes, what they refuse."""

import pytest
import torch
from torch import nn

from bench.base.types import DataInfo, Spec
from bench.plugins import discovery as doors
from bench.plugins import registry
from bench.training.networks import PapernotCifar10, PapernotMnist, Standardise

doors.load_plugins()
DIGITS = DataInfo("digits", (1, 8, 8), 10, (0.3,), (0.4,))
MNIST = DataInfo("mnist", (1, 28, 28), 10, (0.13,), (0.31,))
CIFAR = DataInfo("cifar10", (3, 32, 32), 10, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
TABLE = DataInfo("table", (5,), 3, (0.5,), (0.2,))


@pytest.mark.parametrize(
    ("name", "info"),
    [
        ("digits-cnn", DIGITS), ("papernot-mnist", MNIST), ("papernot-cifar10", CIFAR),
        ("softmax-regression", MNIST), ("softmax-regression", TABLE), ("mlp", CIFAR),
        ("mlp", TABLE),
    ],
)  # fmt: skip
def test_inputs_of_the_data_set_become_logits(name: str, info: DataInfo) -> None:
    torch.manual_seed(0)
    network = registry.NETWORKS.make(Spec(name)).build(info).eval()
    logits = network(torch.rand(40, *info.shape))
    assert logits.shape == (40, info.classes)
    assert logits.min() < 0  # logits, no probabilities


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_papernot_mnist_counted_by_hand() -> None:
    convolutions = (9 + 1) * 32 + (9 * 32 + 1) * 32 + (9 * 32 + 1) * 64 + (9 * 64 + 1) * 64
    # 28 -> 26 -> 24 -> 12 -> 10 -> 8 -> 4
    dense = (64 * 4 * 4 + 1) * 200 + (200 + 1) * 200 + (200 + 1) * 10
    assert parameters(PapernotMnist().build(MNIST)) == convolutions + dense


def test_papernot_cifar10_counted_by_hand() -> None:
    convolutions = (27 + 1) * 64 + (9 * 64 + 1) * 64 + (9 * 64 + 1) * 128 + (9 * 128 + 1) * 128
    # 32 -> 30 -> 28 -> 14 -> 12 -> 10 -> 5
    dense = (128 * 5 * 5 + 1) * 256 + (256 + 1) * 256 + (256 + 1) * 10
    network = PapernotCifar10().build(CIFAR)
    assert parameters(network) == convolutions + dense
    assert isinstance(network[0], Standardise)


def test_standardise_is_per_channel() -> None:
    x = torch.tensor(CIFAR.mean).view(1, 3, 1, 1).expand(2, 3, 32, 32)
    assert Standardise(CIFAR)(x).abs().max() < 1e-6
    shifted = x + torch.tensor(CIFAR.std).view(1, 3, 1, 1)
    assert torch.allclose(Standardise(CIFAR)(shifted), torch.ones(2, 3, 32, 32), atol=1e-5)


@pytest.mark.parametrize("name", ["digits-cnn", "papernot-mnist"])
def test_a_network_for_images_refuses_a_table(name: str) -> None:
    with pytest.raises(ValueError, match=r"takes square images.*use mlp"):
        registry.NETWORKS.make(Spec(name)).build(TABLE)


def test_papernot_refuses_images_that_vanish() -> None:
    with pytest.raises(ValueError, match="at least 16 × 16"):
        PapernotMnist().build(DIGITS)
