"""Weights and programs in files, as others save them: found, read without care for code, fitted.

A state dict is read without running anything from it. A program (TorchScript, ``torch.export``)
is code, and runs as a builder does: only where it was asked for by name.
"""

from __future__ import annotations

import io
import itertools
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.base.text import nearest, plain, reason_of
from bench.base.types import UserError

SUFFIXES = (".safetensors", ".pt", ".pth", ".pt2", ".bin", ".ckpt", ".tar")

PROGRAM = "program"
"""The builder of a file that brings its network along."""

PARTS = (
    "state_dict", "model_state_dict", "model", "net", "network", "weights",
    "ema", "model_ema", "state_dict_ema", "ema_state_dict", "best", "last",
)  # fmt: skip
"""Where a training script puts a model's weights in its checkpoint, the one that is taken first."""

COUNTERS = ("n_averaged", "num_batches_tracked")
"""Names of entries that an answer in evaluation mode does not depend on."""

SAFE = ("data/weights/", "data/constants/tensor_", "models/", "data/sample_inputs/", ".data/")
"""Members of a ``torch.export`` archive that hold tensors or JSON."""


@dataclass(frozen=True)
class Weights:
    """``tensors`` by name, on the CPU, and ``notes``: what was guessed on the way, in words."""

    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def read_weights(path: Path, part: str | None = None) -> Weights:
    """Return the state dict of a file; nothing in the file is run.

    ``part``: its name within a checkpoint that holds several, as ``"ema"``, or what stands before
    the names of its weights, as ``"student"``. Raises UserError where
    the file cannot be read, is a program, or holds no tensors by name.
    """
    origin = f"weights file {str(path)!r}"
    content = _content(path, origin)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{origin} is not a state dict: it holds a {type(content).__name__}")
    tensors, notes = _part(content, part, origin)
    broken = [
        name
        for name, value in tensors.items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if broken:
        raise UserError(
            f"{origin} holds NaN or infinity in {_some(broken)}: its training diverged, "
            "take an earlier checkpoint"
        )
    halves = sorted({str(value.dtype) for value in tensors.values() if _is_half(value)})
    if halves:
        words = " and ".join(halves).replace("torch.", "")
        notes = (*notes, f"{path.name} holds {words}, which was cast to float32")
    return Weights(tensors, notes)


def _content(path: Path, origin: str) -> Any:
    if path.is_dir():
        raise UserError(f"{origin} is a folder: name the file in it")
    if kind := program_kind(path):
        raise UserError(
            f"{origin} is a {kind} program, which brings its network along and runs as code does: "
            f'give builder = "{PROGRAM}" where you trust it'
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{origin} does not exist") from error
    except Exception as error:
        told = _strange(path)
        if told is None and type(error).__name__ == "UnpicklingError":
            told = "it holds pickled objects, which run code when they are read: a whole model?"
        reason = told or plain(str(error).partition("\n")[0])
        raise UserError(
            f"{origin} cannot be read as a plain state dict ({reason}): "
            "save model.state_dict(), not the model, best with safetensors.torch.save_file"
        ) from error


def _strange(path: Path) -> str | None:
    """Return what a file is that is not what its name says, where its first bytes tell."""
    with path.open("rb") as file:
        start = file.read(64)
    told = {
        b"": "it is empty",
        b"version https://git-lfs": "it is a pointer of Git LFS: fetch the file, git lfs pull",
        b"<": "it is a page of the web, not the file: download it again",
        b"\x89HDF": "it is an HDF5 file, of Keras: only PyTorch's weights can be read",
        b"\x08": "it looks like ONNX: only PyTorch's weights can be read",
    }
    if not start:
        return told[b""]
    return next((why for mark, why in told.items() if mark and start.startswith(mark)), None)


def _part(
    content: Mapping[Any, Any], part: str | None, origin: str
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """Return the state dict within a checkpoint, and a note where it was chosen."""
    found = {str(key): _tensors(value) for key, value in content.items()}
    inside = {key: value for key, value in found.items() if value}
    if part is not None:
        if part in inside:
            return inside[part], ()
        for tensors in [content] if _flat(content) else inside.values():
            if below := {k: v for k, v in tensors.items() if k.startswith(f"{part}.")}:
                return below, ()
        if listed := _listed({part: content.get(part)}):
            raise UserError(f"{origin}: {listed}")
        raise UserError(f"{origin} has no weights called {part!r}: {nearest(part, inside)}")
    if _flat(content):
        return content, ()
    if not inside:
        if listed := _listed({"the file": content}):
            raise UserError(f"{origin}: {listed}")
        others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
        raise UserError(
            f"{origin} is not a state dict: {', '.join(others[:4])} hold no tensors; "
            "save the state dict alone"
        )
    known = [name for name in PARTS if name in inside]
    if not known and len(inside) > 1:
        raise UserError(
            f"{origin} holds several sets of weights, {_some(list(inside))}: "
            f'give part = "{next(iter(inside))}" or another'
        )
    chosen = known[0] if known else next(iter(inside))
    others = [name for name in inside if name != chosen]
    more = f"; it also holds {_some(others)}: give part to take one of them" if others else ""
    return inside[chosen], (f"the weights are {chosen!r} of {origin.partition(' file ')[2]}{more}",)


def _listed(parts: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a part that lists its weights without names, as torch_ema's."""
    for part, value in parts.items():
        for name, inner in value.items() if isinstance(value, Mapping) else ():
            if isinstance(inner, list) and inner and all(torch.is_tensor(item) for item in inner):
                return (
                    f"{part} lists its weights without names ({name}): copy them into the model "
                    "(ema.copy_to(model.parameters())), and save its state dict"
                )
    return None


def _tensors(value: Any) -> dict[str, Tensor]:
    """Return a mapping that holds tensors by name alone, or the one that it wraps."""
    if not isinstance(value, Mapping) or not value:
        return {}
    if _flat(value):
        return dict(value)
    for name in ("state_dict", "module"):  # of an average that saved itself
        if name in value and (inner := _tensors(value[name])):
            return inner
    return {}


def _flat(value: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())


def _is_half(value: Tensor) -> bool:
    return value.dtype in (torch.float16, torch.bfloat16)


def fill(model: nn.Module, weights: Weights, origin: str) -> tuple[str, ...]:
    """Copy ``weights`` into ``model``; return what was guessed of their names.

    Prefixes that wrappers leave are taken off or put on where only that makes the names fit.
    Raises UserError naming the keys that do not.
    """
    wanted = model.state_dict()
    tensors, notes = _renamed(weights.tensors, wanted, origin)
    missing = [key for key in wanted if key not in tensors and not key.endswith(COUNTERS)]
    surplus = [key for key in tensors if key not in wanted and not key.endswith(COUNTERS)]
    shapes = [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    problems = [
        *([f"missing {_some(missing)}"] if missing else []),
        *([f"not in the model {_some(surplus)}"] if surplus else []),
        *([_some(shapes)] if shapes else []),
    ]
    if problems:
        hint = _hint(missing, surplus, shapes)
        if missing and surplus and hasattr(model, "save_pretrained"):
            hint += (
                "; save_pretrained may rename weights: save torch.save(model.state_dict(), FILE) "
                "of what from_pretrained gives, or give the module to bench.judge"
            )
        raise UserError(f"{origin} does not fit the model: {'; '.join(problems)}{hint}")
    kept = {key: tensors.get(key, value) for key, value in wanted.items()}
    model.load_state_dict(kept)
    return notes


def _hint(missing: Sequence[str], surplus: Sequence[str], shapes: Sequence[str]) -> str:
    if shapes and not (missing or surplus) and len(shapes) <= 2:
        return (
            ": other classes or channels than the data set's; a file of arrays may say how many "
            "classes there are (classes=1000)"
        )
    if missing and surplus:
        return ": is that the network that was trained? The builder must make it"
    if surplus:
        return ": the builder must make the whole network that was trained"
    return ": the file holds a part of the network alone" if missing else ""


def _renamed(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], origin: str
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """Return ``tensors`` by the names of ``wanted``, where only what stands before them differs.

    As DataParallel, torch.compile, averages and trainers' classes put it there, which hold more
    than the network too: losses, metrics.
    """
    needed = [key for key in wanted if not key.endswith(COUNTERS)]
    if not needed or set(needed) <= set(tensors):
        return tensors, ()
    for ours in _leading(needed):
        cores = [key.removeprefix(ours) for key in needed]
        places = [
            key.removesuffix(cores[0]) for key in tensors if f".{key}".endswith(f".{cores[0]}")
        ]
        fits = [theirs for theirs in places if all(theirs + core in tensors for core in cores)]
        if len(fits) > 1:
            raise UserError(
                f"{origin} holds several sets of weights, under {_some(sorted(fits))}: "
                f'give part = "{max(fits).rstrip(".")}" or another'
            )
        if fits:
            return _moved(tensors, fits[0], ours)
    return tensors, ()


def _leading(names: Sequence[str]) -> list[str]:
    """Return what all dotted names begin with, by whole parts: none of them, one, two and so on."""
    parts = zip(*(name.split(".")[:-1] for name in names), strict=False)
    common = [column[0] for column in itertools.takewhile(lambda c: len(set(c)) == 1, parts)]
    return ["".join(f"{part}." for part in common[:count]) for count in range(len(common) + 1)]


def _moved(
    tensors: Mapping[str, Tensor], theirs: str, ours: str
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """Return what stands under the prefix ``theirs`` under ``ours``, and what was done."""
    inside = {
        ours + key.removeprefix(theirs): value
        for key, value in tensors.items()
        if key.startswith(theirs)
    }
    others = [key for key in tensors if not key.startswith((theirs, *COUNTERS))]
    done = [
        *([f"the prefix {theirs!r} was taken off the weights' names"] if theirs else []),
        *([f"the prefix {ours!r} was put before the weights' names"] if ours else []),
        *([f"{_some(others)} was left out, which is not the network's"] if others else []),
    ]
    return inside, tuple(done)


def program_kind(path: Path) -> str | None:
    """Return ``TorchScript`` or ``torch.export`` where a file is such a program, else None."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "TorchScript"
    return "torch.export" if "archive_format" in names else None


class Program(nn.Module):
    """A program as a module; it was traced in the mode it stays in, whatever mode is asked for."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: Tensor) -> Any:
        """Return what the program does."""
        return self.program(x)

    def train(self, mode: bool = True) -> Program:
        """Leave the program as it is: an exported one has no modes."""
        self.training = mode
        return self


def read_program(path: Path) -> nn.Module:
    """Return a TorchScript or ``torch.export`` program as a module, on the CPU, in float32.

    Raises UserError where it is none, or holds pickled objects.
    """
    kind = program_kind(path)
    if kind is None:
        raise UserError(
            f"{str(path)!r} is no TorchScript and no torch.export program: "
            "name the builder of the network whose weights it holds"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch would rather have the other
            if kind == "TorchScript":
                return Program(_script(path).eval().float())
            _refuse_pickles(path)
            return Program(torch.export.load(path).module().float())
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{str(path)!r} cannot be read: {reason_of(error)}") from error


def _script(path: Path) -> nn.Module:
    program: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    return program


def _refuse_pickles(path: Path) -> None:
    # torch.export.load opens some members with pickle, and would run what they hold.
    with zipfile.ZipFile(path) as archive:
        for item in archive.namelist():
            name = item.partition("/")[2]
            plain = name.startswith(SAFE) or "/" not in name or name.endswith("_config.json")
            if name.endswith("_config.json") and b'"use_pickle": true' in archive.read(item):
                plain = False
            if name.startswith("data/sample_inputs/"):
                torch.load(io.BytesIO(archive.read(item)), weights_only=True)
            if not plain:
                raise UserError(
                    f"{str(path)!r} holds {name!r}, which would be run when it is opened: export "
                    "the network again without custom objects"
                )


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - 4} more" if len(items) > 4 else ""
    return ", ".join(items[:4]) + more
