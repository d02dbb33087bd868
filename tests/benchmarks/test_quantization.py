"""The quantization benchmark's one command, on the smallest model."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "quantization.py"
KEYS = {
    "model", "recipe", "metric", "float", "quantized", "onnxruntime_quantized", "n", "ratio_vs_float",
    "ratio_vs_onnxruntime_float", "size_ratio",
}  # fmt: skip


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_a_row_and_the_results_file(tmp_path):
    out = tmp_path / "results" / "quantization.json"
    done = run("--models", "digits", "--recipes", "int8", "--seconds", "0.1", "--json", "--out", str(out))
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row.keys() >= KEYS
    assert (row["model"], row["recipe"], row["metric"], row["n"]) == ("digits", "int8", "accuracy", 500)
    assert row["float"] == 0.994
    assert row["quantized"] >= row["float"] - 0.005
    assert row["onnxruntime_quantized"] > 0.9
    assert 0 < row["size_ratio"] < 0.4
    assert row["ratio_vs_float"] > 0
    assert row["ratio_vs_onnxruntime_float"] > 0
    assert 0 < row["artifact_ratio"] < 0.45
    assert "OpenVINO's quantizer is left out" in done.stderr
    assert json.loads(out.read_text())["rows"] == [row]
    kept = {"model": "mnist", "recipe": "int8", **dict.fromkeys(KEYS - {"model", "recipe"})}
    failed = {**kept, "recipe": "int4-weights", "error": "no"}
    out.write_text(json.dumps({"rows": [kept, {**row, "quantized_ms": 7.0}, failed]}))
    again = run("--models", "digits", "--recipes", "int8", "--json", "--out", str(out), "--resume")
    assert json.loads(again.stdout)[0]["quantized_ms"] == 7.0, "measured once"
    assert [(r["model"], r["recipe"]) for r in json.loads(out.read_text())["rows"]] == [
        ("mnist", "int8"),
        ("digits", "int8"),
    ]


def test_a_recipe_that_fails_is_a_row():
    done = run("--models", "digits", "--recipes", "", "--pipeline", "insert-qdq{observer=none}", "--json")
    assert done.returncode == 1
    (row,) = json.loads(done.stdout)
    assert row.keys() >= KEYS
    assert "observer" in row["error"]
