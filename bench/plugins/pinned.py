"""Plugin files as they were when they were imported: what is hashed is what runs.

A file may be written anew while a run lasts. Its source is kept as it was compiled, so that
``inspect`` and ``linecache`` show that one, whatever lies on disk by then.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import linecache
import sys
from types import CodeType, ModuleType


class PinnedLoader(importlib.machinery.SourceFileLoader):
    """Loads a source file, never its compiled copy, and keeps what it read."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the file as it is now, and keep its source."""
        path = self.get_filename(fullname)
        data = self.get_data(path)
        text = importlib.util.decode_source(data)
        # Without a time of change the entry is never held against the file.
        linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
        code: CodeType = self.source_to_code(data, path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        """Run the module; what a package holds is loaded likewise."""
        for folder in getattr(module, "__path__", ()):
            pin_folder(folder)
        super().exec_module(module)


def pin_folder(folder: str) -> None:
    """Let what is imported from ``folder``, and below it, be pinned too."""
    sys.path_importer_cache[folder] = importlib.machinery.FileFinder(
        folder,
        (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
        (PinnedLoader, importlib.machinery.SOURCE_SUFFIXES),
    )


def source_of(path: str) -> str:
    """Return the source of a file as it was imported, else as it lies on disk; empty without."""
    linecache.checkcache(path)
    return "".join(linecache.getlines(path))
