"""Networks of other packages by name: their structure, from what is installed, never weights."""

import sys
import types
from enum import Enum

import pytest
import torch
from torch import nn

from bench.base.types import DataInfo, UserError
from bench.plugins import discovery, registry
from bench.plugins.parameter import as_network, as_spec


def make(name: str, shape: tuple[int, ...] = (3, 32, 32), classes: int = 7) -> nn.Module:
    discovery.load_plugins()
    info = DataInfo("photos", shape, classes, (0.0,) * shape[0], (1.0,) * shape[0])
    return registry.NETWORKS.make(as_spec(as_network(name))).build(info).eval()


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "resnet18", "wideresnet-28-10"])
def test_a_name_is_a_network_for_the_classes_of_the_data(name: str) -> None:
    with torch.no_grad():
        assert make(name)(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_the_networks_for_small_images_have_their_papers_sizes() -> None:
    # ResNet-18 with a 3 x 3 stem: 11,173,962 weights; WRN-28-10: 36.5 million (table 9 there).
    sizes = {
        name: sum(weight.numel() for weight in make(name, classes=10).parameters())
        for name in ("resnet18", "wideresnet-28-10")
    }
    assert sizes == {"resnet18": 11_173_962, "wideresnet-28-10": 36_479_194}
    first = make("resnet18")[1].conv1
    assert (first.kernel_size, first.stride) == ((3, 3), (1, 1))
    with pytest.raises(UserError, match=r"depth must be 6 n \+ 4"):
        registry.NETWORKS.make(as_spec({"name": "wideresnet-28-10", "depth": 27}))


@pytest.mark.parametrize("name", ["resnet18", "wideresnet-28-10"])
def test_a_network_for_images_names_what_it_cannot_take(name: str) -> None:
    with pytest.raises(ValueError, match=r"takes images .* inputs of shape"):
        make(name, (30,))


def test_an_unknown_name_gets_the_nearest_of_many() -> None:
    with pytest.raises(UserError, match=r"no classifier 'resnet81': did you mean resnet18"):
        make("torchvision:resnet81")


@pytest.mark.parametrize("zoo", ["timm", "robustbench"])
def test_a_package_that_is_not_there_is_one_line(zoo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (zoo, f"{zoo}.model_zoo", f"{zoo}.model_zoo.models"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"{zoo} cannot be imported .*pip install 'retort-bench\["):
        make(f"{zoo}:anything")


def test_timm_makes_a_network_untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def create_model(name: str, **params: object) -> nn.Module:
        asked.update(params, name=name)
        return nn.Flatten()

    stub = types.SimpleNamespace(create_model=create_model, list_models=lambda: ["vit_tiny"])
    monkeypatch.setitem(sys.modules, "timm", stub)
    make("timm:vit_tiny.augreg", (1, 8, 8))
    assert asked == {
        "name": "vit_tiny.augreg", "pretrained": False, "num_classes": 7, "in_chans": 1,
    }  # fmt: skip


def test_robustbench_has_a_network_a_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    class Of(Enum):
        small, large = "cifar10", "imagenet"

    def entry(classes: int) -> dict[str, object]:
        return {"model": lambda: nn.Linear(2, classes), "gdrive_id": "never asked"}

    stub = types.SimpleNamespace(
        model_dicts={
            Of.small: {"Linf": {"Who2020": entry(10), "Two2021": {"model": lambda: [1]}}},
            Of.large: {"Linf": {"Who2020": entry(1000)}},
        }
    )
    for name in ("robustbench", "robustbench.model_zoo"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "robustbench.model_zoo.models", stub)
    assert make("robustbench:Who2020", classes=10).out_features == 10
    assert make("robustbench:Who2020", classes=1000).out_features == 1000
    with pytest.raises(UserError, match="is an ensemble"):
        make("robustbench:Two2021", classes=10)
