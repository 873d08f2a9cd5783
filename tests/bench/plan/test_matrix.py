"""Matrix files, and what is said of mistakes in them."""

from pathlib import Path

import pytest

from bench.base.types import UserError
from bench.plan.matrix import expand, load_matrix, matrix_names, parse_matrix

MINIMAL = '[[defense]]\nname = "undefended"\n[[attack]]\nname = "fgsm"\n'


def test_every_matrix_of_the_package_is_valid() -> None:
    assert {"full", "smoke"} <= set(matrix_names())
    for name in matrix_names():
        assert load_matrix(name).name == name
        assert load_matrix(name).description


def test_full_is_the_matrix_of_the_project() -> None:
    full = load_matrix("full")
    temperatures = [s.params["temperature"] for s in full.defenses() if s.name == "distillation"]
    assert temperatures == [1, 2, 5, 10, 20, 30, 40, 50, 100]
    assert full.sources == 100
    outputs = {s.params["output"] for s in full.attacks() if s.name == "jsma"}
    assert outputs == {"probs", "logits", "log_odds"}


def test_a_list_sweeps_and_two_lists_cross() -> None:
    specs = list(expand({"name": "a", "p": [1, 2], "q": ["x", "y"], "r": 0}))
    assert [(s.params["p"], s.params["q"], s.params["r"]) for s in specs] == [
        (1, "x", 0), (1, "y", 0), (2, "x", 0), (2, "y", 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('name = "m"\nsource = 5\n' + MINIMAL, ["'source'", "did you mean 'sources'"]),
        ('name = "m"\nsources = 0\n' + MINIMAL, ["sources", "0"]),
        ('name = "m"\nseeds = []\n' + MINIMAL, ["seeds"]),
        ('name = "m"\nseeds = [1, 1]\n' + MINIMAL, ["seeds", "twice"]),
        ('name = "m"\n[[defense]]\nname = "undefended"\n', ["attack", "required"]),
        ('name = "m"\n[[defense]]\ntemperature = 3\n[[attack]]\nname = "fgsm"\n', ["needs a name"]),
        ('name = "../m"\n' + MINIMAL, ["name", "../m"]),
        ('name = "m"\nseeds = = 3\n', ["line 2"]),
    ],
)
def test_a_typo_names_the_file_and_the_key(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_matrix(path)
    for part in ["my.toml", *parts]:
        assert part in str(caught.value)


def test_an_unknown_matrix_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'full'"):
        load_matrix("ful")
    with pytest.raises(UserError, match="cannot be read"):
        load_matrix(tmp_path / "gone.toml")


def test_overrides_replace_top_level_keys() -> None:
    found = load_matrix("smoke", {"sources": 7, "recipe": None})
    assert found.sources == 7
    assert found.recipe == "smoke"


def test_a_table_needs_no_file() -> None:
    table = {"name": "t", "defense": ["undefended"], "attack": [{"name": "fgsm", "eps": 0.1}]}
    assert [s.name for s in parse_matrix(table, "here").defenses()] == ["undefended"]
