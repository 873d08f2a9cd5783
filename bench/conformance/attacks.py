"""The checks of an attack: what it returns, and what it leaves as it was."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bench.base.types import Access, Targets, ThreatModel
from bench.conformance.checks import Checks
from bench.conformance.data import TINY, tiny_model
from bench.conformance.models import fitted, same_weights
from bench.measure.cell import Evidence, Sources, attack_sources, choose_attempts
from bench.measure.query import predict
from bench.plugins import registry
from bench.plugins.contracts import LEARNT, Attack, AttackContext, LearningAttack
from bench.plugins.data import Dataset
from bench.training.fit import fit_attack

SOURCES = 8

ROUNDING = 1e-3
"""How far an input may move where other rows are attacked beside it: other batches round."""

CHAOTIC = 0.25
"""The share of inputs that may move further: some attacks let rounding grow."""


@dataclass(frozen=True)
class _Trial:
    """An attack with a model to attack, sources, and what a run would tell it."""

    attack: Attack
    model: nn.Module
    sources: Sources
    context: AttackContext

    def evidence(self, rows: int = SOURCES, *, last: bool = False) -> Evidence:
        """Attack the first ``rows`` sources as a run does, seeded as a worker is.

        ``last``: the second half of them alone.
        """
        given, start = self.sources, rows // 2 if last else 0
        some = slice(start, rows)
        chosen = Sources(given.ids[some], given.x[some], given.y[some], given.seed, start)
        with torch.random.fork_rng(devices=[]):
            seed_all(0)
            # A copy: what the attack leaves behind must not hide what it does the next time.
            return attack_sources(copy.deepcopy(self.model), self.attack, chosen, self.context)


def seed_all(seed: int) -> None:
    """Seed every global generator, as a worker does before a task."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def attack_checks(checks: Checks, attack: Attack, data: Dataset) -> None:
    """Attack a small network as a run would, and look at what comes back."""
    if not checks.run("threat model", lambda: _declared(attack, data)):
        return
    if reason := attack.unavailable():
        checks.skip("behaviour", reason)
        return
    found: list[_Trial] = []
    if not checks.run("requirements", lambda: found.append(_trial(attack, data))):
        return
    if isinstance(attack, LearningAttack) and not _learns(checks, attack, found, data):
        return
    trial, done = found[-1], list[Evidence]()
    if not checks.run("output", lambda: done.append(trial.evidence())):
        return
    evidence = done[0]
    rows = evidence.records[evidence.records["status"] == "attacked"]
    limit = attack.threat(data.info.shape)
    checks.run("box", lambda: _share(~rows["in_box"], "leave [0, 1] or are not finite"))
    checks.run("budget", lambda: _share(~rows["in_budget"], f"exceed {limit}"))
    checks.run("effect", lambda: _effect(rows["linf"]))
    checks.run("access", lambda: _access(attack, evidence))
    checks.run("same output", lambda: _same(evidence, trial.evidence()))
    checks.run("a single row", lambda: _run(trial, 1))
    if attack.rowwise:
        checks.run("row by row", lambda: _row_by_row(trial, evidence))
    checks.run("side effects", lambda: _side_effects(trial))


def _declared(attack: Attack, data: Dataset) -> str | None:
    threat = attack.threat(data.info.shape)
    if not isinstance(threat, ThreatModel):
        return f"threat returns {type(threat).__name__}"
    if hasattr(attack, "fit") and not isinstance(attack, LearningAttack):
        return "it has a method fit, which nobody calls: subclass bench.LearningAttack"
    if attack.targets not in get_args(Targets):
        return f"targets is {attack.targets!r}, valid: {', '.join(get_args(Targets))}"
    if attack.access not in get_args(Access):
        return f"access is {attack.access!r}, valid: {', '.join(get_args(Access))}"
    return None


def _trial(attack: Attack, data: Dataset) -> _Trial:
    required = {name: fitted(needed, data) for name, needed in attack.requires().items()}
    ids = torch.arange(min(SOURCES, len(data.test)))
    sources = Sources(ids, data.test.x[ids], data.test.y[ids])
    context = AttackContext(data.info, 0, required)
    return _Trial(attack, tiny_model(data), sources, context)


def _learns(checks: Checks, attack: LearningAttack, found: list[_Trial], data: Dataset) -> bool:
    """Let an attack learn what it needs, and add the trial in which it has that to ``found``."""
    (trial,), modules = found, list[nn.Module]()
    own = replace(trial, model=copy.deepcopy(trial.model))
    if not checks.run("fit of an attack", lambda: modules.append(_fit(attack, own, data))):
        return False
    checks.run("what it learns from", lambda: _untouched(attack, trial, data))
    checks.run("same fit", lambda: same_weights(modules[0], _fit(attack, trial, data)))
    fitted = {**trial.context.fitted, LEARNT: _rebuilt(attack, modules[0], data)}
    found.append(replace(trial, context=replace(trial.context, fitted=fitted)))
    return True


