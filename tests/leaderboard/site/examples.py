"""Results as a page may meet them: with inputs, half done, hostile, empty, large."""

from __future__ import annotations

import base64
from typing import Any

from bench.base.rows import Results
from tests.leaderboard.rows import ENVIRONMENT, Row, model
from tests.leaderboard.tables.test_cells import row
from tests.leaderboard.tables.test_verdicts import REFERENCE, verdict

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "](javascript:alert(1))",
    "\u202egnp.exe\u202c",
    "{{ 7 * 7 }}",
    "x" * 300,
    "</style><style>*{display:none}",
)

PLACE = {"dataset": "mnist", "network": "n", "recipe": "r"}


def environment(**matrix: Any) -> Row:
    return {**ENVIRONMENT, "matrix": {**ENVIRONMENT["matrix"], **matrix}}


def coded(values: list[int]) -> str:
    return base64.b64encode(bytes(value % 256 for value in values)).decode()


def sources(of: Row, shape: tuple[int, ...] = (1, 2, 2), **changes: Any) -> Row:
    """Four sources, of which two fall at the first budget and one at the second."""
    total = 1
    for length in shape:
        total *= length
    example = {
        "why": "least", "sample": 7, "label": 1, "answer": 2, "attack": "pgd", "cell": "c7",
        "distance": 0.1, "clean": coded([0] * total), "largest": 0.1,
        "adversarial": coded([25] + [0] * (total - 1)), "change": coded([127] + [0] * (total - 1)),
    }  # fmt: skip
    identity = {key: of[key] for key in ("dataset", "network", "recipe", "defense")}
    base = {
        "id": f"s-{of['defense']}", **identity, "defense_params": of["defense_params"], "seed": 0,
        "model": "m", "threat": {"norm": "linf", "budget": None, "unit": "input"},
        "budgets": [0.1, 0.2], "shape": list(shape), "samples": [3, 7, 9, 11],
        "labels": [0, 1, 1, 2], "correct": "1111",
        "reach": [
            {"attack": "pgd", "role": "naive", "breaks": "00.+"},
            {"attack": "square", "role": "black-box", "breaks": ".01."},
        ],
        "examples": [example],
    }  # fmt: skip
    return {**base, **changes}


def judged(names: list[str], **changes: Any) -> Results:
    """The undefended network and a defense of each name, with the evidence of each."""
    rows = [REFERENCE, *(verdict(name, **changes) for name in names)]
    cells = [row(one["defense"], 0.5, **{k: one[k] for k in PLACE}) for one in rows]
    return Results(
        cells,
        [model({**one, "seed": 0}) for one in rows],
        rows,
        sources=[sources(one) for one in rows],
    )
