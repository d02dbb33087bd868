"""The command line: one file a command, each a thin layer over the Python API.

Exit codes: 0 done; 1 `compare --fail` found too much; 2 usage; 3 model; 4 data; 5 pass; 6 lowering; 7 artifact;
8 fetch; 9 host (see `graphopt.errors`); 70 a bug in graphopt; 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from graphopt.errors import FULL, GraphoptError, HostError

INTERNAL, INTERRUPTED = 70, 130


class _Interrupts:
    """Ctrl-C raises KeyboardInterrupt as ever, and is remembered: TVM's callbacks turn it into errors of their own."""

    def __init__(self) -> None:
        self.seen = False
        signal.signal(signal.SIGINT, self._raise)

    def _raise(self, *_: Any) -> None:
        self.seen = True
        raise KeyboardInterrupt


def main() -> None:
    """Entry point of ``graphopt``: every expected error is one paragraph on stderr and an exit code."""
    interrupts = _Interrupts()
    try:
        _run()
    except (SystemExit, Exception, KeyboardInterrupt) as error:
        if interrupts.seen:
            sys.exit(_fail("interrupted; nothing was left half-written.", INTERRUPTED))
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
