"""What lies on disk: atomic writes, safe formats, checksums beside the data.

Records are Parquet, weights and adversarial inputs safetensors, documents JSON; nothing is ever
pickled. A file is written beside its place, synced and renamed, so that a reader sees the old
file, the new file or none.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import pandas as pd
from torch import Tensor

from bench.base.types import DamagedError, UnwritableError

STALE = 24 * 60 * 60
"""Seconds after which a temporary file of the shared cache belongs to no living process."""


def default_cache() -> Path:
    """Return ``RETORT_CACHE``, else the platform's cache folder."""
    if folder := os.environ.get("RETORT_CACHE"):
        return Path(folder)
    import platformdirs

    return platformdirs.user_cache_path("retort")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends without an error.

    Raises UnwritableError, which names ``path``, where the disk is full or the folder read-only;
    what stood there before still stands.
    """
    with writing(path):
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


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of ``folder`` when the block ends without an error.

    As a whole or not at all: whoever is killed leaves the old one or the new one, and what else he
    left is removed by the next. Raises UnwritableError as ``atomic`` does.
    """
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{folder.name}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        temporary = Path(
            tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp")
        )
        try:
            yield temporary
            temporary.chmod(0o755)
            if not folder.exists():
                temporary.rename(folder)
            elif not _exchange(temporary, folder):
                aside = temporary.with_name(f".{folder.name}.old.tmp")
                folder.rename(aside)
                temporary.rename(folder)
                shutil.rmtree(aside)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Let two folders change names in one step; return whether this system can."""
    here, at_once = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of Linux' renameat2
    call = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    return call is not None and not call(
        here, os.fsencode(first), here, os.fsencode(second), at_once
    )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into an UnwritableError that names ``path``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnwritableError(f"{path} cannot be written: {reason}") from error


@contextlib.contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock file ``path``; the operating system frees a dead process's lock.

    Raises filelock.Timeout after ``timeout`` seconds (negative: never), and UnwritableError where
    the file cannot be made.
    """
    lock = filelock.FileLock(path, timeout=timeout)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise  # it is an OSError too
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnwritableError(f"{path} cannot be written: {reason}") from error
    try:
        yield
    finally:
        lock.release()


def sweep(folder: Path, age: float = 0.0) -> None:
    """Remove temporary files that killed processes left in ``folder``, older than ``age`` seconds.

    Only files named as ``atomic`` names them, and not those of folders below.
    """
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):  # another process may sweep the same folder
            if path.is_file() and time.time() - path.stat().st_mtime >= age:
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` as it is."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


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


def read_records(
    path: Path, checksum: str | None = None, wanted: Callable[[str], bool] | None = None
) -> pd.DataFrame:
    """Read records, or only the columns ``wanted``: many cost more than their few rows.

    Raises DamagedError where the file is torn or not what ``checksum`` says.
    """
    from pyarrow import parquet

    if checksum is not None:
        check(path, checksum)
    try:
        # Files this small are read faster without threads.
        file = parquet.ParquetFile(path)
        names = None if wanted is None else [n for n in file.schema_arrow.names if wanted(n)]
        table = file.read(columns=names, use_threads=False)
        frame: pd.DataFrame = table.to_pandas(use_threads=False)
        return frame
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise DamagedError(f"{path} cannot be read: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors as safetensors; return the file's SHA-256."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        # Cloned: safetensors refuses tensors that share memory, as tied weights do.
        plain = {
            name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()
        }
        try:
            save_file(plain, str(temporary))
        except SafetensorError as error:  # its own word for a full disk
            raise UnwritableError(f"{path} cannot be written: {error}") from error
        return file_hash(temporary)


def read_tensors(path: Path, checksum: str | None = None) -> dict[str, Tensor]:
    """Read safetensors; raises DamagedError where torn or not what ``checksum`` says."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if checksum is not None:
        check(path, checksum)
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, checksum: object) -> None:
    """Raise DamagedError where ``path`` is missing or its SHA-256 is not ``checksum``."""
    try:
        found = file_hash(path)
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
