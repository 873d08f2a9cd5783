"""The plugins that ``new`` writes: each passes the conformance suite as it is."""

from pathlib import Path

import pytest

from bench.plugins import registry
from bench.skeleton import KINDS
from tests.bench.conftest import Command


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a test registers is gone after it."""
    from bench.plugins import discovery

    discovery.load_plugins()
    monkeypatch.chdir(tmp_path)
    for found in registry.REGISTRIES.values():
        monkeypatch.setattr(found, "_entries", dict(found._entries))
        monkeypatch.setattr(found, "_classes", dict(found._classes))


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_passes_its_checks(kind: str, command: Command) -> None:
    made = command("new", kind, f"my-{kind}")
    assert made.exit_code == 0, made.output
    assert f"my_{kind.replace('-', '_')}.py" in made.output
    checked = command("check", f"my_{kind.replace('-', '_')}.py")
    assert checked.exit_code == 0, checked.output
    assert f"my-{kind}" in checked.output
    assert " 0 failed" in checked.output


def test_what_is_there_is_not_written_over_and_wrong_names_are_told(command: Command) -> None:
    assert command("new", "attack", "mine").exit_code == 0
    before = Path("mine.py").read_text()
    for args, message in [
        (("attack", "mine"), "is there already"),
        (("atack", "other"), "did you mean 'attack'"),
        (("attack", "My Attack"), "is no name for a plugin"),
    ]:
        done = command("new", *args)
        assert done.exit_code == 2
        assert message in done.output
    assert Path("mine.py").read_text() == before
