"""What the command ``judge`` was handed, and the question that it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.base.types import Document, UserError
from bench.judging.question import Question, checkpoint, placed_builder, slug, travelling
from bench.plugins import discovery, registry
from bench.plugins.parameter import as_dataset


@dataclass(frozen=True)
class Handed:
    """The words of a command: builders, files, a budget. Paths start at the current folder.

    ``form``: parameters of ``checkpoint`` that say how all networks given want their inputs;
    ``images``: those of ``image-folder``, for a folder as ``data``.
    """

    builder: str | None
    weights: Sequence[str]
    norm: str
    budgets: Sequence[str]
    dataset: str | None = None
    data: str | None = None
    reference: str | None = None
    reference_weights: Sequence[str] = ()
    transfer_from: Sequence[str] = ()
    sources: str = "100"
    form: Mapping[str, Any] = field(default_factory=dict)
    expect_accuracy: float | None = None
    name: str | None = None
    images: Mapping[str, Any] = field(default_factory=dict)

    def question(self, out: Path | None) -> Question:
        """Return the question, its paths as they start at its results folder ``out``.

        None: the folder that is named after it. Raises UserError where something is missing.
        """
        self._check()
        discovery.load_plugins()
        made = self._question(None)
        return self._question((out or made.folder()).absolute())

    def _check(self) -> None:
        if not self.weights:
            raise UserError("judge needs --weights: a file for each training seed of the network")
        if not self.budgets:
            raise UserError("judge needs --budget: how much may change, as 8/255 or 0.1")
        if (self.dataset is None) == (self.data is None):
            raise UserError(
                "judge needs test data: --dataset NAME for one that comes with it, or --data FILE"
            )
        if not (self.sources == "all" or self.sources.isdecimal()):
            raise UserError(f"--sources takes a whole number or all, got {self.sources!r}")

    def _question(self, folder: Path | None) -> Question:
        home = folder or Path.cwd()
        expected = {} if self.expect_accuracy is None else {"expect_accuracy": self.expect_accuracy}
        return Question(
            name=slug(self.name or f"judge-{self._called()}"),
            defense={**self._model(self.builder, self.weights, home), **expected},
            dataset=self._data(home),
            norm=self.norm,
            budgets=[_number(text, self.norm) for text in self.budgets],
            reference=self._reference(home),
            transfer_from=[self._source(item, home) for item in self.transfer_from],
            sources=self.sources if self.sources == "all" else int(self.sources),
        )

    def _called(self) -> str:
        if self.builder is None:
            return Path(self.weights[0]).stem
        source, _, name = self.builder.rpartition(":")
        return f"{Path(source).stem}-{name}" if source else name

    def _model(self, builder: str | None, weights: Sequence[str], home: Path) -> Document:
        placed = None if builder is None else placed_builder(builder, home)
        return checkpoint(placed, [travelling(path, home) for path in weights], self.form)

    def _data(self, home: Path) -> Document:
        images = {key: value for key, value in self.images.items() if value is not None}
        folder = self.data is not None and Path(self.data).is_dir()
        if images and not folder:
            raise UserError(f"--{min(images)} is for a folder of images, and --data names none")
        if self.data is None:
            return {"name": str(self.dataset)}
        if folder:
            path = travelling(self.data, home)
            return {"name": "image-folder", "path": f"{path.rstrip('/')}/", **images}
        table = as_dataset(self.data)
        if "path" not in table:
            raise UserError(
                f"--data {self.data!r}: a .npz or .safetensors file or a folder of images is "
                "expected, and no such folder is here; --dataset takes a name"
            )
        return {**table, "path": travelling(table["path"], home)}

    def _reference(self, home: Path) -> Document | None:
        if self.reference_weights:
            return self._model(self.reference or self.builder, self.reference_weights, home)
        if self.reference is None or self.reference == "none":
            return None
        if self.reference not in registry.DEFENSES.names():
            raise UserError(
                f"--reference {self.reference!r} needs --reference-weights, unless it is a defense "
                "that can be trained here, as undefended"
            )
        return {"name": self.reference}

    def _source(self, item: str, home: Path) -> Document:
        builder, _, weights = ("", "", item) if Path(item).exists() else item.rpartition("=")
        if not builder and weights in registry.DEFENSES.names():
            return {"name": weights}
        return self._model(builder or self.builder, [weights], home)


def _number(text: str, norm: str) -> float | str:
    try:
        return int(text) if norm == "l0" else float(text)
    except ValueError:
        return text  # as "8/255"; a panel says what it takes
