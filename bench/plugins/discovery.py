"""The three doors of the registry: built-ins, entry points, ``--plugin``.

Built-in plugins enter as third parties' do: by name, loaded when first asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.base.foreign import refuse_foreign
from bench.base.places import placed
from bench.base.text import nearest, reason_of
from bench.base.types import UserError
from bench.plugins.code_hash import OURS, neighbours
from bench.plugins.pinned import PinnedLoader, pin_folder
from bench.plugins.registry import DEFENSES, REGISTRIES

BUILT_IN = {
    "defenses": "defenses",
    "attacks": "attacks",
    "datasets": "bench.training.datasets",
    "networks": "bench.training.networks",
}

_modules: set[str] = set()
"""Modules that were named as plugins, and the packages of entry points."""

_sealed = False
"""Whether ``find`` takes what is loaded alone."""


def load_plugins(plugins: Iterable[str] = ()) -> None:
    """Open the three doors: built-ins and entry points by name, then each of ``plugins``.

    Repeated calls add nothing twice. ``plugins`` are files (``my_defense.py``) or modules whose
    decorators register what they hold; raises UserError where one cannot be imported.
    """
    if not DEFENSES.names() or "undefended" not in DEFENSES.names():
        _load_built_ins()
        _load_entry_points()
    for plugin in plugins:
        import_plugin(plugin)


def _load_built_ins() -> None:
    refuse_foreign()
    for kind, package in BUILT_IN.items():
        index: dict[str, str] = importlib.import_module(package).INDEX
        for name, reference in index.items():
            REGISTRIES[kind].add(name, reference, _loader(reference))


def _loader(reference: str) -> Callable[[], Any]:
    def load() -> Any:
        module, _, attribute = reference.partition(":")
        return getattr(importlib.import_module(module), attribute)

    return load


def _load_entry_points() -> None:
    for kind, registry in REGISTRIES.items():
        for point in importlib.metadata.entry_points(group=f"retort.{kind}"):
            _modules.add(point.value.partition(":")[0].partition(".")[0])
            package = point.dist.name if point.dist else "an installed package"
            origin = f"{package} ({point.value})"
            try:
                registry.add(point.name, origin, point.load)
            except UserError as error:
                # Installed by someone, perhaps for something else: it breaks who selects it.
                registry.spoil(point.name, origin, error)


def import_plugin(plugin: str) -> ModuleType:
    """Import a plugin file or module, so that its decorators register what it holds.

    A file is imported once a process under a name made from its path, with its own folder on
    ``sys.path`` behind everything else, so that it may import its neighbours.
    """
    is_file = _is_file(plugin)
    here = str(Path.cwd())
    if not is_file and not {here, ""} & set(sys.path):
        sys.path.append(here)  # as `python -m bench` has it, and the command `retort` has not
    try:
        if is_file:
            return _import_file(Path(plugin).resolve())
        package = plugin.partition(".")[0]
        _modules.add(plugin if package in OURS else package)
        return importlib.import_module(plugin)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        what = reason_of(error)
        raise UserError(f"plugin {plugin!r} cannot be imported: {what}") from error


def _is_file(plugin: str) -> bool:
    return plugin.endswith(".py") or "/" in plugin


def plugin_modules() -> list[str]:
    """Return the names of all loaded modules that are a plugin's, or come from its folder."""
    inside = tuple(f"{known}." for known in _modules)  # asked of thousands, before every task
    return [
        name
        for name, module in list(sys.modules.items())
        if isinstance(getattr(module, "__loader__", None), PinnedLoader)
        or name in _modules
        or name.startswith(inside)
    ]


def find(reference: str) -> Any:
    """Return what ``"package.module:name"`` or ``"file.py:name"`` names.

    Raises UserError where the module cannot be imported or holds no such name, and where it would
    be imported for this reference alone in a process that is sealed.
    """
    source, _, name = reference.rpartition(":")
    if not source or not name:
        raise UserError(f"a reference is module:name or file.py:name, got {reference!r}")
    if _is_file(source):
        # A file named by a plugin's parameter starts at the matrix, as every path in it does.
        source = str(placed(source))
    if _sealed and not _is_named(source):
        raise UserError(
            f"{reference!r} is code that nobody asked to run: read it, and name it with "
            f"--plugin {source}, or say --trust"
        )
    module = import_plugin(source)
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise UserError(f"{source!r} has no {name!r}: {nearest(name, public)}")
    return getattr(module, name)


def seal() -> None:
    """From now on import nothing because a plan or a matrix names it: they may be a stranger's."""
    global _sealed  # noqa: PLW0603 (of the process, as what it has imported is)
    _sealed = True


@contextlib.contextmanager
def sealed() -> Iterator[None]:
    """Seal this process while the block lasts."""
    global _sealed  # noqa: PLW0603 (as above)
    before = _sealed
    seal()
    try:
        yield
    finally:
        _sealed = before


def _is_named(source: str) -> bool:
    """Return whether a module or a file is ours, or was named as a plugin."""
    if _is_file(source):
        return _file_name(Path(source).resolve()) in sys.modules
    package = source.partition(".")[0]
    return package in OURS or bool({source, package} & _modules)


def _file_name(path: Path) -> str:
    return f"retort_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"plugin file {str(path)!r} does not exist")
    name = _file_name(path)
    if name in sys.modules:
        return sys.modules[name]
    loader = PinnedLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    for neighbour, place in neighbours(path).items():
        _refuse_another(neighbour, place, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
        pin_folder(str(path.parent))
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _refuse_another(name: str, place: Path, plugin: Path) -> None:
    """Raise UserError where ``import name`` gives something else than a plugin's neighbour.

    Names are one a process: of two folders that hold a ``models.py`` the second would get the
    first one's.
    """
    loaded = sys.modules.get(name)
    try:
        spec = importlib.util.find_spec(name) if loaded is None else None
    except (ImportError, ValueError):
        spec = None
    there = getattr(loaded, "__file__", None) if spec is None else spec.origin
    if there is None or _same(Path(there), place):
        return
    raise UserError(
        f"{plugin} imports {name}, which lies beside it, and in this process that name is "
        f"{there}: rename one of them, or put it into a package of its own name"
    )


def _same(there: Path, place: Path) -> bool:
    """Return whether a module's file is that of ``place``, a file or a package's folder."""
    try:
        if place.is_dir():
            return there.resolve().is_relative_to(place.resolve())
        return there.samefile(place) or there.read_bytes() == place.read_bytes()
    except OSError:
        return False
