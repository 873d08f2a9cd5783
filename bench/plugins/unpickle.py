"""Modules that were handed over in memory: pickled, and read only where they are trusted.

Reading a pickle runs its code. So a process reads those alone whose SHA-256 it was told to trust:
what it pickled itself, or what its user vouched for (``--unpickle``).
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import cloudpickle
from torch import nn

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


def is_own(name: str) -> bool:
    """Return whether the module ``name`` is its user's: no library's, nor ours.

    One that no file is known of is: what a pickle brought along.
    """
    module = sys.modules.get(name) or sys.modules.get(name.partition(".")[0])
    return module is None or _is_own(name, module)


def is_own_file(path: str) -> bool:
    """Return whether code from ``path`` is its user's; a console's and a notebook's is."""
    libraries = {sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib")}
    ours = {str(Path(sys.modules["bench"].__path__[0]).parent / package) for package in OURS}
    # Of a user, of a distribution, of a venv beneath this one: whichever folder it was put into.
    installed = {"site-packages", "dist-packages"} & set(Path(path).parts)
    return not installed and not any(Path(path).is_relative_to(f) for f in libraries | ours)


def _is_own(name: str, module: ModuleType | None) -> bool:
    if name == "__main__":
        return True
    file = getattr(module, "__file__", None)
    if name.partition(".")[0] in (*OURS, "leaderboard") or not isinstance(module, ModuleType):
        return False
    return bool(file) and is_own_file(str(file))
