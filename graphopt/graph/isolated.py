"""Calls of onnx's C++ library in a process of its own: a file that crashes it, hangs it or fills its memory is refused.

The process is started with the first call, serves all that follow, and ends with this one.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

from graphopt.errors import ModelError
from graphopt.graph.onnx_library import HEADER, REFUSED

_LOCK = threading.Lock()
_servers: dict[int, subprocess.Popen[bytes]] = {}
"""By process id: a fork of this process must not share its pipes."""


def call(operation: bytes, model: bytes) -> bytes:
    """`graphopt.graph.onnx_library.call`, in the other process.

    Raises:
        ValueError: the library refuses the model; its words.
        ModelError: the library crashed, or took too long.
    """
    with _LOCK:
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # what ended it is told below
                server.stdin.write(HEADER.pack(operation, len(model)) + model)
                server.stdin.flush()
            answer = _answer(server.stdout)
        except BaseException:  # Ctrl-C: its answer must not be taken for the next call's
            server.kill()
            del _servers[os.getpid()]
            raise
        if answer is None:
            del _servers[os.getpid()]
            raise ModelError(_end_of(server))
    verdict, text = answer
    if verdict == REFUSED:
        raise ValueError(text.decode(errors="replace"))
    return text


def _server() -> subprocess.Popen[bytes]:
    server = _servers.get(os.getpid())
    if server is None or server.poll() is not None:
        program = str(Path(__file__).with_name("onnx_library.py"))
        pipe, command = subprocess.PIPE, [sys.executable, "-P", program]
        server = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        _servers[os.getpid()] = server
        atexit.register(server.communicate)
    return server


def _answer(pipe: IO[bytes]) -> tuple[bytes, bytes] | None:
    """The verdict and what comes with it; None when the process ended before it had answered."""
    header = pipe.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    verdict, length = HEADER.unpack(header)
    text = pipe.read(length)
    return (verdict, text) if len(text) == length else None


def _end_of(server: subprocess.Popen[bytes]) -> str:
    code = server.wait()
    if code == -signal.SIGALRM:
        return "onnx's library takes longer to check this model than a model of its size may: refused."
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"this model makes onnx's own library stop ({how}): it is malformed in a way that nothing can read."
