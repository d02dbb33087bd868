"""ONNX's backend suite: a sample is as good as the results file says, and the whole of it in the slow sweep."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SAMPLE = (
    "test_abs",  # passes alone
    "test_reduce_sum_do_not_keepdims_random",  # passes with its axes given
    "test_cast_FLOAT_to_FLOAT8E4M3FN",  # not in TVM's importer
    "test_layer_normalization_2d_axis0",  # silently wrong in TVM's importer, twice
    "test_nonmaxsuppression_identical_boxes",  # silently wrong there, on onnxruntime here
    "test_sequence_insert_at_back",  # no tensors
)


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_sample_is_as_the_results_say(benchmarks):
    import coverage
    import coverage_table
    import onnx_cases
    from one_case import run

    known = coverage_table.read(coverage.RESULTS)
    cases = onnx_cases.load(("node",))
    for name in SAMPLE:
        row = run(cases[name])
        assert coverage.worse(row, known[name]) == []
        assert row["fallback"][0] == "passes"
    assert run(cases["test_nonmaxsuppression_identical_boxes"])["alone"][0] == "refused"


def test_nothing_in_the_results_is_silently_wrong(benchmarks):
    import coverage
    import coverage_table

    rows = coverage_table.read(coverage.RESULTS)
    assert len(rows) > 1000
    there = [row for row in rows.values() if row["onnxruntime"][0] == "passes"]
    assert [row["name"] for row in there for way in coverage.WAYS[1:] if row[way][0] in ("wrong", "crashed")] == []


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        (np.array([1, 2], np.float32), None),
        (np.array([1, 2.0009], np.float32), None),
        (np.array([1, 2.01], np.float32), "off by up to"),
        (np.array([1, np.nan], np.float32), "off by up to"),
        (np.array([1, 2], np.float64), "float64[2] where float32[2]"),
        (np.array([[1, 2]], np.float32), "float32[1, 2] where float32[2]"),
        (None, "optional"),
    ],
)
def test_what_counts_as_wrong(benchmarks, got, reason):
    from onnx_cases import difference

    found = difference(np.array([1, 2], np.float32), got, rtol=1e-3, atol=1e-7)
    assert found is None if reason is None else reason in (found or "")


def test_a_process_that_dies_is_that_cases_result(benchmarks, monkeypatch, tmp_path):
    import coverage

    dying = tmp_path / "dying.py"
    dying.write_text("import os, signal, sys\nsys.stdin.readline()\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(coverage, "WORKER", dying)
    rows = []
    coverage.run(["one", "two"], 1, rows.append)
    assert [row["alone"] for row in rows] == [["crashed", "status -11"]] * 2


@pytest.mark.slow
def test_no_case_is_worse_than_the_results_say():
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "coverage.py"), "--check", "*"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
