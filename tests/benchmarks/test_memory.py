"""benchmarks/memory.py measures a model in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "memory.py"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_row_has_the_megabytes_of_both_runners():
    command = [sys.executable, str(SCRIPT), "--models", "digits", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (row,) = json.loads(done.stdout)
    assert 1 < row["graphopt_mb"] < 200
    assert 1 < row["onnxruntime_mb"] < 200
    assert row["ratio"] == pytest.approx(row["onnxruntime_mb"] / row["graphopt_mb"])
