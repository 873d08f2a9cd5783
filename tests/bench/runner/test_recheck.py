"""Asked again in a process that has seen nothing: what a model keeps in its class comes out."""

from pathlib import Path

import pytest

from bench.compose import run_matrix
from bench.plan.options import RunOptions

pytestmark = pytest.mark.process

PLUGIN = '''
"""Defenses that keep in their class what they were asked."""
from dataclasses import dataclass

from torch import nn

import bench


class Memory(nn.Module):
    """The network inside, until as many rows were asked as an attack asks."""

    rows = 0

    def __init__(self, network, loud):
        super().__init__()
        self.network = network
        self.loud = loud

    def forward(self, x):
        if self.loud and not Memory.rows and len(x) > 100:
            raise RuntimeError("nothing is remembered")
        Memory.rows += len(x)
        logits = self.network(x)
        return logits if Memory.rows < 600 or self.loud else logits.roll(1, dims=1)


@bench.defense("remembers")
@dataclass(frozen=True)
class Remembers(bench.Defense):
    """Answers otherwise once it was asked enough; ``loud``: raises where it was asked nothing."""

    loud: bool = False

    def requires(self):
        return {"plain": bench.Spec("undefended")}

    def build(self, context):
        return Memory(context.network(), self.loud)

    def fit(self, model, train, context):
        model.network.load_state_dict(context.fitted["plain"].state_dict())
'''


def test_a_memory_in_a_class_is_found_out_and_so_is_one_that_then_refuses(tmp_path: Path) -> None:
    plugin = tmp_path / "remembers.py"
    plugin.write_text(PLUGIN)
    matrix = {
        "recipe": "smoke", "sources": 90, "probe_samples": 10,
        "defense": ["undefended", {"name": "remembers", "loud": [False, True]}],
        "attack": [{"name": "noise", "norm": "linf", "eps": eps, "draws": 10}
                   for eps in (0.05, 0.1)],
    }  # fmt: skip
    made = run_matrix(
        matrix,
        RunOptions(out=tmp_path / "run", workers=1, plugin=(str(plugin),), device="cpu",
                   cache_dir=tmp_path / "cache", offline=True),
    ).results  # fmt: skip
    honest, quiet, loud = made.models
    assert set(honest["recheck"]["differing"].values()) == {0}
    assert "judged-differently" not in [flag["id"] for flag in honest["flags"]]
    assert all(quiet["recheck"]["differing"].values())
    assert loud["recheck"] == {
        "differing": None, "reason": "RuntimeError: nothing is remembered",
    }  # fmt: skip
    for model in (quiet, loud):
        found = {flag["id"]: flag for flag in model["flags"]}
        assert found["judged-differently"]["severity"] == "error"
        assert "in a process of its own" in found["judged-differently"]["evidence"]
