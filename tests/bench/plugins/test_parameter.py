"""A plugin as a parameter: names and tables, completed, and mistakes with where they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from bench.base.types import Spec, UserError
from bench.plugins import discovery as doors
from bench.plugins import parameter as nested
from bench.plugins.contracts import Defense
from bench.plugins.parameter import NameOrTable
from bench.plugins.registry import NETWORKS, Registry, parameters
from bench.training.networks import Mlp

doors.load_plugins()


@dataclass(frozen=True)
class Holder(Defense):
    """Has a ``network``, and a ``strength``."""

    network: NameOrTable = field(default="mlp", hash=False)
    strength: float = 1.0

    def __post_init__(self) -> None:
        _, table = nested.resolve(NETWORKS, "network", self.network, "mlp")
        object.__setattr__(self, "network", table)


@pytest.fixture
def holders() -> Registry[Defense]:
    found: Registry[Defense] = Registry("defense", Defense)
    found.register("holder")(Holder)
    return found


def test_a_name_is_a_table_and_a_table_is_copied() -> None:
    assert nested.as_table("network", "mlp", "mlp") == {"name": "mlp"}
    given = {"name": "mlp", "width": 3}
    table = nested.as_table("network", given, "mlp")
    assert table == given
    assert table is not given


def test_a_table_is_a_spec() -> None:
    given = {"width": 3, "name": "mlp"}
    assert nested.as_spec(given) == Spec("mlp", {"width": 3})
    assert given == {"width": 3, "name": "mlp"}


@pytest.mark.parametrize("given", ["mlp", {"name": "mlp"}, {"name": "mlp", "width": 128}])
def test_the_table_is_complete_with_its_defaults(given: Any) -> None:
    plugin, table = nested.resolve(NETWORKS, "network", given, "mlp")
    assert plugin == Mlp(128)
    assert table == {"name": "mlp", "width": 128}
    assert nested.resolve(NETWORKS, "network", table, "mlp") == (plugin, table)


def test_a_plugin_around_it_goes_through_its_document(holders: Registry[Defense]) -> None:
    holder = holders.make(Spec("holder", {"network": {"name": "mlp", "width": 3}}))
    document = parameters(holder)
    assert document == {"network": {"name": "mlp", "width": 3}, "strength": 1.0}
    again = holders.make(Spec("holder", document))
    assert again == holder != holders.make(Spec("holder"))
    assert hash(again) == hash(holder)


@pytest.mark.parametrize(
    "given", [3, None, True, ["mlp"], {}, {"width": 3}, {"name": 3}, {"name": ["mlp"]}]
)
def test_what_is_no_table_is_shown_one(given: Any, holders: Registry[Defense]) -> None:
    with pytest.raises(UserError) as error:
        holders.make(Spec("holder", {"network": given}))
    assert str(error.value) == (
        "defense 'holder': network must be a name or a table with a name, "
        f'as in network = {{ name = "mlp" }}, got {given!r}'
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mpl", "network: unknown network 'mpl': did you mean 'mlp'"),
        ({"name": "mlp", "wide": 3}, "network: network 'mlp' has no parameter 'wide': did you"),
        ({"name": "mlp", "width": 0.5}, "network: network 'mlp': width: .*valid integer, got 0.5"),
        ({"name": "papernot-mnist", "dropout": 2.0}, "network: network 'papernot-mnist': dropout"),
    ],
)
def test_a_mistake_inside_says_where_it_is(
    given: str | Mapping[str, Any], message: str, holders: Registry[Defense]
) -> None:
    with pytest.raises(UserError, match=f"^defense 'holder': {message}"):
        holders.make(Spec("holder", {"network": given}))


def test_other_parameters_are_checked_as_ever(holders: Registry[Defense]) -> None:
    with pytest.raises(UserError, match=r"strength: .*valid number, got '1'"):
        holders.make(Spec("holder", {"strength": "1"}))
