"""Adversarial inputs made elsewhere, judged like any attack's output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.base.places import placed
from bench.base.types import Access, Norm, Targets, ThreatModel, Unit, UserError
from bench.plugins.contracts import NOT_SUBMITTED, Attack, AttackContext, Perturbation

Index = Mapping[tuple[int, int | None], int]
"""Row of the file by sample id and target; the target is None where nothing was aimed at."""


@dataclass(frozen=True)
class Submission(Attack):
    """A file of adversarial inputs, submitted under a threat model of your own.

    ``inputs``: a ``.safetensors`` file with ``x_adv`` (n, *shape) float32 and ``sample_ids`` (n,),
    the index of each row's source in the test split; a relative path starts at the current
    folder. ``norm``, ``budget`` and ``unit`` are the threat model (see ``bench.ThreatModel``;
    without a budget it is minimum-norm); ``unit`` is ``features`` for l0 unless told otherwise.

    ``targets = "untargeted"`` takes one row a sample. Any other takes rows with a ``target`` (n,),
    one row for each sample and target. Several rows for one attempt are refused: put them in
    several files, which ``inputs = ["a.safetensors", "b.safetensors"]`` submits one after the
    other; all count in the worst case. An attempt without a row keeps its clean input, has the
    stop reason ``not_submitted``, and is no success. Rows of samples that the run does not attack
    are left aside.
    """

    inputs: str
    norm: Norm
    budget: float | None = None
    unit: Unit | None = None
    targets: Targets = "untargeted"

    def __post_init__(self) -> None:
        if not self.inputs.endswith(".safetensors"):
            raise ValueError(f"inputs must be a .safetensors file, got {self.inputs!r}")
        self.threat((1,))

    @property
    def access(self) -> Access:
        """Nothing of the model is seen here: the inputs come from elsewhere."""
        return "transfer"

    def files(self) -> Sequence[Path]:
        """Name the file of inputs."""
        return (Path(self.inputs),)

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return the threat model that was given."""
        return ThreatModel(
            self.norm, self.budget, self.unit or ("features" if self.norm == "l0" else "input")
        )

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Look up each row of ``x`` by its sample id (and ``target``); no query is made."""
        if context.sample_ids is None:
            raise ValueError("a submission needs context.sample_ids: which samples the rows are")
        x_adv, index = read_submission(self.inputs, tuple(x.shape[1:]), target is not None)
        targets = [None] * len(x) if target is None else target.tolist()
        rows = [index.get(key) for key in zip(context.sample_ids.tolist(), targets, strict=True)]
        result = x.clone()
        for position, row in enumerate(rows):
            if row is not None:
                result[position] = x_adv[row].to(x)
        reasons = [NOT_SUBMITTED if row is None else "submitted" for row in rows]
        return Perturbation(result, stop_reason=reasons)


def read_submission(path: str, shape: tuple[int, ...], targeted: bool) -> tuple[Tensor, Index]:
    """Return the inputs of a file and where each stands; raises UserError where it is malformed."""
    tensors = _read(path)
    wanted = ("x_adv", "sample_ids", "target") if targeted else ("x_adv", "sample_ids")
    if lacking := [name for name in wanted if name not in tensors]:
        held = ", ".join(sorted(tensors)) or "nothing"
        raise UserError(f"{path}: has no tensor {lacking[0]!r}; it holds {held}")
    if "target" in tensors and not targeted:
        raise UserError(
            f'{path}: holds targets: say targets = "all" to judge each against its own, '
            "or leave them out of the file to judge any misclassification"
        )
    x_adv = tensors["x_adv"]
    if x_adv.dtype != torch.float32 or tuple(x_adv.shape[1:]) != shape:
        raise UserError(
            f"{path}: x_adv must be float32 (n, {', '.join(map(str, shape))}), "
            f"got {x_adv.dtype} {tuple(x_adv.shape)}"
        )
    columns = [_integers(path, name, tensors[name], len(x_adv)) for name in wanted[1:]]
    keys = list(zip(*columns, strict=True)) if targeted else [(i, None) for i in columns[0]]
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        sample, aim = twice[0]
        what = f"sample {sample}" + ("" if aim is None else f" and target {aim}")
        raise UserError(
            f"{path}: {len(twice)} attempts have several rows ({what} is one): put them in "
            "several files and list those under inputs; all count in the worst case"
        )
    return x_adv, {key: row for row, key in enumerate(keys)}


def _read(path: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(placed(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors: {error}") from error


def _integers(path: str, name: str, column: Tensor, rows: int) -> list[int]:
    if column.shape != (rows,) or column.is_floating_point() or column.dtype == torch.bool:
        raise UserError(
            f"{path}: {name} must be ({rows},) integers, as many as x_adv has rows, "
            f"got {column.dtype} {tuple(column.shape)}"
        )
    values: list[int] = column.tolist()
    if values and min(values) < 0:
        raise UserError(f"{path}: {name} must not be negative, got {min(values)}")
    return values
