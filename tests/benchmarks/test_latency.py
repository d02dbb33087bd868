"""The benchmark's one command, on the smallest model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

LATENCY = Path(__file__).parents[2] / "benchmarks" / "latency.py"
KEYS = {"model", "threads", "batch", "graphopt_ms", "onnxruntime_ms", "ratio", "max_relative_error", "compile_s"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(LATENCY), *arguments], capture_output=True, text=True, check=False)


def test_rows_and_results_file(tmp_path):
    out = tmp_path / "results" / "latency.json"
    done = run("--models", "digits", "--threads", "1", "--batch", "2", "--seconds", "0.2", "--json", "--out", str(out))
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row.keys() >= KEYS
    assert (row["model"], row["threads"], row["batch"]) == ("digits", 1, 2)
    assert row["ratio"] == pytest.approx(row["onnxruntime_ms"] / row["graphopt_ms"], rel=0.5)
    assert 0 <= row["max_relative_error"] < 1e-4
    written = json.loads(out.read_text())
    assert written["rows"] == [row]
    assert written["geometric_mean"]["ratio"] == pytest.approx(row["ratio"])
    assert written["machine"]["cpu"]
    assert written["versions"]["onnxruntime"]


def test_one_failure_is_a_row_and_the_rest_goes_on():
    done = run("--models", "digits", "--threads", "2000,1", "--seconds", "0.1", "--json")
    assert done.returncode == 1
    failed, digits = json.loads(done.stdout)
    assert failed["threads"] == 2000
    assert "threads" in failed["error"]
    assert digits["ratio"] > 0


def test_table_is_markdown():
    done = run("--models", "digits", "--seconds", "0.1")
    assert done.returncode == 0, done.stderr
    head, rule, row, _, means = done.stdout.splitlines()
    assert head.startswith("| model | threads | batch | graphopt ms | onnxruntime ms | ratio |")
    assert head.count("|") == rule.count("|") == row.count("|")
    assert means.startswith("Geometric means of the ratios: onnxruntime ")
