"""Networks of known truth: honest ones of many kinds, and dishonest ones with the flags they earn.

``own`` flags follow from what a defense does, not from what was measured: those that have to rise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from bench.base.types import Norm
from bench.plugins import discovery
from tests.cheats import truth

CHEATS = Path(truth.__file__).parent
GRADIENT, BOX, FREE = "gradient-mismatch", "black-box-beats-gradient", "unbounded-budget"
ZERO, TURNED = "zero-gradient", "gradient-direction"


@dataclass(frozen=True)
class Kind:
    """A defense and what is true of it. ``own``: flags that must rise; none of an honest one.

    ``norms``: under which its panel is run, none where its flags are those of the model alone.
    """

    name: str
    params: dict[str, Any]
    own: tuple[str, ...] = ()
    norms: tuple[Norm, ...] = ()

    @property
    def honest(self) -> bool:
        """Whether nothing may rise."""
        return not self.own

    @property
    def label(self) -> str:
        """The name and what makes it another one."""
        shown = " ".join(f"{key}={value}" for key, value in self.params.items())
        return f"{self.name} {shown}".strip()


SEEDS, PANEL_SEEDS, DISHONEST_SEEDS = 5, 2, 2
"""Training seeds, from 0 on: of the flags of honest models, of their panels, of dishonest ones."""

BOTH: tuple[Norm, ...] = ("linf", "l0")


def population() -> list[Kind]:
    """Return all kinds, the honest ones first; their plugins are loaded."""
    discovery.load_plugins([str(file) for file in CHEATS.glob("[!t_]*.py")])
    discovery.load_plugins(["defenses.canaries"])
    return [*_honest(), *_dishonest()]


def _honest() -> list[Kind]:
    built_in: list[tuple[str, dict[str, Any]]] = [
        ("undefended", {}),
        ("twin", {}),
        ("label_smoothing", {}),
        *[("adversarial_training", {"eps": eps}) for eps in (0.1, 0.2)],
        ("trades", {}),
        ("virtual_adversarial_training", {}),
        ("weight_decay", {}),
    ]
    kinds = get_args(truth.plugin("honest").Kind)
    unusual = [("honest", {"kind": kind}) for kind in kinds]
    return [Kind(name, params, norms=BOTH) for name, params in [*built_in, *unusual]]


def _dishonest() -> list[Kind]:
    hidden = [
        *[Kind("cheat_decoy_gradient", params, (GRADIENT,)) for params in
          ({}, {"of": "untrained"}, {"where": "off_grid"})],
        *[Kind("cheat_rippled_input", params, (GRADIENT,)) for params in
          ({}, {"slope": 200.0}, {"waves": 3})],
        Kind("cheat_rippled_logits", {}, (GRADIENT,)),
        *[Kind("cheat_altered_gradient", {"way": way}, (GRADIENT,)) for way in
          ("underflow", "nan", "top_zero", "noise", "constant", "smallest_only")],
        *[Kind("cheat_altered_gradient", {"way": way}, (GRADIENT, BOX), BOTH)
          for way in ("shuffle", "sign")],
        *[Kind(f"cheat_{name}", {}, (GRADIENT,)) for name in
          ("masked_on_grid", "turned_off_grid", "root_square", "k_winners", "thermometer",
           "purified", "median", "near_data", "nearest", "autoencoder", "tired_gradient")],
        *[Kind("cheat_stairs", {"gradient": way}, (GRADIENT,)) for way in ("helpful", "steep")],
        *[Kind("cheat_over", {"hides": hides, "inside": inside}, (GRADIENT,))
          for hides in ("ripple", "decoy", "stairs", "shuffle", "zero", "winners")
          for inside in ("robust", "smoothed")],
        *[Kind("cheat_dither", {"by": by}, (GRADIENT,)) for by in ("row",)],
        Kind("canary_detached", {}, (ZERO, GRADIENT, BOX, FREE), ("linf",)),
        Kind("canary_quantised_logits", {}, (ZERO, GRADIENT, BOX, FREE), ("linf",)),
        Kind("canary_quantised_inputs", {}, (ZERO, GRADIENT, BOX, FREE), ("linf",)),
        Kind("canary_no_graph", {}, (ZERO, GRADIENT)),
        Kind("canary_misleading", {}, (GRADIENT, BOX, FREE), ("linf",)),
    ]  # fmt: skip
    saturated = (ZERO, TURNED, "naive-beaten", "log-odds-beats-probs")
    scaled = [
        *[Kind("distillation", {"temperature": t}, saturated, BOTH) for t in (20, 100)],
        Kind("canary_scaled_logits", {}, saturated, BOTH),
        Kind("cheat_scale", {"factor": 1000.0}, saturated, BOTH),
        *[Kind("cheat_shaped_logits", {"shape": shape}, ("probabilities",))
          for shape in ("softmax",)],
        Kind("canary_probabilities", {}, ("probabilities",)),
        Kind("canary_constant", {}, ("chance",)),
    ]  # fmt: skip
    silent = [
        *[Kind("cheat_silent_unsure", {"form": form}, ("no-answer",)) for form in ("tie", "nan")],
        *[Kind(f"cheat_silent_{place}", {"form": "nan"}, ("no-answer",))
          for place in ("off_data", "off_grid")],
    ]  # fmt: skip
    other = [
        *[Kind(f"cheat_{name}", {}, ("stateful",)) for name in
          ("first_batch", "all_seen", "shared_memory", "disk_memory")],
        *[Kind("cheat_dither", {"by": by}, ("batch-dependent",)) for by in ("batch", "place")],
        *[Kind(f"cheat_{name}", {}, ("batch-dependent",)) for name in
          ("batch_statistics", "vote")],
        *[Kind("cheat_two_faced", {"sign": sign}, ("batch-dependent",))
          for sign in ("batch", "gradient")],
        Kind("cheat_drift", {}, ("stochastic",)),
        Kind("cheat_alternating", {"by": "call"}, ("stochastic",)),
        *[Kind("cheat_undeclared_noise", {"share": share}, ("stochastic",)) for share in (1.0,)],
        Kind("cheat_trivial_surrogate", {}, ("surrogate",)),
        *[Kind("cheat_bad_surrogate", {"of": of}, ("surrogate", GRADIENT))
          for of in ("zero",)],
        Kind("cheat_random_network", {}, ("surrogate",)),
        *[Kind("cheat_routed", {"by": by}, ("routed",)) for by in ("components", "nearest")],
    ]  # fmt: skip
    return [*hidden, *scaled, *silent, *other]
