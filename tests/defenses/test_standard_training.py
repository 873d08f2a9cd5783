"""Which images and which network: the two things that it chooses."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.base.types import DataInfo, Spec, UserError
from bench.plan.graph import make_plan
from bench.plan.matrix import parse_matrix
from bench.plugins import registry
from bench.plugins.code_hash import source_hash
from bench.plugins.contracts import BuildContext, FitContext
from bench.plugins.data import Split
from bench.runner.keys import Keys
from bench.training.fit import fit as harness
from bench.training.networks import DigitsCnn, Mlp
from defenses.standard_training import StandardTraining
from tests.defenses.conftest import SHORT, seeded

FLAT = DataInfo("flat", (30,), 2, (0.5,), (0.3,))


def seen(defense: StandardTraining, data: Any, train: Split) -> Split:
    """Return what the training loop is handed."""
    asked = SimpleNamespace()

    def loop(model: nn.Module, x: Tensor, targets: Tensor) -> None:
        asked.split = Split(x, targets)

    context = FitContext(
        data.info, {}, data.validation, SHORT, seeded(), loop, registry.ATTACKS.make
    )
    defense.fit(nn.Identity(), train, context)
    found: Split = asked.split
    return found


@pytest.mark.parametrize("rows", [2, 9, 10])
def test_the_halves_are_disjoint_and_cover_everything(data, rows: int) -> None:
    train = Split(torch.arange(rows).float()[:, None], torch.arange(rows) % 3)
    first, second = (seen(StandardTraining(half=half), data, train) for half in ("first", "second"))
    assert abs(len(first) - len(second)) == rows % 2
    assert torch.equal(torch.cat([first.x, second.x]), train.x)
    assert torch.equal(torch.cat([first.y, second.y]), train.y)
    whole = seen(StandardTraining(), data, train)
    assert torch.equal(whole.x, train.x)
    assert torch.equal(whole.y, train.y)


def built(defense: StandardTraining, info: DataInfo = FLAT) -> nn.Module:
    own = nn.Linear(info.features, info.classes)
    return defense.build(BuildContext(info, {}, lambda: own))


def test_the_network_is_the_one_that_was_named() -> None:
    shapes = [weight.shape for weight in Mlp(width=7).build(FLAT).parameters()]
    found = built(StandardTraining(network={"name": "mlp", "width": 7}))
    assert [weight.shape for weight in found.parameters()] == shapes
    assert isinstance(built(StandardTraining()), nn.Linear)  # the run's own


def test_the_network_is_part_of_its_identity(data) -> None:
    def document(**params: Any) -> dict[str, Any]:
        defense = {"name": "standard_training", **params}
        matrix = {"name": "m", "defense": [defense], "attack": ["fgsm"]}
        (node,) = make_plan(parse_matrix(matrix, "test")).of("fit")
        return Keys(data, "cpu", {}).of(node)

    assert StandardTraining(network="mlp").code() == (Mlp,)
    assert StandardTraining().code() == ()
    # The key's source is a hash of the network's class too: an edit of it is another fit.
    expected = source_hash(harness, StandardTraining, DigitsCnn, Mlp)
    assert document(network="mlp")["source"] == expected
    assert document()["source"] == source_hash(harness, StandardTraining, DigitsCnn) != expected
    complete = document(network="mlp")["document"]["defense"]["params"]["network"]
    assert complete == {"name": "mlp", "width": 128}
    wide = document(network={"name": "mlp", "width": 256})
    assert wide["plan"] != document(network="mlp")["plan"]


def test_a_network_that_does_not_take_the_inputs_is_named() -> None:
    with pytest.raises(UserError, match=r"^network 'digits-cnn': .*shape \(30,\): use mlp"):
        built(StandardTraining(network="digits-cnn"))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"half": "third"}, r"half: .*'first' or 'second'.*, got 'third'"),
        (
            {"network": "digits-cmm"},
            "network: unknown network 'digits-cmm': did you mean 'digits-c",
        ),
        (
            {"network": {"name": "mlp", "widht": 3}},
            "network: network 'mlp' has no parameter 'widht': did you mean 'width'",
        ),
        ({"network": {"width": 3}}, r"network must be .* as in network = \{ name = \"mlp\" \}"),
        ({"network": 3}, r"network must be a name or a table with a name, .*, got 3$"),
    ],
)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^defense 'standard_training': {message}"):
        registry.DEFENSES.make(Spec("standard_training", params))


def test_an_unknown_half_is_refused_without_a_registry_too() -> None:
    with pytest.raises(ValueError, match=r"half must be one of \('first', 'second'\) or none"):
        StandardTraining(half="third")
