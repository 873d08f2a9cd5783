"""How far a run is, where nobody sees bars."""

import io
import threading
from typing import Any, cast

from bench.base.types import Outcome
from bench.plan.graph import Node, Plan, make_plan
from bench.plan.matrix import parse_matrix
from bench.plugins import discovery
from bench.runner.progress import Tally, lines
from bench.runner.task import Report


def plan() -> Plan:
    discovery.load_plugins()
    table = {
        "name": "m",
        "defense": ["undefended"],
        "attack": [{"name": "fgsm", "eps": [0.1, 0.2]}],
    }
    return make_plan(parse_matrix(table, "m"))


def test_a_line_says_what_ended_how_and_about_what_is_left() -> None:
    made = plan()
    now = 1000.0
    tally = Tally(made, lambda: now)
    fit, probe, *rest = made.nodes
    assert [node.kind for node in made.nodes] == ["fit", "probe", "cell", "cell"]
    now += 3
    assert tally.line() == "3 s: models 0/1, probes 0/1, attacks 0/2"
    tally.observe(fit, Report(Outcome("done"), 1.0, cached=True), False)
    now += 2
    assert tally.line() == "5 s: models 1/1, probes 0/1, attacks 0/2 (1 reused)"
    tally.observe(rest[0], Report(Outcome("done"), 1.0), False)
    now += 19
    tally.observe(rest[1], Report(Outcome("failed", "boom")), False)
    told = "24 s: models 1/1, probes 0/1, attacks 2/2 (1 failed, 1 reused), at least 0 s left"
    assert tally.line() == told
    tally.observe(probe, Report(Outcome("done"), 1.0), False)
    assert "probes 1/1, attacks 2/2" in tally.line()
    assert "about" in tally.line()


def test_the_time_left_is_not_told_from_what_models_and_probes_took() -> None:
    made = plan()
    now = 0.0
    tally = Tally(made, lambda: now)
    fit, probe, first, _ = made.nodes
    now += 1000
    tally.observe(probe, Report(Outcome("done"), 700.0), False)
    tally.observe(first, Report(Outcome("done"), 5.0), False)
    assert tally.line().endswith("models 0/1, probes 1/1, attacks 1/2, at least 5 s left")
    tally.observe(fit, Report(Outcome("done"), 1000.0), False)
    assert tally.line().endswith("models 1/1, probes 1/1, attacks 1/2, about 5 s left")


def test_lines_come_while_nothing_ends_and_one_at_the_end() -> None:
    class Stream(io.StringIO):
        """Tells when the second line has come."""

        second = threading.Event()

        def flush(self) -> None:
            if self.getvalue().count("\n") == 2:
                self.second.set()

    stream = Stream()
    with lines(plan(), stream, every=0.001) as observe:
        assert stream.second.wait(60)
        observe(cast("Node", plan().nodes[0]), cast("Any", Report(Outcome("done"))), True)
    last = stream.getvalue().splitlines()[-1]
    assert last.endswith("models 1/1, probes 0/1, attacks 0/2 (1 reused)")
