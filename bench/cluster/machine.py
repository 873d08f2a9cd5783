"""What a machine does with a parcel: the local executor in a folder of its own, then bytes back.

So all that holds of a worker process holds here: fresh processes, time-outs, the memory limit, and
a failure that is a value. The folder lies below the system's temporary one, and is nobody else's.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from bench.base.files import place, write_bytes
from bench.base.places import base, below
from bench.base.text import LONGEST, cut
from bench.base.types import Outcome, UserError, spec_of
from bench.cluster.parcel import Blob, Delivery, Known, Parcel, Setup, facts, left_by
from bench.evidence.environment import device_name
from bench.evidence.folder import RunFolder
from bench.plan.graph import FITS
from bench.plugins import registry
from bench.runner.keys import attack_source, fit_source
from bench.runner.prepare import choose_device
from bench.runner.processes import LocalExecutor, default_memory, default_workers
from bench.runner.task import Report, Settings, Task

AT_ONCE = 256
"""Tasks that a process may be given at a time: how many it is, the engine says."""

_stations: dict[tuple[str, str], Station] = {}
_making = threading.Lock()


def carry_out(parcel: Parcel, machine: str = "") -> Delivery:
    """Do what ``parcel`` asks, on the machine that the engine calls by this name."""
    if (refused := _refused(parcel.setup)) is not None:
        return Delivery(refused=refused)
    station = _station(parcel.setup, machine)
    if missing := station.lacks(parcel):
        return Delivery(missing=missing)
    if isinstance(parcel.work, Task):
        return station.task(parcel.work)
    work, args = parcel.work
    return station.call(work, args)


def inspect(settings: Settings, known: tuple[Known, ...]) -> tuple[str, list[str]]:
    """Return the device of this machine, and what it lacks to run the plugins ``known``."""
    found = []
    for item in known:
        try:
            if item.kind == "fit":
                kind, name = "defense", item.document["defense"]["name"]
                source, unavailable = fit_source(item.document), None
            else:
                kind, name = "attack", item.document["attack"]["name"]
                source = attack_source(item.document)
                spec = registry.ATTACKS.make(spec_of(item.document["attack"]))
                unavailable = spec.unavailable()
        except UserError as error:
            found.append(cut(str(error)))
            continue
        if source != item.source:
            found.append(f"the code of the {kind} {name!r} is another one there")
        elif unavailable != item.unavailable:
            found.append(f"the {kind} {name!r}: {unavailable or 'it can run there and not here'}")
    try:
        return device_name(choose_device(settings.device)), found
    except UserError as error:
        return "", [*found, str(error)]


def remove(run: str, machine: str = "") -> None:
    """Remove what a run left on this machine, and end its processes that this one started."""
    with _making:
        station = _stations.pop((run, machine), None)
    if station is not None:
        station.close()
    shutil.rmtree(_folder(run, machine), ignore_errors=True)


def _refused(setup: Setup) -> str | None:
    differing = setup.facts.differing(facts())
    return None if differing is None else f"{socket.gethostname()} has {differing}"


def _station(setup: Setup, machine: str) -> Station:
    with _making:
        key = (setup.run, machine)
        # An engine may give this process another GPU with each task; a worker process keeps its own
        if key in _stations and _stations[key].gpus != _gpus():
            _stations.pop(key).close()
        if key not in _stations:
            if machine:
                _hide_main()
            _stations[key] = Station(setup, _folder(setup.run, machine))
        return _stations[key]


def _gpus() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def _hide_main() -> None:
    """Let no worker process import the engine's own main module, as multiprocessing would."""
    main = sys.modules["__main__"]
    main.__spec__ = None
    with contextlib.suppress(AttributeError):
        del main.__file__


def _home() -> Path:
    """Return the folder of this user; raises PermissionError where it is somebody else's."""
    home = Path(tempfile.gettempdir()) / f"retort-{getpass.getuser()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and home.stat().st_uid != os.getuid():
        raise PermissionError(f"{home} belongs to another user")
    return home


def _folder(run: str, machine: str) -> Path:
    return _home() / f"{run}-{machine[:16]}"


