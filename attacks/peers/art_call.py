"""Run one ART evasion class on tensors, and leave no trace of it.

The model is hidden behind a plain function, for ART unrolls what it recognises; modes, gradients
and every global generator are put back afterwards.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from attacks.peers.art_table import Mapped, row_of
from bench.base.types import DataInfo, UserError
from bench.plugins.contracts import AttackContext


@dataclass(frozen=True)
class Call:
    """A mapped ART class, its keywords, and what its loss gradients differentiate.

    ``output`` replaces what the class is usually given. ``loss`` is called with logits and
    one-hot labels (default: cross-entropy); it sums over rows, so that no row depends on its
    neighbours.
    """

    attack: str
    params: Mapping[str, Any]
    loss: nn.Module | None = None
    output: Literal["logits", "probs"] | None = None


def generate(
    call: Call,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    target: Tensor | None,
    context: AttackContext,
) -> Tensor:
    """Run an ART attack; return ``x_adv``, of the shape, dtype and device of ``x``.

    ``x``: (batch, *shape) in [0, 1]; ``y``, ``target``: (batch,) int64, ``target`` None for an
    untargeted attempt. ART works in float32. Rows that the model misclassifies are left as they
    are by a class that ignores ``y``, which would otherwise move them towards it. The model, its
    mode and gradients, and every global generator are left as they were.
    """
    row = row_of(call.attack)
    row = replace(row, output=call.output or row.output)
    x_adv = x.detach().clone()
    with _sandbox(x.device, context.seed), _frozen(model):
        rows = torch.ones(len(x), dtype=torch.bool, device=x.device)
        if row.ignores_y and target is None and len(x):
            with torch.no_grad():
                rows = model(x).argmax(1) == y
        if rows.any():
            function = Queried(model, row, x.dtype)
            classifier = classifier_of(function, x.device, context.info, call.loss)
            attack = build(call.attack, call.params, classifier, targeted=target is not None)
            goal = y if target is None else target
            onehot = np.eye(context.info.classes, dtype=np.float32)[goal[rows].cpu().numpy()]
            x_adv[rows] = _run(attack, x_adv[rows], onehot, row)
    return x_adv


def _run(attack: Any, x: Tensor, y: np.ndarray, row: Mapped) -> Tensor:
    clean = x.cpu().numpy()
    inputs = clean.astype(np.float32) * np.float32(_scale(row))
    size = 1 if row.alone else len(x)
    output = np.concatenate(
        [
            attack.generate(inputs[i : i + size].copy(), y[i : i + size])
            for i in range(0, len(x), size)
        ]
    )
    if row.levels:  # undo our own scaling, exactly where nothing changed
        output = np.where(output == inputs, clean, output / _scale(row))
    return torch.from_numpy(output).to(x)


class Queried(nn.Module):
    """A model as a function: ART sees no parameters to move, no mode to switch, no gradients.

    It is no ``nn.Sequential`` either, whose layers ART would call one by one, past the hooks and
    the ``forward`` of the whole.
    """

    def __init__(self, model: nn.Module, row: Mapped, dtype: torch.dtype) -> None:
        super().__init__()
        self.scale = _scale(row)
        self._hidden = (model, row.output, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the class asks for, logits or probabilities, of ``x`` on its own scale."""
        model, output, dtype = self._hidden
        logits: Tensor = model((x if self.scale == 1 else x / self.scale).to(dtype))
        return logits.softmax(1) if output == "probs" else logits


def classifier_of(
    function: Queried, device: torch.device, info: DataInfo, loss: nn.Module | None = None
) -> Any:
    """Return ART's classifier around ``function``; ``loss`` sums over rows."""
    return art_module("art.estimators.classification").PyTorchClassifier(
        model=function,
        loss=loss or nn.CrossEntropyLoss(reduction="sum"),
        input_shape=tuple(info.shape),
        nb_classes=info.classes,
        clip_values=(0.0, function.scale),
        device_type="gpu" if device.type == "cuda" else "cpu",
    )


def build(name: str, params: Mapping[str, Any], classifier: Any, *, targeted: bool) -> Any:
    """Make the ART attack, quiet, with Python values for what a matrix file writes otherwise."""
    known = keywords(name)
    values = {k: to_python(v, known[k]) for k, v in params.items()}
    for key, value in {"targeted": targeted, "verbose": False}.items():
        if key in known:
            values.setdefault(key, value)
    if "attacker_params" in known:
        values["attacker_params"] = _inner(values, targeted=targeted)
    attack = art_module("art.attacks.evasion").__dict__[name](classifier, **values)
    for inner in getattr(attack, "attacks", []):
        inner.verbose = False
    return attack


def _inner(values: Mapping[str, Any], *, targeted: bool) -> dict[str, Any] | None:
    """Return the parameters of a universal attack's inner one, which ART makes untargeted."""
    params = {} if values["attacker"] == "fgsm" else {"verbose": False}
    if targeted:
        params["targeted"] = True
    return {**params, **(values["attacker_params"] or {})} or None


def keywords(name: str) -> dict[str, Any]:
    """Return the keywords of ART's class with their defaults, without the estimator."""
    evasion = art_module("art.attacks.evasion")
    if not hasattr(evasion, name):
        raise UserError(f"the installed ART {art_module('art').__version__} has no {name}")
    parameters = list(inspect.signature(getattr(evasion, name)).parameters.values())
    return {p.name: p.default for p in parameters[1:]}


def to_python(value: Any, default: Any) -> Any:
    """Return what ART takes for a JSON value: infinity for "inf", a tuple where ART has one."""
    if value == "inf" and not isinstance(default, str):
        return np.inf
    return tuple(value) if isinstance(value, list) and isinstance(default, tuple) else value


def art_module(module: str) -> ModuleType:
    """Import a module of ART; raises UserError where ART is missing or broken."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken installation raises anything
        raise UserError(
            "ART is missing or broken: pip install adversarial-robustness-toolbox "
            f"({type(error).__name__}: {error})"
        ) from error


def _scale(row: Mapped) -> float:
    return 255.0 if row.levels else 1.0


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no gradient reach the parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    _require_grad(trained, on=False)
    try:
        yield
    finally:
        _require_grad(trained, on=True)


def _require_grad(parameters: Iterable[nn.Parameter], *, on: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(on)


class _SeededState(np.random.RandomState):
    """Unseeded, as HopSkipJump and BoundaryAttack make it, it follows the global generator."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(np.random.randint(2**31) if seed is None else seed)


@contextmanager
def _sandbox(device: torch.device, seed: int) -> Iterator[None]:
    """Seed what ART draws from, silence its log, and restore both."""
    cuda = device.type == "cuda"
    log = logging.getLogger("art")
    states = np.random.get_state(), random.getstate(), log.level
    try:
        with (
            torch.random.fork_rng([device] if cuda else []),
            torch.cuda.device(device) if cuda else nullcontext(),
            patch.object(np.random, "RandomState", _SeededState),
        ):
            np.random.seed(seed % 2**32)
            random.seed(seed)
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed(seed)
            log.setLevel(logging.CRITICAL)
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
        log.setLevel(states[2])
