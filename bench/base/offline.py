"""No network where ``--offline`` says so, whoever asks for it: a builder, a plugin, a library."""

from __future__ import annotations

import sys
from typing import Any

from bench.base.types import UserError

_forbidden: list[bool] = []
_hooked: list[bool] = []


def forbid_network(offline: bool) -> None:
    """Refuse this process connections to other machines from now on, or allow them again."""
    _forbidden[:] = [True] if offline else []
    if offline and not _hooked:
        sys.addaudithook(_refuse)  # it stays: there is no way to remove one
        _hooked.append(True)


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if not _forbidden or event not in ("socket.getaddrinfo", "socket.connect"):
        return
    # A local socket, with which processes talk to each other, has a path for an address.
    target = args[0] if event == "socket.getaddrinfo" else args[1]
    host = target[0] if isinstance(target, tuple) else target
    if event == "socket.connect" and not isinstance(target, tuple):
        return
    if str(host) not in ("localhost", "127.0.0.1", "::1"):
        raise UserError(
            f"something asks the network for {host!s}, and the run is --offline: fetch it before, "
            "and name the file"
        )
