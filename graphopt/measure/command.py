"""Any program as a rival of an artifact: another runtime, another environment, another language.

It is started once, with ``{model}``, ``{inputs}`` and ``{threads}`` in its command replaced by the ONNX file, an
``.npz`` with the inputs by name, and the number of threads. For each line on its standard input it runs the model once,
and then writes a line to its standard output; when its input ends, so does it::

    for _ in sys.stdin:
        session.run(inputs)
        print("done", flush=True)

The two pipes cost some 0.05 ms a run.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError, UsageError


class Command:
    """A runner (see `latency.bench`) that has a program do the work; it gives no outputs."""

    def __init__(self, command: str, model: ir.Model, threads: int) -> None:
        self.command, self._threads = command, threads
        self._folder = tempfile.TemporaryDirectory(prefix="graphopt-")
        self._process: subprocess.Popen[str] | None = None
        ir.save(model, Path(self._folder.name) / "model.onnx")

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """One run; the first starts the program, on `feeds`, which all runs share.

        Raises:
            UsageError: there is no such program.
            ModelError: it ended instead of running the model.
        """
        if self._process is None:
            self._process = self._start(feeds)
            weakref.finalize(self, _end, self._process)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise ModelError(f"'{self.command}' ended with {self._process.wait()} instead of running the model.")
        return {}

    def _start(self, feeds: Mapping[str, Any]) -> subprocess.Popen[str]:
        folder = Path(self._folder.name)
        np.savez(folder / "inputs.npz", **feeds)
        values = {"{model}": folder / "model.onnx", "{inputs}": folder / "inputs.npz", "{threads}": self._threads}
        words = shlex.split(self.command)
        for placeholder, value in values.items():
            words = [word.replace(placeholder, str(value)) for word in words]
        try:
            return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except OSError as error:
            raise UsageError(f"'{self.command}' can't be started: {error.strerror or error}.") from error


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
        process.communicate(timeout=5)
    process.kill()
