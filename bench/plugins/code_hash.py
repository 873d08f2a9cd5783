"""What code a result depends on, as a hash that comments, docstrings and other code leave alone.

From a class or function, every top-level definition that it mentions is followed, through the
project's own modules and through a plugin's package; libraries are not (their versions are
recorded, not keyed). Each definition counts by its syntax tree without docstrings. Of what a plugin
file imports from its own folder every file counts as a whole: how a name gets from one to the
other cannot be followed for certain.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.base.fingerprint import digest
from bench.plugins.pinned import PinnedLoader, source_of

OURS = ("bench", "defenses", "attacks")


@functools.cache
def source_hash(*objects: Any) -> str:
    """Return a hash of the code of classes and functions, and of all that they mention."""
    found: dict[tuple[str, str], str] = {}
    roots = {item.__module__.partition(".")[0] for item in objects} | set(OURS)
    todo = [(item.__module__, item.__qualname__.partition(".")[0]) for item in objects]
    while todo:
        module, name = todo.pop()
        if (module, name) in found:
            continue
        source = _parse(module)
        if source is None or name not in source.definitions:
            # No source to read (a notebook, a compiled module): the name alone must do.
            found[module, name] = "no source"
            continue
        nodes = [*source.definitions[name], *source.effects]
        found[module, name] = " ".join(ast.dump(node) for node in nodes)
        for node in nodes:
            todo += [
                key for key in _mentions(node, module, source) if key[0].partition(".")[0] in roots
            ]
    for item in objects:
        found.update(_neighbours(item.__module__))
    # A plugin file's module name is made from its path, which is no part of its code.
    return digest(sorted((name, dump) for (_, name), dump in found.items()))


def _neighbours(module: str) -> dict[tuple[str, str], str]:
    """Return by path the code of all files that a plugin file imports from its own folder."""
    loaded = sys.modules.get(module)
    if not isinstance(getattr(loaded, "__loader__", None), PinnedLoader):
        return {}
    path = Path(str(getattr(loaded, "__file__", "")))
    found: dict[tuple[str, str], str] = {}
    for file, tree in _imported_files(path).items():
        if file != path:
            bare = [_bare(statement) for statement in tree.body if not _is_docstring(statement)]
            place = file.relative_to(path.parent).as_posix()
            found["", place] = " ".join(ast.dump(statement) for statement in bare)
    return found


def plugin_files() -> list[Path]:
    """Return the files of all plugin files that are loaded, and what they import beside them."""
    paths = [
        Path(str(module.__file__))
        for module in list(sys.modules.values())
        if isinstance(getattr(module, "__loader__", None), PinnedLoader)
    ]
    return sorted({file for path in paths for file in _imported_files(path)})


def neighbours(path: Path) -> dict[str, Path]:
    """Return what a plugin file, and what it imports, names of its own folder: by name, the place.

    A module's file, or a package's folder.
    """
    found: dict[str, Path] = {}
    for tree in _imported_files(path).values():
        for name in {name.partition(".")[0] for name in _imports(tree, "")} - {""}:
            for place in (path.with_name(f"{name}.py"), path.with_name(name)):
                if place.is_file() or (place / "__init__.py").is_file():
                    found.setdefault(name, place)
    return found


def _imported_files(path: Path) -> dict[Path, ast.Module]:
    """Return a plugin file, and all that it imports from its own folder, with their syntax."""
    found: dict[Path, ast.Module] = {}
    todo = [(path, "")]
    while todo:
        at, package = todo.pop()
        if at in found:
            continue
        try:
            found[at] = ast.parse(source_of(str(at)))
        except (SyntaxError, ValueError):
            found[at] = ast.Module([], [])
        for name in _imports(found[at], package):
            todo += [item for item in _files(path.parent, name) if item[0] not in found]
    return found


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield the names of the modules that ``tree`` may import, wherever it does."""
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            for module, name in _imported(statement, package).values():
                yield from (module, f"{module}.{name}")


