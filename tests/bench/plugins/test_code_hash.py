"""What code counts, and what does not."""

import importlib
import sys
from pathlib import Path

import pytest

from bench.base.fingerprint import digest
from bench.plugins.code_hash import _parse, source_hash

BASE = '''
"""A module."""
from dataclasses import dataclass
from fp_helper import scale

FACTOR = 3
OTHER = 4

def twice(x):
    return 2 * x

def unrelated():
    return OTHER

class Thing:
    """Docs."""
    def run(self, x):
        # a comment
        return scale(twice(x)) * FACTOR
'''
HELPER = "def scale(x):\n    return x + 1\ndef unused(x):\n    return x\n"


@pytest.fixture
def hash_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))

    def hashed(text: str, helper: str = HELPER) -> str:
        for name, content in (("fp_thing", text), ("fp_helper", helper)):
            (tmp_path / f"{name}.py").write_text(content)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        import linecache

        linecache.checkcache()
        _parse.cache_clear()
        source_hash.cache_clear()
        module = importlib.import_module("fp_thing")
        # The plugin and its helper live in one place: both count.
        return source_hash(module.Thing, importlib.import_module("fp_helper").scale)

    yield hashed
    _parse.cache_clear()
    source_hash.cache_clear()


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.replace("# a comment", "# another"),
        lambda t: t.replace('"""Docs."""', '"""Other docs,\n    longer."""'),
        lambda t: t.replace("return OTHER", "return OTHER + 1"),
        lambda t: t.replace("OTHER = 4", "OTHER = 5"),
        lambda t: t + "\n\ndef added():\n    return 0\n",
        lambda t: t.replace("2 * x", "2*x"),
        lambda t: t.replace("def twice(x):", "def twice(x: int) -> int:"),
    ],
)
def test_comments_docstrings_and_unrelated_code_do_not_count(hash_of, change) -> None:
    assert change(BASE) != BASE
    assert hash_of(BASE) == hash_of(change(BASE))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.replace("2 * x", "3 * x"),
        lambda t: t.replace("FACTOR = 3", "FACTOR = 5"),
        lambda t: t.replace("* FACTOR", "+ FACTOR"),
        lambda t: t + "\nimport sys\nsys.dont_write_bytecode = True\n",
    ],
)
def test_code_that_is_used_counts(hash_of, change) -> None:
    assert hash_of(BASE) != hash_of(change(BASE))


def test_code_in_another_module_counts_where_it_is_used(hash_of) -> None:
    base = hash_of(BASE)
    assert hash_of(BASE, HELPER.replace("x + 1", "x + 2")) != base
    assert hash_of(BASE, HELPER.replace("return x\n", "return -x\n")) == base


def test_a_change_of_the_loop_reaches_the_built_in_attack() -> None:
    # The plugin class, the function it calls and what that calls: all are followed.
    from attacks.fgsm import FGSM
    from attacks.jsma.plugin import Jsma
    from bench.plugins.code_hash import _mentions

    source = _parse("attacks.jsma.plugin")
    assert source is not None
    mentions = {k for node in source.definitions["Jsma"] for k in _mentions(node, "", source)}
    assert ("attacks.jsma.attack", "jsma") in mentions
    assert source_hash(Jsma) != source_hash(FGSM)


def test_a_class_named_in_an_annotation_alone_does_not_count(hash_of) -> None:
    text = BASE.replace("class Thing:", "class Named:\n    size = 1\n\nclass Thing:")
    used = text.replace('    """Docs."""', "    field: Named | None = None")
    assert hash_of(used) == hash_of(used.replace("size = 1", "size = 2"))


def test_digest_ignores_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})


IMPORTS = {
    "import": "import nb_helper\n\ndef run():\n    return nb_helper.value()\n",
    "from": "from nb_helper import value\n\ndef run():\n    return value()\n",
    "star": "from nb_helper import *\n\ndef run():\n    return value()\n",
    "alias": "import nb_helper as other\n\ndef run():\n    return getattr(other, 'value')()\n",
    "try": "try:\n    import nb_helper\nexcept ImportError:\n    pass\n\ndef run(): ...\n",
    "late": "def run():\n    from nb_helper import value\n    return value()\n",
    "package": "import nb_package.deep\n\ndef run():\n    return nb_package.deep.value()\n",
    "relative": "from nb_package import near\n\ndef run():\n    return near.value()\n",
    "through": "import nb_middle\n\ndef run():\n    return nb_middle.value()\n",
}
FILES = {
    "nb_helper.py": "def value():\n    return 1\n",
    "nb_middle.py": "from nb_helper import value\n",
    "nb_package/__init__.py": "",
    "nb_package/deep.py": "def value():\n    return 1\n",
    "nb_package/near.py": "from .deep import value\n",
}


@pytest.fixture
def file_hash_of(tmp_path: Path):
    """The hash of ``run`` of a plugin file, as a process that imports it now computes it."""
    from bench.plugins.discovery import import_plugin

    path, modules = list(sys.path), set(sys.modules)

    def forget() -> None:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            del sys.modules[name]
        importlib.invalidate_caches()
        _parse.cache_clear()
        source_hash.cache_clear()

    def hashed() -> str:
        forget()
        return source_hash(import_plugin(str(tmp_path / "plugin.py")).run)

    yield hashed
    forget()


@pytest.mark.parametrize("how", IMPORTS)
def test_what_a_plugin_file_imports_from_its_folder_counts(how, tmp_path, file_hash_of) -> None:
    (tmp_path / "nb_package").mkdir()
    for name, text in {**FILES, "plugin.py": IMPORTS[how]}.items():
        (tmp_path / name).write_text(text)
    first = file_hash_of()
    assert file_hash_of() == first
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    for name in ("nb_helper.py", "nb_package/deep.py"):
        (tmp_path / name).write_text(f'"""Docs."""\n{FILES[name]}# a comment\n')
    assert file_hash_of() == first
    for name in ("nb_helper.py", "nb_package/deep.py"):
        (tmp_path / name).write_text(FILES[name].replace("1", "2"))
    assert file_hash_of() != first


def test_a_file_counts_as_it_was_imported(tmp_path, file_hash_of) -> None:
    from bench.plugins.discovery import import_plugin

    for name, text in {**FILES, "plugin.py": IMPORTS["import"]}.items():
        if "/" not in name:
            (tmp_path / name).write_text(text)
    first = file_hash_of()
    module = import_plugin(str(tmp_path / "plugin.py"))
    (tmp_path / "nb_helper.py").write_text(FILES["nb_helper.py"].replace("1", "2"))
    (tmp_path / "plugin.py").write_text("def run(): ...\n")
    _parse.cache_clear()
    source_hash.cache_clear()
    assert module.run() == 1
    assert source_hash(module.run) == first
    assert file_hash_of() != first
