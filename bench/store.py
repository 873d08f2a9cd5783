"""What lies on disk: atomic writes, safe formats, checksums beside the data.

Records are Parquet, weights and adversarial inputs safetensors, documents JSON; nothing is ever
pickled. A file is written beside its place, synced and renamed, so that a reader sees the old
file, the new file or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from bench.types import Document, UserError

SCHEMA = 1
"""Version of the layout of a results folder; a newer one is refused."""


class DamagedError(Exception):
    """A file is not what its checksum says, or cannot be read."""


def default_cache() -> Path:
    """Return ``RETORT_CACHE``, else the platform's cache folder."""
    if folder := os.environ.get("RETORT_CACHE"):
        return Path(folder)
    import platformdirs

    return platformdirs.user_cache_path("retort")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, document: object) -> None:
    """Write ``document``; NaN and infinity are refused, for JSON has none."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON document; raises DamagedError where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error


def write_records(path: Path, records: pd.DataFrame) -> str:
    """Write records as Parquet; return the file's SHA-256."""
    with atomic(path) as temporary:
        records.to_parquet(temporary, engine="pyarrow", index=False, compression="zstd")
        return file_hash(temporary)


def read_records(path: Path, checksum: str | None = None) -> pd.DataFrame:
    """Read records; raises DamagedError where the file is torn or not what ``checksum`` says."""
    from pyarrow import parquet

    check(path, checksum)
    try:
        # Files this small are read faster without threads.
        table = parquet.ParquetFile(path).read(use_threads=False)
        frame: pd.DataFrame = table.to_pandas(use_threads=False)
        return frame
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise DamagedError(f"{path} cannot be read: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors as safetensors; return the file's SHA-256."""
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        # Cloned: safetensors refuses tensors that share memory, as tied weights do.
        plain = {
            name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()
        }
        save_file(plain, str(temporary))
        return file_hash(temporary)


def read_tensors(path: Path, checksum: str | None = None) -> dict[str, Tensor]:
    """Read safetensors; raises DamagedError where torn or not what ``checksum`` says."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check(path, checksum)
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, checksum: str | None) -> None:
    """Raise DamagedError where ``path`` is missing or its SHA-256 is not ``checksum``."""
    try:
        found = file_hash(path) if checksum is not None else None
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
    if found != checksum:
        raise DamagedError(f"{path} is damaged: its SHA-256 is {found}, expected {checksum}")


def place(source: Path, target: Path) -> None:
    """Put a copy of ``source`` at ``target``, as a hard link where the file system allows it."""
    with atomic(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run's results."""

    root: Path

    def model(self, fit: str) -> Path:
        """Document of a fit."""
        return self.root / "models" / f"{fit}.json"

    def weights(self, fit: str) -> Path:
        """Weights of a fit."""
        return self.root / "models" / f"{fit}.safetensors"

    def probe(self, node: str) -> Path:
        """Document of a probe; its rows lie beside it as Parquet."""
        return self.root / "probes" / f"{node}.json"

    def cell(self, node: str) -> Path:
        """Document of a cell; its records and inputs lie beside it."""
        return self.root / "cells" / f"{node}.json"

    def top(self, name: str) -> Path:
        """Document of the whole run."""
        return self.root / name

    def prepare(self) -> None:
        """Create the folder; raises UserError where it is read-only or of a newer schema."""
        plan = self.top("plan.json")
        if plan.exists():
            found = _schema(plan)
            if found > SCHEMA:
                raise UserError(
                    f"{plan} is of schema version {found} and this Retort knows {SCHEMA}: "
                    "upgrade Retort, or choose another --out"
                )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with atomic(self.top(".writable")):
                pass
            self.top(".writable").unlink()
        except OSError as error:
            raise UserError(f"results folder {self.root} cannot be written: {error}") from error


def _schema(plan: Path) -> int:
    try:
        document: Document = read_json(plan)
        return int(document["schema"])
    except (DamagedError, KeyError, TypeError, ValueError):
        return 0  # torn or foreign: it is written anew
