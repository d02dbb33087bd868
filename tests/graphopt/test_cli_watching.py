"""The options that watch a pipeline, end to end: what they leave on disk, and what a failure says."""

import json
from pathlib import Path

import numpy as np
import pytest

from graphopt.graph import load, save, sources
from graphopt.testing import from_text, op_types


def test_presets_are_the_pipelines_they_stand_for(model: Path, tmp_path: Path, graphopt):
    from graphopt.pipeline import PRESETS

    np.savez(tmp_path / "c.npz", x=np.random.default_rng(0).standard_normal((8, 2, 6, 6)).astype(np.float32))
    for name, text in PRESETS.items():
        done = graphopt(
            "opt", model, "--preset", name, "--calibration", tmp_path / "c.npz", "-o", tmp_path / "o.onnx", "--json"
        )
        assert done.code == 0, done.err
        assert ",".join(step["pass"] for step in done.json["passes"]) == text
        quantized = {"int8": "QuantizeLinear", "int8-dynamic": "ConvInteger"}  # too small for 4 bits
        quantized |= {"float16": "Cast", "bfloat16": "Cast"}
        assert quantized.get(name, "Conv") in op_types(load(tmp_path / "o.onnx"))


def test_a_recipe_is_the_pipeline_it_spells(model: Path, tmp_path: Path, graphopt):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[pass]]\nname = "prune-magnitude"\nsparsity = 0.5\n[[pass]]\nname = "remove-unused"\n')
    done = graphopt("opt", model, "--recipe", recipe, "-o", tmp_path / "o.onnx", "--json")
    assert [step["pass"] for step in done.json["passes"]] == ["prune-magnitude{sparsity=0.5}", "remove-unused"]
    w1 = load(tmp_path / "o.onnx").graph.initializers["w1"].const_value.numpy()
    assert np.count_nonzero(w1) == w1.size // 2
    recipe.write_text('[[pass]]\nname = "prune-magnitude"\nsparsitty = 0.5\n')
    done = graphopt("opt", model, "--recipe", recipe, "-o", tmp_path / "o.onnx")
    assert done.code == 2
    assert "pass 1 of the recipe" in done.err
    assert "sparsitty" in done.err