def _fit(attack: LearningAttack, trial: _Trial, data: Dataset) -> nn.Module:
    """Return what ``attack`` learns about the model of ``trial``, seeded as a worker is."""
    with torch.random.fork_rng(devices=[]):
        seed_all(0)
        return fit_attack(
            attack.fitted_as(),
            trial.model,
            data,
            TINY,
            0,
            trial.context.fitted,
            registry.ATTACKS.make,
        )


def _rebuilt(attack: LearningAttack, module: nn.Module, data: Dataset) -> nn.Module:
    again = attack.fitted_as().build(data.info)
    again.load_state_dict({name: value.clone() for name, value in module.state_dict().items()})
    return again.eval().requires_grad_(False)


def _untouched(attack: LearningAttack, trial: _Trial, data: Dataset) -> str | None:
    """Fit on a model of its own, and look at that and at the data after."""
    model, kept = copy.deepcopy(trial.model), data.train.x.clone()
    state, weights = _state(model), _weights(model)
    _fit(attack, replace(trial, model=model), data)
    if not torch.equal(kept, data.train.x):
        return "fit changes train.x"
    return _changed(model, state, weights, "fit")


def _share(broken: Any, what: str) -> str | None:
    return f"{int(broken.sum())} of {len(broken)} outputs {what}" if broken.any() else None


def _effect(linf: Any) -> str | None:
    return None if (linf > 0).any() else "not one input is changed, on an undefended network"


def _access(attack: Attack, evidence: Evidence) -> str | None:
    if attack.access != "gradients" and evidence.backwards:
        return f"it declares {attack.access!r} and takes gradients"
    if attack.access == "transfer" and evidence.forwards:
        return "it declares 'transfer' and queries the model"
    return None


def _same(first: Evidence, second: Evidence) -> str | None:
    differing = int((first.x_adv != second.x_adv).flatten(1).any(dim=1).sum())
    if differing:
        return f"{differing} of {len(first.x_adv)} outputs differ in a second run"
    return None


def _row_by_row(trial: _Trial, whole: Evidence) -> str | None:
    """Hold the last sources attacked without the first against the same ones attacked with them."""
    some = trial.sources.ids[SOURCES // 2 :]
    alone = trial.evidence(last=True)
    attempts = (whole.records["status"] != "seen").to_numpy()
    rows = np.isin(whole.records["sample_id"], some.numpy()) & attempts
    kept = (alone.records["status"] != "seen").to_numpy(copy=True)
    first, second = whole.x_adv[rows], alone.x_adv[kept]
    if first.shape == second.shape:
        apart = (first - second).flatten(1).abs().amax(dim=1) > ROUNDING
        if apart.double().mean() <= CHAOTIC:
            return None
    return "it declares itself rowwise, and what becomes of a row depends on the other rows"


def _run(trial: _Trial, rows: int) -> None:
    trial.evidence(rows)


def _side_effects(trial: _Trial) -> str | None:
    attack, model, sources = trial.attack, copy.deepcopy(trial.model), trial.sources
    clean = predict(model, sources.x, trial.context.info.classes)
    attempts = choose_attempts(clean, sources, attack.targets, trial.context.info.classes)
    rows = attempts.source[attempts.attacked]
    target = attempts.target[attempts.attacked] if attack.targeted else None
    given = [sources.x[rows], sources.y[rows], *([] if target is None else [target])]
    kept = [tensor.clone() for tensor in given]
    state, weights = _state(model), _weights(model)
    seed_all(0)
    context = replace(trial.context, sample_ids=sources.ids[rows])
    attack.perturb(model, given[0], given[1], target, context)
    for name, before, after in zip(("x", "y", "target"), kept, given, strict=False):
        if not torch.equal(before, after) or after.requires_grad:
            return f"perturb changes {name}"
    return _changed(model, state, weights, "perturb")


def _changed(
    model: nn.Module, state: dict[str, list[Any]], weights: dict[str, Tensor], what: str
) -> str | None:
    if any(not torch.equal(weights[name], value) for name, value in model.state_dict().items()):
        return f"{what} changes the model's weights or buffers"
    changed = [name for name, value in _state(model).items() if value != state[name]]
    return f"{what} changes the model's {', '.join(changed)}" if changed else None


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _state(model: nn.Module) -> dict[str, list[Any]]:
    modules, parameters = list(model.modules()), list(model.parameters())
    return {
        "mode (train or eval)": [module.training for module in modules],
        "requires_grad": [parameter.requires_grad for parameter in parameters],
        "gradients (.grad)": [parameter.grad is None for parameter in parameters],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],  # noqa: SLF001 (there is no other way to count them)
    }