class Station:
    """The place of one run in a process of an engine: a folder, and the executor that works there.

    ``root``: what all processes of this machine share for the run: the blobs that came, by SHA-256.
    """

    def __init__(self, setup: Setup, root: Path) -> None:
        _sweep()
        self.gpus = _gpus()
        self._lock = _alive(root)
        self.blobs = root / "blobs"
        self.blobs.mkdir(exist_ok=True)
        self.own = root / f"process-{os.getpid()}"
        self.folder = RunFolder(self.own / "run")
        for path in self.folder.folders():
            path.mkdir(parents=True, exist_ok=True)
        given = setup.settings
        there = given.base or base()
        self.settings = replace(
            given,
            run=self.folder.root,
            cache=self.own / "cache",
            data=replace(given.data, data_dir=None, cache_dir=self.own / "cache"),
            plugins=tuple(
                str(below(self.own / "files", Path(item))) if item in setup.files else item
                for item in given.plugins
            ),
            base=there,
            root=self.own / "files",
            carried=self.blobs / setup.data.sha256,
            memory=given.memory or default_memory(default_workers(given.device)),
        )
        self.executor = LocalExecutor(self.settings, AT_ONCE, setup.timeout)
        self._placing = threading.Lock()
        self._read = 0

    def close(self) -> None:
        """End its processes, and let its folder be swept."""
        self.executor.__exit__(None, None, None)
        self._lock.close()

    def lacks(self, parcel: Parcel) -> tuple[str, ...]:
        """Return what is neither here nor in the ``parcel``; put the rest where it belongs."""
        with self._placing:
            missing = tuple(blob.sha256 for blob in parcel.blobs if not self._has(blob))
            if not missing:
                for path, blob in parcel.setup.files.items():
                    self._place(blob.sha256, below(self.own / "files", Path(path)))
                for name, blob in parcel.reads.items():
                    self._place(blob.sha256, self.folder.root / name)
            return missing

    def task(self, task: Task) -> Delivery:
        """Run ``task``, and return what it left, which is then no longer here."""
        report = self.executor.submit(task).result()
        paths = dict(left_by(task, self.folder))
        files = {}
        if report.outcome.status == "done":
            try:
                files = {name: path.read_bytes() for name, path in paths.items()}
            except OSError as error:
                report = Report(Outcome("failed", f"{error.strerror}: what it left"))
        for path in paths.values():
            path.unlink(missing_ok=True)
        if task.kind in FITS:
            shutil.rmtree(self.settings.cache, ignore_errors=True)
        return Delivery(report=report, files=files, log=self._printed())

    def call(self, work: Callable[..., Any], args: tuple[object, ...]) -> Delivery:
        """Call ``work(settings, *args)`` in a process that has done nothing before."""
        answer = self.executor.fresh(work, *args).result()
        return Delivery(answer=answer, log=self._printed())

    def _has(self, blob: Blob) -> bool:
        path = self.blobs / blob.sha256
        if path.exists():
            return True
        content = blob.read()
        if content is None:
            return False
        if hashlib.sha256(content).hexdigest() != blob.sha256:
            raise OSError(f"{blob.sha256} was damaged on its way")
        write_bytes(path, content)
        return True

    def _place(self, sha256: str, path: Path) -> None:
        if not path.exists():
            place(self.blobs / sha256, path)

    def _printed(self) -> str:
        """Return what was printed since this was last asked."""
        with self._placing, contextlib.suppress(OSError):
            with (self.folder.top("workers.log")).open("rb") as log:
                log.seek(self._read)
                said = log.read()
                self._read = log.tell()
            return cut(said.decode(errors="replace"), 100 * LONGEST)
        return ""


def _alive(root: Path) -> TextIO:
    """Make ``root``, and lock a file that says so as long as this process works in it."""
    while True:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / ".alive").open("a")
        _lock(file, shared=True)
        if (root / ".alive").exists():  # nobody has swept it meanwhile
            return file
        file.close()


def _sweep() -> None:
    """Remove what processes that were killed left on this machine."""
    for root in _home().glob("*-*"):
        with contextlib.suppress(OSError), (root / ".alive").open("a") as file:
            if _lock(file, shared=False):
                shutil.rmtree(root, ignore_errors=True)


def _lock(file: TextIO, *, shared: bool) -> bool:
    """Lock a file until it is closed; not on Windows, where nothing is swept."""
    try:
        import fcntl
    except ImportError:
        return False
    fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True