def test_dump_each_and_print_each(model: Path, plugin: Path, tmp_path: Path, graphopt):
    folder = tmp_path / "dumps"
    done = graphopt(
        "opt", model, "--plugin", plugin, "-p", "boast,relu-to-max", "--dump-each", folder, "--print-each",
        "-o", tmp_path / "o.onnx",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert sorted(p.name for p in folder.iterdir()) == ["00-input.onnx", "02-relu-to-max.onnx"]
    assert op_types(load(folder / "02-relu-to-max.onnx")) == ["Conv", "Max", "Conv"]
    assert done.err.startswith("// after relu-to-max\n"), "the graph goes to stderr: stdout stays for the account"


@pytest.mark.parametrize(
    ("options", "ran"),
    [
        (["--bisect-limit", 0], []),
        (["--bisect-limit", 1], ["boast"]),
        (["--stop-after", "relu-to-max"], ["boast", "relu-to-max"]),
        (["--stop-after", "relu-to-max", "--bisect-limit", 1], ["boast"]),
    ],
)
def test_only_the_first_passes_run(options: list, ran: list, model: Path, plugin: Path, tmp_path: Path, graphopt):
    done = graphopt(
        "opt", model, "--plugin", plugin, "-p", "boast,relu-to-max,crash", *options, "-o", tmp_path / "o.onnx", "--json"
    )
    assert done.code == 0, done.err
    assert [step["pass"] for step in done.json["passes"]] == ran
    assert op_types(load(tmp_path / "o.onnx"))[1] == ("Max" if "relu-to-max" in ran else "Relu")


def test_bisection_finds_the_pass_that_breaks_the_model(model: Path, plugin: Path, tmp_path: Path, graphopt):
    pipeline = "relu-to-max,boast,scale-weights{factor=1.5},remove-unused"

    def passes(limit: int) -> bool:
        done = graphopt(
            "opt", model, "--plugin", plugin, "-p", pipeline, "--bisect-limit", limit, "-o", tmp_path / "o.onnx"
        )
        assert done.code in (0, 5)
        return done.code == 0

    assert [passes(limit) for limit in range(5)] == [True, True, True, False, False]


def test_a_reproducer_fails_the_same_way_from_its_folder(model: Path, plugin: Path, tmp_path: Path, graphopt):
    folder, out = tmp_path / "r", tmp_path / "o.onnx"
    first = graphopt(
        "opt", model, "--plugin", plugin, "-p", "relu-to-max,scale-weights{factor=2},remove-unused",
        "--reproducer", folder, "-o", out,
    )  # fmt: skip
    assert first.code == 5
    assert not out.exists()
    text = (folder / "pipeline.txt").read_text().strip()
    assert text == "scale-weights{factor=2.0},remove-unused"
    again = graphopt("opt", folder / "model.onnx", "--plugin", plugin, "-p", text, "-o", out)
    kept, said = first.err.splitlines()
    assert kept == f"kept in {folder}: the graph that the pass was given, and the passes left"
    assert (again.code, again.err.splitlines()) == (first.code, [said])


def test_stop_after_a_pass_that_is_not_there(model: Path, tmp_path: Path, graphopt):
    done = graphopt("opt", model, "-O2", "--stop-after", "insert-qdq", "-o", tmp_path / "o.onnx")
    assert done.code == 2
    assert "the pipeline has fold-constants" in done.err


def custom(tmp_path: Path) -> Path:
    """A model with an operator that onnxruntime does not know, whose result has no known shape."""
    text = """
        <ir_version: 8, opset_import: ["": 17, "my.domain": 1]>
        g (float[1,2] x) => (float y) { a = Relu(x)  i = Identity(a)  b = my.domain.Foo(i)  c = Relu(b)  y = Neg(c) }
        """
    model = from_text(text)
    model.graph.outputs[0].shape = None
    return save(model, tmp_path / "custom.onnx")


def test_a_model_that_onnxruntime_cannot_run_names_the_ways_out(tmp_path: Path, graphopt):
    done = graphopt("opt", custom(tmp_path), "-O3", "-o", tmp_path / "o.onnx")
    assert done.code == 3
    assert "my.domain:Foo" in done.err
    for way in ("--calibration", "--dim", "--no-verify"):
        assert way in done.err
    assert not (tmp_path / "o.onnx").exists()


def test_custom_operators_pass_through_untouched(tmp_path: Path, graphopt):
    done = graphopt("opt", custom(tmp_path), "-O3", "--no-verify", "-o", tmp_path / "o.onnx")
    assert done.code == 0, done.err
    after = load(tmp_path / "o.onnx")
    assert op_types(after) == ["Relu", "Foo", "Relu", "Neg"], "the Identity went, the rest stayed"
    assert after.graph[1].outputs[0].shape is None


def test_compile_json_has_target_passes_and_report(model: Path, tmp_path: Path, graphopt):
    done = graphopt("compile", model, "--target", "llvm", "-O1", "-o", tmp_path / "m.gopt", "--json")
    assert done.code == 0, done.err
    assert done.json["target"] == "llvm"
    assert len(done.json["passes"]) == 4
    assert done.json["bytes"] == (tmp_path / "m.gopt").stat().st_size
    assert isinstance(done.json["report"], dict)


def test_the_output_is_checked_before_the_work(model: Path, plugin: Path, tmp_path: Path, graphopt):
    """A pass that would crash does not get to run when there is nowhere to write."""
    for command, out in (("opt", tmp_path), ("compile", tmp_path / "no" / "o.gopt")):
        done = graphopt(command, model, "--plugin", plugin, "-p", "crash", "-o", out)
        assert done.code == 2
        assert "can't write" in done.err


def test_provenance_goes_through_the_whole_pipeline_to_the_file(tmp_path: Path, graphopt):
    """Every node of a folded, pruned and quantized digits model names nodes of the original."""
    original = load(Path(__file__).parents[2] / "models" / "digits.onnx")
    names = {node.name for node in original.graph}
    assert graphopt("models", "calibration", "digits", "-o", tmp_path / "c.npz").code == 0
    done = graphopt(
        "opt", Path(__file__).parents[2] / "models" / "digits.onnx", "--calibration", tmp_path / "c.npz",
        "-p", "fold-batch-norm,prune-magnitude{sparsity=0.2},insert-qdq", "-o", tmp_path / "o.onnx",
    )  # fmt: skip
    assert done.code == 0, done.err
    after = load(tmp_path / "o.onnx")
    for node in after.graph:
        assert sources(node), f"{node.name} has no source"
        assert set(sources(node)) <= names
    convolution = next(node for node in after.graph if node.op_type == "Conv")
    assert sources(convolution) == ["conv1", "bn1"]
    made_by = [json.loads(node.metadata_props.get("graphopt.passes", "[]")) for node in after.graph]
    assert ["fold-batch-norm"] in [m[:1] for m in made_by]
    assert ["insert-qdq"] in made_by
