"""benchmarks/passes.py and what it measures: passes take time and memory in proportion to the graph."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "passes.py"


def measured(*options: str) -> list[dict]:
    command = [sys.executable, str(SCRIPT), "--json", *options]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["rows"]


def test_a_graph_of_ten_times_the_nodes_costs_at_most_twelve_times_as_much():
    small, large = measured("--nodes", "400,4000", "--models", "")
    assert "error" not in large
    assert large["cpu_s"] < 12 * small["cpu_s"]
    assert large["peak_mb"] < 12 * small["peak_mb"]


@pytest.mark.slow
def test_a_model_of_two_gigabytes_is_quantized_in_less_than_its_size():
    (row,) = measured("--nodes", "", "--models", "", "--big", "2.2")
    assert "error" not in row
    assert row["peak_mb"] < 1500


@pytest.mark.slow
def test_a_hundred_thousand_nodes_cost_at_most_twelve_times_ten_thousand():
    small, large = measured("--nodes", "10000,100000", "--models", "")
    assert large["cpu_s"] < 12 * small["cpu_s"]
    assert large["peak_mb"] < 12 * small["peak_mb"]
