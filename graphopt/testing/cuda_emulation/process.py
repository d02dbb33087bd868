"""Work on the emulated device runs in a process of its own, which a kernel's fault may end."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError
from graphopt.testing.cuda_emulation.build import EmulationError


def in_process(module: str, task: Mapping[str, Any], settings: Mapping[str, str]) -> Any:
    """The answer of a module's `main` to `task`, with `settings` in its environment.

    Raises:
        EmulationError: what the emulated device said, or how the process ended.
        GraphoptError: what graphopt itself raised there.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        place = Path(folder) / "task.pickle"
        place.write_bytes(pickle.dumps(dict(task)))
        command, environment = [sys.executable, "-m", module, str(place)], {**os.environ, **settings}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode == 0:
            answer = pickle.loads(place.read_bytes())
            if isinstance(answer, GraphoptError):
                raise answer
            return answer
    lines = done.stderr.strip().splitlines() or ["nothing was said"]
    said = next((line.removeprefix("emulation: ") for line in lines if line.startswith("emulation: ")), lines[-1])
    if done.returncode < 0:
        index = ": an index outside of a thread's own array" * (done.returncode == -signal.SIGILL)
        said = f"the kernels ended in {signal.Signals(-done.returncode).name}{index}"
    raise EmulationError(f"{said}.")
