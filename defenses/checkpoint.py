"""A model trained elsewhere: its structure from a builder, its weights from a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from bench.base.places import placed
from bench.base.text import reason_of
from bench.base.types import DataInfo, UserError
from bench.handed.adapt import Adapted, Form, Layout, Order, adapt
from bench.handed.weights import (
    PROGRAM,
    SUFFIXES,
    fill,
    program_kind,
    read_program,
    read_weights,
)
from bench.plugins import discovery, registry
from bench.plugins.contracts import BuildContext, Defense, FitContext
from bench.plugins.data import Split
from bench.plugins.parameter import as_network, as_spec


@dataclass(frozen=True)
class Checkpoint(Defense):
    """A model of your own, without a class: ``builder`` makes it, ``weights`` fills it.

    ``weights``: a ``.safetensors`` file, or a ``.pt``, ``.pth``, ``.ckpt`` or ``.bin`` file with a
    state dict or a checkpoint around one, which is read without running code from it; ``part``:
    which one of a checkpoint's, as ``"ema"``. A relative path starts at the matrix's folder, else
    at the current one. Several files, in a list, are the training seeds of one defense.
    ``builder``: ``"my_pkg.models:build"`` or ``"models.py:build"``, called with the ``DataInfo``
    where it takes an argument and with nothing otherwise; or a network's name, as ``"resnet18"``
    or ``"torchvision:resnet50"``; or ``"program"`` for a TorchScript or ``torch.export`` file,
    which runs as code does; by default the matrix's own network.

    The module takes images in [0, 1], unless ``mean`` and ``std`` (``"0.49,0.48,0.45"``, one value
    a channel), ``range`` (``"-1,1"``, ``"0,255"``), ``layout = "nhwc"`` or ``order = "bgr"`` say
    what it was trained on: a wrapper makes that of inputs in [0, 1], and every budget is one of
    these. It returns logits: a tensor, a tuple that begins with it, or an object or dict with
    ``logits``. Half-precision weights are cast to float32. ``expect_accuracy``: what its author
    says, a fraction, held against what is measured.

    Raises UserError for a builder that is not there and a file that does not fit. The file's
    SHA-256, the builder's source and the weights are part of the model's identity.
    """

    whole: ClassVar[tuple[str, ...]] = ("weights", "mean", "std", "range")

    weights: str | list[str] = field(hash=False)
    builder: str | None = None
    part: str | None = None
    mean: str | float | list[float] | None = field(default=None, hash=False)
    std: str | float | list[float] | None = field(default=None, hash=False)
    range: str | list[float] | None = field(default=None, hash=False)
    layout: Layout | None = None
    order: Order = "rgb"
    expect_accuracy: float | None = None

    def __post_init__(self) -> None:
        for name in (names := self._files()):
            if not name.endswith(SUFFIXES):
                raise ValueError(
                    f"weights must be a {', '.join(SUFFIXES)} file, got {name!r}: in a folder "
                    "name the file, or save the model's state dict with "
                    "safetensors.torch.save_file"
                )
        if len(set(names)) < len(names):
            raise ValueError(f"weights names a file twice, which is no further training: {names}")
        # One file is the same defense with brackets and without.
        object.__setattr__(self, "weights", names[0] if len(names) == 1 else names)
        if self.expect_accuracy is not None and not 0 < self.expect_accuracy <= 1:
            raise ValueError(
                f"expect_accuracy must be a fraction, 0.84 for 84 %, got {self.expect_accuracy!r}"
            )
        self.form()
        try:
            self.code()  # a builder that is not there is a mistake of the matrix, not of the run
        except UserError as error:
            raise ValueError(f"builder: {error}") from error

    def form(self) -> Form:
        """Return how the network wants its inputs."""
        return Form.of(self.mean, self.std, self.range, self.layout, self.order)

    def _files(self) -> list[str]:
        return [self.weights] if isinstance(self.weights, str) else list(self.weights)

    def trained(self) -> Sequence[Checkpoint]:
        """Return it with each of its weights: they are its training seeds."""
        return [replace(self, weights=name) for name in self._files()]

    def files(self) -> Sequence[Path]:
        """Name the weights."""
        return [Path(name) for name in self._files()]

    def code(self) -> Sequence[Callable[..., Any]]:
        """Name the builder."""
        if self.builder is None or self.builder == PROGRAM:
            return ()
        table = as_network(self.builder)
        if ":" in self.builder and set(table) == {"name"}:
            return (_callable(self.builder),)
        return (registry.NETWORKS.get(table["name"]),)

    def build(self, context: BuildContext) -> nn.Module:
        """Call the builder, and wrap what it makes where it is not what the harness takes."""
        return self._adapted(context)[0]

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Copy the weights from the file into ``model``; ``train`` is not looked at."""
        self._fill(model)

    def notes(self, context: BuildContext) -> Sequence[str]:
        """Load the model as a run does, and say what was guessed on the way.

        Raises UserError where it cannot be loaded, or does not fit the data of ``context``.
        """
        model, notes = self._adapted(context)
        return (*notes, *self._fill(model))

    def _adapted(self, context: BuildContext) -> tuple[nn.Module, tuple[str, ...]]:
        info = context.info
        model = self._made(context).eval()
        try:
            return adapt(model, self.form(), info.shape, info.classes)
        except UserError as error:
            raise UserError(f"{self.builder or 'the network'} ({self.weights}): {error}") from error

    def _made(self, context: BuildContext) -> nn.Module:
        if self.builder is None:
            return context.network()
        if self.builder == PROGRAM:
            return read_program(self._file())
        table = as_network(self.builder)
        if ":" in self.builder and set(table) == {"name"}:
            return _module(self.builder, context.info)
        try:
            return registry.NETWORKS.make(as_spec(table)).build(context.info)
        except ValueError as error:
            raise UserError(f"builder {self.builder!r}: {error}") from error

    def _fill(self, model: nn.Module) -> tuple[str, ...]:
        if self.builder == PROGRAM:
            return (f"{self.weights} is a {program_kind(self._file())} program",)
        weights = read_weights(self._file(), self.part)
        network = model.network if isinstance(model, Adapted) else model
        return (*weights.notes, *fill(network, weights, str(self.weights)))

    def _file(self) -> Path:
        (name,) = self._files()  # the plan fits one training seed at a time
        return placed(name)


def _callable(reference: str) -> Callable[..., Any]:
    found = discovery.find(reference)
    if not (inspect.isfunction(found) or inspect.isclass(found)):
        raise UserError(f"builder {reference!r} must be a function or a class, got {found!r}")
    return found


def _module(reference: str, info: DataInfo) -> nn.Module:
    builder = _callable(reference)
    required = [
        parameter
        for parameter in inspect.signature(builder).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(required) > 1 or any(item.kind is item.KEYWORD_ONLY for item in required):
        names = ", ".join(item.name for item in required)
        raise UserError(
            f"builder {reference!r} must take no argument or the DataInfo alone, "
            f"and it needs {names}: give the others defaults"
        )
    try:
        model = builder(info) if required else builder()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"builder {reference!r} raises {reason_of(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(
            f"builder {reference!r} must return a torch.nn.Module, got {type(model).__name__}"
        )
    return model