def _files(folder: Path, module: str) -> Iterator[tuple[Path, str]]:
    """Yield the files of ``module`` and of the packages around it that lie in ``folder``.

    With each the package that its relative imports start from.
    """
    if module.partition(".")[0] in OURS:
        return
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        stem = folder.joinpath(*parts[:count])
        for file, package in (
            (stem.with_name(f"{stem.name}.py"), ".".join(parts[: count - 1])),
            (stem / "__init__.py", ".".join(parts[:count])),
        ):
            if file.is_file():
                yield file, package


@dataclass(frozen=True)
class _Source:
    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, tuple[str, str | None]]  # local name -> (module, name in it or None)
    effects: list[ast.stmt]  # top-level statements run for what they do


@functools.cache
def _parse(module: str) -> _Source | None:
    loaded = sys.modules.get(module) or _import(module)
    if loaded is None:
        return None
    try:
        tree = ast.parse(inspect.getsource(loaded))
    except (OSError, TypeError, SyntaxError):
        return None
    source = _Source({}, {}, [])
    package = getattr(loaded, "__package__", None) or module
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            source.imports.update(_imported(statement, package))
    for statement in tree.body:
        _sort(statement, source)
    return source


def _import(module: str) -> ModuleType | None:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _sort(statement: ast.stmt, source: _Source) -> None:
    """File a top-level statement under the names it defines, or under its effects."""
    if isinstance(statement, ast.Import | ast.ImportFrom) or _is_docstring(statement):
        return
    if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
        return
    names = _defined(statement)
    bare = _bare(statement)
    if not names:
        source.effects.append(bare)
    for name in names:
        source.definitions.setdefault(name, []).append(bare)


def _defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    else:
        return []
    inside = (node for target in targets for node in ast.walk(target))
    return [n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def _bare(statement: ast.stmt) -> ast.stmt:
    """Return the statement without docstrings and without the annotations of functions."""
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [item for item in body if not _is_docstring(item)]
    return statement


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _imported(
    statement: ast.Import | ast.ImportFrom, package: str
) -> dict[str, tuple[str, str | None]]:
    if isinstance(statement, ast.Import):
        return {(a.asname or a.name.partition(".")[0]): (a.name, None) for a in statement.names}
    module = statement.module or ""
    if statement.level:
        parent = package.split(".")[: len(package.split(".")) - statement.level + 1]
        module = ".".join([*parent, module] if module else parent)
    return {(a.asname or a.name): (module, a.name) for a in statement.names}


def _mentions(node: ast.stmt, module: str, source: _Source) -> list[tuple[str, str]]:
    keys = []
    # An annotation says what a value is and runs nothing: a class named there is not followed.
    annotations = {
        id(part)
        for item in ast.walk(node)
        if isinstance(item, ast.AnnAssign)
        for part in ast.walk(item.annotation)
    }
    for item in ast.walk(node):
        if id(item) in annotations:
            continue
        if isinstance(item, ast.Name):
            if item.id in source.definitions:
                keys.append((module, item.id))
            elif item.id in source.imports:
                origin, name = source.imports[item.id]
                if f"{origin}.{name}" in sys.modules:
                    keys.append((origin, item.id))  # a module: what is taken from it counts below
                elif name:
                    keys += _resolve(origin, name)
        elif isinstance(item, ast.Attribute) and isinstance(item.value, ast.Name):
            origin, name = source.imports.get(item.value.id, ("", None))
            keys += _resolve(f"{origin}.{name}" if name else origin, item.attr)
    return keys


def _resolve(module: str, name: str) -> list[tuple[str, str]]:
    # ``from bench import Defense`` names a re-export: follow it to where it is defined.
    if module.partition(".")[0] not in sys.modules:
        return []
    loaded = sys.modules.get(module)
    target = getattr(loaded, name, None) if loaded is not None else None
    if target is not None and (isinstance(target, type) or inspect.isfunction(target)):
        return [(target.__module__, target.__qualname__.partition(".")[0])]
    return [(module, name)] if module else []
