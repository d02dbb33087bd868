"""The command line as a user meets it: the fixed forms work, and every mistake is one paragraph and an exit code."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt import cli
from graphopt.graph import load
from graphopt.testing import op_types, random_feeds


@pytest.fixture
def artifact(model: Path, tmp_path: Path, graphopt) -> Path:
    path = tmp_path / "small.gopt"
    done = graphopt("compile", model, "--target", "llvm", "-O1", "-o", path)
    assert done.code == 0, done.err
    return path


def test_opt_writes_a_model_and_json(model: Path, plugin: Path, tmp_path: Path, graphopt):
    out = tmp_path / "out.onnx"
    done = graphopt("opt", model, "-p", "relu-to-max", "--plugin", plugin, "-o", out, "--json")
    assert done.code == 0, done.err
    assert op_types(load(out)) == ["Conv", "Max", "Conv"]
    (step,) = done.json["passes"]
    assert step["pass"] == "relu-to-max"
    assert step["changes"] == [{"node": "node_Relu_1", "action": "Relu -> Max"}] or step["changes"][0]["action"]
    assert step["facts"]["relative_error"] == 0.0
    assert done.json["after"]["nodes"] == 3


def test_opt_with_every_way_to_name_a_pipeline(model: Path, tmp_path: Path, graphopt):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[pass]]\nname = "remove-unused"\n')
    for way in (["-O3"], ["--preset", "O1"], ["--recipe", recipe], ["-p", "fold-batch-norm"], []):
        done = graphopt("opt", model, *way, "-o", tmp_path / "o.onnx")
        assert done.code == 0, done.err


def test_compile_run_and_load_agree(model: Path, artifact: Path, tmp_path: Path, graphopt):
    from graphopt import oracle

    feeds = random_feeds(load(model))
    np.savez(tmp_path / "x.npz", **feeds)
    done = graphopt("run", artifact, "--input", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    assert done.code == 0, done.err
    with np.load(tmp_path / "y.npz") as got:
        np.testing.assert_allclose(got["y"], oracle.run(load(model), feeds)["y"], rtol=1e-5, atol=1e-5)


def test_bench_prints_the_promised_keys(artifact: Path, graphopt):
    done = graphopt("bench", artifact, "--against", "onnxruntime", "--threads", 1, "--seconds", 0.2, "--json")
    assert done.code == 0, done.err
    row = done.json
    assert row["ratio"] == pytest.approx(row["onnxruntime_ms"] / row["graphopt_ms"], rel=0.5)
    assert row["graphopt_ms"] > 0


def test_bench_compares_with_several(artifact: Path, graphopt):
    done = graphopt("bench", artifact, "--against", "onnxruntime", "--vs", "tvm", "--seconds", 0.1)
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines()]
    assert [row[0] for row in rows if row and row[0] in ("graphopt", "onnxruntime", "tvm")] == [
        "graphopt",
        "onnxruntime",
        "tvm",
    ]


def test_bench_names_what_it_knows(artifact: Path, graphopt):
    done = graphopt("bench", artifact, "--against", "fastest")
    assert done.code == 2
    assert "'fastest'" in done.err
    assert "onnxruntime, onnxruntime-cuda, openvino, tvm" in done.err


def test_evaluate_digits(graphopt):
    path = Path(__file__).parents[2] / "models" / "digits.onnx"
    done = graphopt("evaluate", path, "--model", "digits", "--json")
    assert done.code == 0, done.err
    assert done.json["metric"] == "accuracy"
    assert done.json["n"] == 500
    assert done.json["value"] > 0.97


def test_inspect_and_diff(model: Path, plugin: Path, tmp_path: Path, graphopt):
    out = tmp_path / "out.onnx"
    assert graphopt("opt", model, "-p", "relu-to-max", "--plugin", plugin, "-o", out).code == 0
    assert graphopt("inspect", model, "--json").json["nodes"]
    difference = graphopt("diff", model, out, "--json").json
    assert set(difference) >= {"added", "removed", "changed", "fused", "matched"}
    assert "Max" in graphopt("diff", model, out).out


def test_lists(plugin: Path, graphopt):
    names = [p["name"] for p in graphopt("passes", "--plugin", plugin, "--json").json]
    assert {"fold-batch-norm", "insert-qdq", "prune-magnitude", "substitute-distilled", "relu-to-max"} <= set(names)
    assert [t["name"] for t in graphopt("targets", "--json").json] == [
        "cuda", "llvm", "metal", "npu", "opencl", "rocm", "webgpu"
    ]  # fmt: skip
    assert "digits" in [m["name"] for m in graphopt("models", "list", "--json").json]
    assert "oneOf" in json.dumps(graphopt("passes", "--schema").json)


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["opt", "{model}", "-p", "fold-bn", "-o", "o.onnx"], 2, "there is no pass 'fold-bn'"),
        (["opt", "{model}", "-p", "prune-magnitude{sparsity=2}", "-o", "o.onnx"], 2, "option sparsity"),
        (["opt", "{model}", "-p", "insert-qdq", "-o", "o.onnx"], 4, "--calibration"),
        (["opt", "{model}", "-O1", "-p", "remove-unused", "-o", "o.onnx"], 2, "not several"),
        (["opt", "none.onnx", "-o", "o.onnx"], 3, "there is no file none.onnx"),
        (["opt", "{model}", "-o", "no/such/folder/o.onnx"], 2, "folder"),
        (["opt", "{model}", "--dim", "Q=3", "-o", "o.onnx"], 3, "no input has a dimension named 'Q'"),
        (["opt", "{model}", "--calibration", "none.npz", "-p", "insert-qdq", "-o", "o.onnx"], 4, "none.npz"),
        (["compile", "{model}", "--target", "lvm", "-o", "o.gopt"], 2, "did you mean llvm"),
        (["compile", "{model}", "--target", "llvm{mcpu=i386sx}", "-o", "o.gopt"], 2, "i386sx"),
        (["compile", "{model}", "-o", "o.onnx"], 2, "ends in .gopt"),
        (["opt", "{model}", "-o", "o.gopt"], 2, "graphopt compile gives an artifact"),
        (["run", "{model}", "-i", "x.npz", "-o", "y.npz"], 4, "x.npz"),
        (["run", "{model}", "-i", "{model}", "-o", "y.npz"], 4, "it holds no arrays, or pickled objects."),
        (["evaluate", "{model}", "--model", "digitz"], 2, "digits"),
        (["models", "fetch", "nope"], 2, "nope"),
    ],
)
def test_mistakes_are_one_paragraph(
    arguments: list[str], code: int, complaint: str, model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, graphopt,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    done = graphopt(*(a.format(model=model) if a == "{model}" else a for a in arguments))
    assert done.code == code, done.err
    assert complaint in done.err
    assert "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("o.*")), "nothing half-written"


def test_an_archive_is_not_taken_for_a_model_cut_short(artifact: Path, tmp_path: Path, graphopt):
    done = graphopt("opt", artifact, "-o", tmp_path / "o.onnx")
    assert done.code == 3
    assert "small.gopt is a zip archive, as artifacts (.gopt)" in done.err


def test_a_reproducer_is_told_of(model: Path, plugin: Path, tmp_path: Path, graphopt):
    folder = tmp_path / "kept"
    words = ("-p", "scale-weights{factor=2}", "--plugin", plugin, "--reproducer", folder)
    done = graphopt("opt", model, *words, "-o", tmp_path / "o.onnx")
    assert done.code == 5
    assert f"kept in {folder}" in done.err
    assert (folder / "model.onnx").is_file()


def test_wrong_inputs_at_run_name_the_input(artifact: Path, tmp_path: Path, graphopt):
    for feeds, complaint in (
        ({"x": np.zeros((1, 3, 6, 6), np.float32)}, "x"),
        ({"x": np.zeros((1, 2, 6, 6), np.float64)}, "float64"),
        ({"z": np.zeros((1, 2, 6, 6), np.float32)}, "z"),
    ):
        np.savez(tmp_path / "x.npz", **feeds)
        done = graphopt("run", artifact, "-i", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
        assert done.code == 4, done.err
        assert complaint in done.err
    assert not (tmp_path / "y.npz").exists()


def test_a_flipped_byte_is_refused(artifact: Path, tmp_path: Path, graphopt):
    data = bytearray(artifact.read_bytes())
    data[len(data) // 2] ^= 1
    artifact.write_bytes(data)
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 2, 6, 6), np.float32))
    done = graphopt("run", artifact, "-i", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    assert done.code == 7, done.err


def test_an_unexpected_exception_is_a_bug_report_without_a_traceback(
    model: Path, monkeypatch: pytest.MonkeyPatch, graphopt
):
    from graphopt import graph

    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(graph, "load", broken)
    done = graphopt("opt", model, "-o", "o.onnx")
    assert done.code == cli.INTERNAL
    assert "bug in graphopt: ZeroDivisionError" in done.err


def test_version_in_a_process_of_its_own():
    done = subprocess.run([sys.executable, "-m", "graphopt", "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("graphopt ")
