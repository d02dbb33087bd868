"""Ctrl-C or SIGTERM at any moment: exit code 130 or 143, one line, nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DIGITS = Path(__file__).parents[2] / "models" / "digits.onnx"


def interrupted(command: list[str], by: str, ready: str) -> subprocess.CompletedProcess[str]:
    """Run the command line, and send it the signal `by` when it calls `ready`."""
    code = (
        "import sys, signal, os\n"
        "from graphopt import cli\n"
        "import importlib\n"
        f"module, name = {ready!r}.split(':')\n"
        "module = importlib.import_module(module)\n"
        "wrapped = getattr(module, name)\n"
        "def press(*a, **k):\n"
        f"    os.kill(os.getpid(), signal.{by})\n"
        "    return wrapped(*a, **k)\n"
        "setattr(module, name, press)\n"
        "cli.main()\n"
    )
    return subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("command", "at"),
    [
        ("opt", "graphopt.graph.load:normalise"),
        ("opt", "graphopt.atomic:_sync"),
        ("compile", "graphopt.artifact.writer:atomic_write"),
    ],
)
@pytest.mark.parametrize(("by", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupt_leaves_nothing(command: str, at: str, by: str, code: int, tmp_path: Path):
    """Ctrl-C, and what `timeout` and service managers send."""
    name = {"opt": "o.onnx", "compile": "o.gopt"}[command]
    done = interrupted([command, str(DIGITS), "-O1", "-o", str(tmp_path / name)], by, at)
    assert done.returncode == code, done.stderr
    assert done.stderr == "graphopt: error: interrupted; nothing was left half-written.\n"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_from_outside(tmp_path: Path):
    """As the terminal sends it, while the compiler of TVM works."""
    process = subprocess.Popen(
        [sys.executable, "-m", "graphopt", "compile", str(DIGITS), "-o", str(tmp_path / "o.gopt")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "graphopt: error: interrupted; nothing was left half-written.\n")
    assert list(tmp_path.iterdir()) == []
