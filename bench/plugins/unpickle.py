"""Modules that were handed over in memory: pickled, and read only where they are trusted.

Reading a pickle runs its code. So a process reads those alone whose SHA-256 it was told to trust:
what it pickled itself, or what its user vouched for (``--unpickle``).
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import cloudpickle
import torch
from torch import nn

from bench.base.fingerprint import digest
from bench.base.text import reason_of
from bench.base.types import UserError
from bench.plugins.code_hash import OURS

_trusted: set[str] = set()


def trust(checksums: Iterable[str]) -> None:
    """Let this process read pickles of these SHA-256."""
    _trusted.update(checksums)


def trusted() -> tuple[str, ...]:
    """Return the SHA-256 of the pickles that this process may read."""
    return tuple(sorted(_trusted))


def untrusted(path: Path) -> str:
    """Return why a pickle is not read."""
    return (
        f"{path} is a module that was handed over in memory, and reading it runs its code: "
        "say --unpickle if you trust who made it"
    )


def pickled(model: nn.Module) -> bytes:
    """Return ``model`` as a pickle that needs no file of its author's, and trust it here.

    Classes of a notebook, a script or any module outside of the installed libraries travel with
    it. Raises UserError where something in it cannot be pickled.
    """
    # By the name that pickles go by: a module may stand under a second one, or under another alone.
    before = cloudpickle.list_registry_pickle_by_value()
    own = [
        module
        for name, module in list(sys.modules.items())
        if _is_own(name, module) and name == module.__name__ and name not in before
    ]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        content: bytes = cloudpickle.dumps(model)
    except Exception as error:
        raise UserError(
            f"{type(model).__name__} cannot be handed to other processes ({reason_of(error)}): "
            "save its state dict, and give a builder and the file to the command judge"
        ) from error
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)
    trust([hashlib.sha256(content).hexdigest()])
    return content


def unpickled(path: Path) -> nn.Module:
    """Return the module in ``path``; raises UserError where it is not trusted, or is none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() not in _trusted:
        raise UserError(untrusted(path))
    try:
        model = cloudpickle.loads(content)
    except Exception as error:
        raise UserError(f"{path} cannot be unpickled here: {reason_of(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{path} holds no torch.nn.Module, but a {type(model).__name__}")
    return model


def identity(model: nn.Module) -> str:
    """Return a hash of the structure, the code and the weights of ``model``.

    Pickles of one module may differ between two processes; this does not.
    """
    state = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            plain = value.detach().cpu().contiguous().flatten()
            state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            state.update(plain.view(torch.uint8).numpy().tobytes())
    code = sorted({_source(type(part)) for part in model.modules()})
    return digest({"form": repr(model), "code": code, "state": state.hexdigest()})[:16]


def _source(cls: type) -> str:
    name = f"{cls.__module__}.{cls.__qualname__}"
    if not _is_own(cls.__module__, sys.modules.get(cls.__module__)):
        return name
    try:
        return f"{name} {inspect.getsource(cls)}"
    except (OSError, TypeError):
        return name  # typed into a console: its name and its weights must do


def _is_own(name: str, module: ModuleType | None) -> bool:
    """Return whether a module is its user's: no library's, nor ours."""
    if name == "__main__":
        return True
    file = getattr(module, "__file__", None)
    if name.partition(".")[0] in (*OURS, "leaderboard") or not isinstance(module, ModuleType):
        return False
    if not file:
        return False
    libraries = {sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib")}
    return not any(Path(file).is_relative_to(folder) for folder in libraries)
