"""The compression benchmark's one command, on the smallest model."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "compression.py"
KEYS = {"model", "recipe", "metric", "float", "compressed", "n", "speedup", "speedup_vs_onnxruntime", "size_ratio"}


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_rows_of_channel_pruning_and_its_baseline(tmp_path):
    out = tmp_path / "results" / "compression.json"
    recipes = "channels,random-channels,rounded"
    done = run("--models", "digits", "--recipes", recipes, "--seconds", "0.1", "--json", "--out", str(out))
    assert done.returncode == 0, done.stderr
    pruned, naive, rounded = json.loads(done.stdout)
    assert pruned.keys() >= KEYS
    assert (pruned["model"], pruned["recipe"], pruned["metric"], pruned["n"]) == ("digits", "channels", "accuracy", 500)
    assert pruned["float"] == 0.994
    assert pruned["compressed"] >= 0.9  # a quarter of the arithmetic, before fine-tuning
    assert naive["compressed"] < pruned["compressed"] - 0.1
    assert 0.2 < rounded["size_ratio"] < 0.45
    assert rounded["macs_ratio"] == 1
    assert 0 < pruned["size_ratio"] < 0.5
    assert pruned["speedup"] > 0
    assert pruned["speedup_vs_onnxruntime"] > 0
    assert json.loads(out.read_text())["rows"] == [pruned, naive, rounded]


def test_what_is_kept_is_only_timed_again_and_other_tools_are_named(tmp_path):
    keep = ("--models", "digits", "--recipes", "rounded,onnxsim", "--keep", str(tmp_path), "--json")
    (first,) = json.loads(run(*keep, "--seconds", "0").stdout)  # without --onnxsim there is no row of it
    (kept,) = tmp_path.glob("digits-*.onnx")
    notes = kept.with_suffix(".json")
    notes.write_text(json.dumps(json.loads(notes.read_text()) | {"compressed": 0.5}))
    second, other = json.loads(run(*keep, "--seconds", "0.05", "--onnxsim", sys.executable).stdout)
    assert first["speedup"] is None
    assert second["speedup"] > 0
    assert second["compressed"] == 0.5  # as it is in the folder
    assert second["seconds"] == first["seconds"]
    assert "onnxsim" in other["error"] or other["compressed"] is not None


def test_a_process_that_is_killed_is_a_row_and_the_next_recipe_runs():
    recipes = ("--models", "digits", "--recipes", "rounded,rounded", "--seconds", "0", "--timeout", "0.01")
    done = run(*recipes, "--json")
    assert done.returncode == 1
    assert [row["error"] for row in json.loads(done.stdout)] == ["not done after 0.01 s"] * 2


def test_a_pipeline_that_fails_is_a_row_and_an_unknown_recipe_an_error():
    done = run("--models", "digits", "--recipes", "", "--pipeline", "prune-channels{criterion=none}", "--json")
    assert done.returncode == 1
    (row,) = json.loads(done.stdout)
    assert row.keys() >= KEYS
    assert "criterion" in row["error"]
    assert "there is no recipe 'x'" in run("--models", "digits", "--recipes", "x").stderr


def test_the_documentation_has_the_rows_that_were_measured_by_the_recipes_there_are():
    """To mend it: run the benchmark again with ``--docs docs/pruning.md``."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import compression
    finally:
        sys.path.remove(str(SCRIPT.parent))
    root = SCRIPT.parents[1]
    rows = json.loads((SCRIPT.parent / "results" / "compression.json").read_text())["rows"]
    page = (root / "docs" / "pruning.md").read_text()
    assert f"{compression.MARKS[0]}\n{compression.documented(rows)}\n{compression.MARKS[1]}" in page
    for row in rows:
        assert row.get("pipeline") in (None, compression.pipeline_of(row["recipe"], row["model"])), row["model"]
    for model in {row["model"] for row in rows}:
        assert tuple(row["recipe"] for row in rows if row["model"] == model) == compression.TABLE[model]
