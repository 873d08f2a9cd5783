"""Rows as a run on MNIST would leave them, with whatever figures a test wants."""

from typing import Any

from bench.base.rows import Results
from bench.results.model_metrics import EDGES

Row = dict[str, Any]

ENVIRONMENT = {
    "matrix": {"name": "m", "description": "", "seeds": [0], "sources": 100},
    "dataset": "mnist", "network": "n", "recipe": "r", "retort": "1", "device": "CPU",
    "libraries": {"torch": "2"},
}  # fmt: skip

L0 = {"norm": "l0", "budget": 1 / 7, "unit": "features"}
LINF = {"norm": "linf", "budget": 0.2, "unit": "input"}


def who(defense: str, temperature: float | None = None, seed: int = 0) -> Row:
    params = {} if temperature is None else {"temperature": float(temperature)}
    return {
        "dataset": "mnist", "network": "n", "recipe": "r", "defense": defense,
        "defense_params": params, "seed": seed,
    }  # fmt: skip


def cell(of: Row, rate: float | None, output: str = "probs", **changes: Any) -> Row:
    """One JSMA row, or one of FGSM with ``attack="fgsm"``; ``view``: precision and temperature."""
    attack = changes.pop("attack", "jsma")
    view = changes.pop("view", {})
    targets = "all" if attack == "jsma" else "untargeted"
    known = rate is not None
    base = {
        "id": f"{of['defense']}-{of['defense_params']}-{of['seed']}-{attack}-{output}-{view}",
        **of, "attack": attack,
        "attack_params": {"output": output, "targets": targets, "precision": "float32",
                          "temperature": 1.0, **view},
        "threat": L0 if attack == "jsma" else LINF, "status": "done", "reason": None,
        "sources": 100, "attempts": 900, "successes": round(900 * rate) if known else None,
        "success_rate": rate,
        "success_ci": [max(0.0, rate - 0.02), min(1.0, rate + 0.02)] if known else None,
        "rho_adv": None, "rho_adv_paper": None, "features_all": None, "features_success": None,
        "rho_censored": None, "stop_reasons": None, "zero_gradient_share": None, "paired": None,
        "accuracy": 0.99, "accuracy_ci": [0.98, 1.0], "confidence": 0.9, "max_logit": 3.0,
        "logit_gap": 2.0, "worst_case": 0.5, "worst_case_ci": [0.4, 0.6], "flags": [],
    }  # fmt: skip
    return {**base, **changes}


def model(of: Row, scale: float = 6.0, **changes: Any) -> Row:
    counts = [0] * (len(EDGES) + 1)
    counts[len(EDGES) - min(len(EDGES) - 1, int(scale / 30))] = 1000
    base = {
        "id": f"fit-{of['defense']}-{of['defense_params']}-{of['seed']}", **of, "status": "done",
        "parameters": 1000, "errors": {}, "accuracy": 0.99, "accuracy_ci": [0.988, 0.992],
        "confidence": 0.985, "test_samples": 10000, "train_accuracy": 0.999,
        "generalisation_gap": 0.009, "mean_abs_logit": scale, "max_logit": 2 * scale,
        "max_logit_ci": [1.9 * scale, 2.1 * scale], "logit_gap": scale,
        "logit_gap_ci": [0.9 * scale, 1.1 * scale], "ece": 0.01, "reliability": [],
        "sensitivity": {
            "samples": 1000, "median_log10": -scale, "edges_log10": list(EDGES), "counts": counts,
            "large": 400, "tiny": 1, "float32_zero": 2, "jacobian_samples": 100,
            "jacobian_median_log10": -scale,
        },
        "gradients": {"zero_share": 0.0, "cosine_median": 1.0}, "flags": [], "not_evaluated": {},
    }  # fmt: skip
    return {**base, **changes}


def sweep_results() -> Results:
    """What a prototype found on MNIST, roughly, at all nine temperatures."""
    rates = {1: 0.95, 2: 0.9, 5: 0.49, 10: 0.1, 20: 0.0056, 30: 0.004, 40: 0.003, 50: 0.002,
             100: 0.0011}  # fmt: skip
    plain = who("undefended")
    cells, models = list(_three(plain, 0.961, 0.0214)), [model(plain)]
    for kind in ("distillation", "temperature_only"):
        for temperature, rate in rates.items():
            of = who(kind, temperature)
            cells += _three(of, rate, 0.14 - 0.12 * rate)
            models.append(model(of, 6.0 * temperature, accuracy=0.99 - temperature / 1e4))
    soft = who("soft_label")
    return Results([*cells, *_three(soft, 0.8, 0.03)], [*models, model(soft)], [])


def _three(of: Row, rate: float, rho: float) -> list[Row]:
    stuck = {"reached": round(900 * rate), "no_admissible_pair": 900 - round(900 * rate)}
    shares = {"rho_adv": rho, "rho_adv_paper": 0.99 * rho, "rho_censored": 0.1}
    beneath = {"baseline": "b", "delta": -0.03, "ci": [-0.05, -0.01]}
    return [
        cell(of, rate, stop_reasons=stuck, features_all=rho + 0.05, features_success=0.06,
             **shares),
        cell(of, 0.66, "logits"),
        cell(of, 0.93, "log_odds", rho_adv=0.0208, rho_adv_paper=0.02, rho_censored=0.0,
             paired=None if of["defense"] == "undefended" else beneath),
    ]  # fmt: skip
