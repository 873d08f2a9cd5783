"""Names, doors and messages."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.base.types import Spec, UserError
from bench.plugins import discovery as doors
from bench.plugins import registry
from bench.plugins.contracts import Defense
from bench.plugins.registry import Registry


@dataclass(frozen=True)
class Toy(Defense):
    """A toy."""

    strength: float = 1.0
    mode: str = "soft"

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError(f"strength must not be negative, got {self.strength!r}")


@pytest.fixture
def toys() -> Registry[Defense]:
    found: Registry[Defense] = Registry("defense", Defense)
    found.register("toy")(Toy)
    return found


def test_parameters_are_complete_and_typed(toys: Registry[Defense]) -> None:
    toy = toys.make(Spec("toy", {"strength": 2}))
    assert toys.document(toy) == {"name": "toy", "params": {"strength": 2.0, "mode": "soft"}}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec("tow"), "unknown defense 'tow': did you mean 'toy'"),
        (Spec("toy", {"strenght": 1.0}), "no parameter 'strenght': did you mean 'strength'"),
        (Spec("toy", {"strength": "2"}), "strength: .*valid number, got '2'"),
        (Spec("toy", {"strength": True}), "strength: .*valid number, got True"),
        (Spec("toy", {"strength": -1.0}), "strength must not be negative, got -1.0"),
    ],
)
def test_a_mistake_is_named_with_the_nearest_choice(
    toys: Registry[Defense], spec: Spec, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        toys.make(spec)


def test_two_plugins_of_one_name_name_both_origins(toys: Registry[Defense]) -> None:
    with pytest.raises(UserError, match=r"two defenses are called 'toy'.*test_registry.*elsewhere"):
        toys.add("toy", "elsewhere", lambda: Toy)


def test_registering_the_same_class_again_is_harmless(toys: Registry[Defense]) -> None:
    toys.register("toy")(Toy)
    assert toys.names() == ["toy"]


@pytest.mark.parametrize("name", ["<script>", "../../x", "a b", "Toy", "", "a|b", "-x", "x\n"])
def test_names_that_could_do_harm_are_refused(toys: Registry[Defense], name: str) -> None:
    with pytest.raises(UserError, match="not valid"):
        toys.register(name)(Toy)


def test_a_frozen_registry_takes_no_names(toys: Registry[Defense]) -> None:
    toys.freeze()
    with pytest.raises(UserError, match="frozen"):
        toys.add("late", "here", lambda: Toy)


def test_a_broken_plugin_breaks_only_who_selects_it(toys: Registry[Defense]) -> None:
    def load() -> Any:
        raise ImportError("no module named gone")

    toys.add("broken", "somewhere", load)
    assert toys.get("toy") is Toy
    with pytest.raises(UserError, match=r"'broken' \(from somewhere\) cannot be loaded: Import"):
        toys.get("broken")


def test_what_is_no_plugin_is_refused(toys: Registry[Defense]) -> None:
    toys.add("number", "here", lambda: int)  # type: ignore[arg-type, return-value]
    with pytest.raises(UserError, match=r"subclass of bench\.Defense"):
        toys.get("number")


def test_every_built_in_loads_and_makes_its_defaults() -> None:
    doors.load_plugins()
    needs: Mapping[str, dict[str, Any]] = {
        "arrays": {"path": "a.npz"},
        "art": {"attack": "DeepFool"},
        "foolbox": {"attack": "LinfPGD", "eps": 0.1},
        "jsma_reference": {"gamma": 0.1},
        "torchattacks_jsma": {"gamma": 0.1},
        "checkpoint": {"weights": "w.safetensors"},
        "submission": {"inputs": "adv.safetensors", "norm": "linf"},
        "image-folder": {"path": "photos"},
        "live": {"modules": ["m.pkl"], "identity": ["0"]},
        **{zoo: {"model": "resnet18"} for zoo in ("torchvision", "timm", "robustbench")},
    }
    for found in registry.REGISTRIES.values():
        for name in found.names():
            plugin = found.make(Spec(name, needs.get(name, {})))
            assert found.name_of(plugin) == name
            document = found.document(plugin)
            again = found.make(Spec(name, document["params"]))
            assert found.document(again) == document
            assert type(plugin).__doc__


def test_a_plugin_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_plugin.py").write_text("VALUE = 3\n")
    (tmp_path / "plugin.py").write_text(
        "import neighbour_of_plugin\nfound = neighbour_of_plugin.VALUE\n"
    )
    assert doors.import_plugin(str(tmp_path / "plugin.py")).found == 3


def test_two_neighbours_of_one_name_are_not_taken_for_each_other(tmp_path: Path) -> None:
    for folder, value in (("first", 1), ("second", 2), ("same", 1)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net_beside.py").write_text(f"VALUE = {value}\n")
        # Within a function, where it is imported long after the file.
        text = "def build():\n    from net_beside import VALUE\n    return VALUE\n"
        (tmp_path / folder / "build.py").write_text(text)
    assert doors.import_plugin(str(tmp_path / "first" / "build.py")).build() == 1
    assert doors.import_plugin(str(tmp_path / "same" / "build.py")).build() == 1
    with pytest.raises(UserError, match=r"second.build.py imports net_beside.*first.net_beside.py"):
        doors.import_plugin(str(tmp_path / "second" / "build.py"))
    (tmp_path / "attacks.py").write_text("prep = 1\n")
    (tmp_path / "ours.py").write_text("from attacks import prep\n")
    with pytest.raises(UserError, match="imports attacks, which lies beside it"):
        doors.import_plugin(str(tmp_path / "ours.py"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("1 +", "SyntaxError"), ("raise ValueError('x')", "ValueError: x"), (None, "does not exist")],
)
def test_a_plugin_file_that_fails_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "bad_plugin.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        doors.import_plugin(str(path))
    assert "bad_plugin.py" in str(caught.value)
