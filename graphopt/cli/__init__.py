"""The command line: one file a command, each a thin layer over the Python API.

Exit codes: 0 done; 1 `compare --fail` found too much; 2 usage; 3 model; 4 data; 5 pass; 6 lowering; 7 artifact;
8 fetch; 9 host (see `graphopt.errors`); 70 a bug in graphopt; 130 interrupted,
143 by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from graphopt.errors import FULL, GraphoptError, HostError

INTERNAL = 70
INTERRUPTS = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Signals -> exit codes. SIGTERM is what `timeout` and service managers send: it cleans up like Ctrl-C."""


class _Interrupts:
    """They raise KeyboardInterrupt, and are remembered: TVM's callbacks turn that into errors of their own."""

    def __init__(self) -> None:
        self.code: int | None = None
        for number in INTERRUPTS:
            signal.signal(number, self._raise)

    def _raise(self, number: int, _: Any) -> None:
        self.code = INTERRUPTS[signal.Signals(number)]
        raise KeyboardInterrupt


def main() -> None:
    """Entry point of ``graphopt``: every expected error is one paragraph on stderr and an exit code."""
    interrupts = _Interrupts()
    try:
        _run()
    except (SystemExit, Exception, KeyboardInterrupt) as error:
        if interrupts.code is not None:
            sys.exit(_fail("interrupted; nothing was left half-written.", interrupts.code))
        if isinstance(error, SystemExit) or os.environ.get("GRAPHOPT_TRACEBACK"):
            raise
        sys.exit(_explain(error))


def _run() -> None:
    import logging

    from graphopt.cli.app import app

    logging.getLogger("onnx_ir").addHandler(logging.NullHandler())  # what it warns of, our errors say
    app()


def _explain(error: BaseException) -> int:
    if isinstance(error, GraphoptError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, OSError) and (error.errno in FULL or "No usable temporary directory" in str(error)):
        where = "" if error.filename is None else f" ({error.filename})"
        return _fail(
            f"the disk refuses: {error.strerror}{where}. Make room there, or name another folder for temporary files "
            "in the environment variable TMPDIR.",
            HostError.exit_code,
        )
    return _fail(
        f"this is a bug in graphopt: {type(error).__name__}: {error}. "
        "Set GRAPHOPT_TRACEBACK=1 to see where, and please report it with the command that you ran.",
        INTERNAL,
    )


def _fail(message: str, code: int) -> int:
    print(f"graphopt: error: {message}", file=sys.stderr)
    return code
