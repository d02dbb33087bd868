"""The command line: one file a command, each a thin layer over the Python API.

Exit codes: 0 done; 2 usage; 3 model; 4 data; 5 pass; 6 lowering; 7 artifact; 8 fetch (see `graphopt.errors`);
70 a bug in graphopt; 130 interrupted.
"""

from __future__ import annotations

import os
import sys

from graphopt.errors import GraphoptError

INTERNAL, INTERRUPTED = 70, 130


def main() -> None:
    """Entry point of ``graphopt``: every expected error is one paragraph on stderr and an exit code."""
    from graphopt.cli.app import app

    try:
        app()
    except GraphoptError as error:
        sys.exit(_fail(str(error), error.exit_code))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted; nothing was left half-written.", INTERRUPTED))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("GRAPHOPT_TRACEBACK"):
            raise
        sys.exit(
            _fail(
                f"this is a bug in graphopt: {type(error).__name__}: {error}. "
                "Set GRAPHOPT_TRACEBACK=1 to see where, and please report it with the command that you ran.",
                INTERNAL,
            )
        )


def _fail(message: str, code: int) -> int:
    print(f"graphopt: error: {message}", file=sys.stderr)
    return code
