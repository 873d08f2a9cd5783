"""The figure of a study over what is published."""

from pathlib import Path

import pytest

from bench.base.files import read_json, write_json
from bench.base.types import UserError
from leaderboard.figures.study import study

PUBLISHED = Path(__file__).parents[3] / "leaderboard" / "published"


def test_a_study_draws_every_run(tmp_path: Path) -> None:
    study(tmp_path, [PUBLISHED / "papernot-mnist", PUBLISHED / "papernot-mnist-recipes-fast-2"])
    assert (tmp_path / "scale.png").stat().st_size > 5000
    assert (tmp_path / "scale.pdf").read_bytes().startswith(b"%PDF")


def test_runs_without_the_attack_are_refused(tmp_path: Path) -> None:
    for name in ("results.json", "models.json", "verdicts.json"):
        write_json(tmp_path / name, [])
    write_json(
        tmp_path / "environment.json", read_json(PUBLISHED / "papernot-mnist/environment.json")
    )
    with pytest.raises(UserError, match="nothing to draw"):
        study(tmp_path, [tmp_path])
