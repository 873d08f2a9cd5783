"""``python -m bench``, and ``retort``."""

import os
import signal
import sys
from pathlib import Path


def main() -> None:
    """Run the command line; Ctrl-C while it is still being imported ends it without a traceback."""
    _open_streams()
    # Ignored where it was started in the background: then it stays so.
    interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interrupts:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from bench.cli import main as run

    if interrupts:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _open_streams() -> None:
    """Open what was closed by whoever started this: else the next file that is opened stands there.

    What a library then says to it would go into that file.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open("r" if name == "stdin" else "w")  # noqa: SIM115
            setattr(sys, name, stream)


if __name__ == "__main__":
    main()
