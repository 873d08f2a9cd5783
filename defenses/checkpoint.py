"""A model trained elsewhere: its structure from a builder, its weights from a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.base.places import placed
from bench.base.types import DataInfo, Spec, UserError
from bench.plugins import discovery, registry
from bench.plugins.contracts import BuildContext, Defense, FitContext
from bench.plugins.data import Split

SUFFIXES = (".safetensors", ".pt", ".pth")


@dataclass(frozen=True)
class Checkpoint(Defense):
    """A model of your own, without a class: ``builder`` makes it, ``weights`` fills it.

    ``weights``: a ``.safetensors`` file, or a ``.pt`` or ``.pth`` file with a state dict, which is
    read without running code from it; a relative path starts at the matrix's folder, else at the
    current one. Several files, in a list, are the training seeds of one defense.
    ``builder``: ``"my_pkg.models:build"`` or ``"models.py:build"``, called with the ``DataInfo``
    where it takes an argument and with nothing otherwise; or the name of a registered network;
    by default the matrix's own network. The module maps (batch, *shape) float32 in [0, 1] to
    logits (batch, classes): normalisation belongs inside it.

    Raises UserError for a builder that is not there and a file that does not fit. The file's
    SHA-256, the builder's source and the weights are part of the model's identity.
    """

    whole: ClassVar[tuple[str, ...]] = ("weights",)

    weights: str | list[str] = field(hash=False)
    builder: str | None = None

    def __post_init__(self) -> None:
        for name in (names := self._files()):
            if not name.endswith(SUFFIXES):
                raise ValueError(f"weights must be a {', '.join(SUFFIXES)} file, got {name!r}")
        if len(set(names)) < len(names):
            raise ValueError(f"weights names a file twice, which is no further training: {names}")
        # One file is the same defense with brackets and without.
        object.__setattr__(self, "weights", names[0] if len(names) == 1 else names)
        try:
            self.code()  # a builder that is not there is a mistake of the matrix, not of the run
        except UserError as error:
            raise ValueError(f"builder: {error}") from error

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
        if self.builder is None:
            return ()
        if ":" in self.builder:
            return (_callable(self.builder),)
        return (registry.NETWORKS.get(self.builder),)

    def build(self, context: BuildContext) -> nn.Module:
        """Call the builder."""
        if self.builder is None:
            return context.network()
        if ":" in self.builder:
            return _module(self.builder, context.info)
        return registry.NETWORKS.make(Spec(self.builder)).build(context.info)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Copy the weights from the file into ``model``, and ask it for the logits of one row."""
        (name,) = self._files()  # the plan fits one training seed at a time
        fill(model, read_weights(placed(name)), name)
        with torch.no_grad():
            logits = model.eval()(train.x[:1])
        expected = (1, context.info.classes)
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if got != expected:
            raise UserError(
                f"the model of {self.builder or 'the network'!r} must return logits of shape "
                f"{expected} for an input of shape {tuple(train.x[:1].shape)}, got {got}"
            )


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
    model = builder(info) if required else builder()
    if not isinstance(model, nn.Module):
        raise UserError(
            f"builder {reference!r} must return a torch.nn.Module, got {type(model).__name__}"
        )
    return model


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Return the state dict of a file, on the CPU; nothing in the file is run.

    Raises UserError where it cannot be read or holds anything but tensors by name.
    """
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"weights file {str(path)!r} does not exist") from error
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"weights file {str(path)!r} cannot be read as a plain state dict ({reason}): "
            "save model.state_dict(), not the model, best with safetensors.torch.save_file"
        ) from error
    if isinstance(content, Mapping) and content:
        others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
        if not others:
            return content
        raise UserError(
            f"weights file {str(path)!r} is not a state dict: {', '.join(others[:4])} "
            "hold no tensors; save the state dict alone"
        )
    raise UserError(
        f"weights file {str(path)!r} is not a state dict: it holds a {type(content).__name__}"
    )


def fill(model: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Copy ``weights`` into ``model``; raises UserError naming the keys that do not fit."""
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in weights]
    surplus = [key for key in weights if key not in wanted]
    shapes = [
        f"{key} is {tuple(weights[key].shape)}, expected {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in weights and weights[key].shape != value.shape
    ]
    problems = [
        *([f"missing {_some(missing)}"] if missing else []),
        *([f"not in the model {_some(surplus)}"] if surplus else []),
        *([_some(shapes)] if shapes else []),
    ]
    if problems:
        hint = "; the prefix 'module.' is DataParallel's: save model.module.state_dict()"
        prefixed = any(key.startswith("module.") for key in surplus)
        raise UserError(
            f"{origin} does not fit the model: {'; '.join(problems)}{hint if prefixed else ''}"
        )
    model.load_state_dict(weights)


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - 4} more" if len(items) > 4 else ""
    return ", ".join(items[:4]) + more
