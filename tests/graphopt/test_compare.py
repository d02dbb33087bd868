"""Compare: errors that were put in are found where they were put, and how large they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.base import Context
from graphopt.compare import compare
from graphopt.data import open_data
from graphopt.data.random import random_feeds
from graphopt.errors import DataError, ModelError
from graphopt.graph import load, save
from graphopt.models import get
from graphopt.noise import CLEAN, Sums
from graphopt.pipeline import parse_pipeline, run
from graphopt.testing import from_text

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


@pytest.fixture(scope="module")
def digits() -> ir.Model:
    return load(get("digits").path())


@pytest.fixture(scope="module")
def quantized(digits: ir.Model) -> ir.Model:
    data = open_data(get("digits").calibration(), digits)
    return run(digits, parse_pipeline("fold-batch-norm,insert-qdq"), Context(calibration=data)).model


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, np.ndarray]]:
    return [{"image": batch["image"][:8]} for batch, _ in zip(get("digits").calibration(), range(2), strict=False)]


def test_sums_are_those_of_the_formulas() -> None:
    rng = np.random.default_rng(0)
    want = rng.standard_normal((3, 50)).astype(np.float32)
    got = want + 0.01 * rng.standard_normal((3, 50)).astype(np.float32)
    sums = Sums()
    for a, b in zip(want, got, strict=True):
        sums.add(a, b)
    error = sums.error()
    gap = want.astype(np.float64) - got
    assert error.db == pytest.approx(10 * np.log10(np.square(want, dtype=np.float64).sum() / np.square(gap).sum()))
    assert error.largest == pytest.approx(np.abs(gap).max())
    assert error.relative == pytest.approx(np.abs(gap).max() / np.abs(want).max())


def test_infinities_and_nan() -> None:
    odd = np.array([np.inf, -np.inf, np.nan, 1.0])
    sums = Sums()
    sums.add(odd, odd)
    assert (sums.error().db, sums.error().largest) == (CLEAN, 0.0)
    for bad in ([np.inf, 1.0], [np.nan, 1.0]):
        sums = Sums()
        sums.add(np.array([1.0, 1.0]), np.array(bad))
        assert (sums.error().db, sums.error().largest) == (-CLEAN, np.inf)


def test_a_model_is_equal_to_itself_at_every_node(digits: ir.Model, feeds: list) -> None:
    found = compare(digits, digits.clone(), feeds)
    assert [n.node for n in found.nodes] == [node.name for node in digits.graph]
    assert all(n.accumulated.db == n.alone.db == CLEAN for n in found.nodes)
    assert [(o.name, o.graph.db, o.compiled) for o in found.outputs] == [("logits", CLEAN, None)]
    assert found.first is None
    assert not found.past


def test_a_wrong_weight_is_found_at_its_node_and_only_accumulates_after_it(digits: ir.Model, feeds: list) -> None:
    broken = digits.clone()
    weight = broken.graph.initializers["conv3.weight"]
    weight.const_value = ir.tensor(1.5 * weight.const_value.numpy(), name="conv3.weight")
    found = compare(digits, broken, feeds)
    errors = {n.node: n for n in found.nodes}
    own = {n.node for n in found.nodes if n.alone.db < 150}
    assert own == {"conv3"}
    assert errors["conv3"].alone.db == pytest.approx(-20 * np.log10(0.5), abs=1e-3)
    assert errors["relu2"].accumulated.db == CLEAN
    assert all(errors[name].accumulated.db < 30 for name in ("bn3", "relu3", "conv4", "classifier"))
    assert found.first == found.cause == errors["conv3"]
    assert found.past


def test_quantization_is_blamed_on_the_pass_that_did_it(digits: ir.Model, quantized: ir.Model, feeds: list) -> None:
    found = compare(digits, quantized, feeds, threshold_db=60)
    assert found.first is not None
    assert found.first.before == ["conv1", "bn1"]
    assert found.first.passes == ["insert-qdq"]
    assert all(10 < n.accumulated.db < CLEAN for n in found.nodes)
    for n in found.nodes:
        if n.op in ("Relu", "Conv", "Gemm", "Add"):
            assert n.accumulated.db <= n.alone.db + 6
    text = "\n".join(found.verdict())
    assert "first below 60 dB: conv1 (Conv)" in text
    assert "brought in by insert-qdq" in text
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["past"]


def test_a_pass_that_only_changes_weights_is_named(digits: ir.Model, feeds: list) -> None:
    pipeline = "eliminate-identity,fold-batch-norm,prune-magnitude{sparsity=0.5,include=[conv3]}"
    found = compare(digits, run(digits, parse_pipeline(pipeline)).model, feeds, threshold_db=60)
    assert found.first is not None
    assert (found.first.node, found.first.before, found.first.passes) == (
        "conv3",
        ["conv3", "bn3"],
        ["prune-magnitude"],
    )
    exact = {n.node: n.passes for n in found.nodes if n.alone.db > 100}
    assert exact["conv2"] == ["fold-batch-norm"]
    assert exact["relu2"] == []


def test_what_onnxruntime_made_of_a_model_is_compared(digits: ir.Model, feeds: list, tmp_path: Path) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(get("digits").path()), options, providers=["CPUExecutionProvider"])
    found = compare(digits, load(tmp_path / "optimised.onnx"), feeds)
    assert found.outputs[0].graph.db > 100
    assert "classifier" in {n.before[-1] for n in found.nodes}


def test_isolation_is_the_node_fed_with_right_values() -> None:
    body = (
        "g (float[4] x) => (float[4] y) <float k = {K}> "
        "{ [a] p = Mul(x, k) [b] q = Exp(p) [c] r = Mul(q, k) [d] y = Neg(r) }"
    )
    right, wrong = (from_text(HEAD + body.replace("K", k)) for k in ("2.0", "2.2"))
    x = np.array([0.5, 1.0, -1.0, 2.0], np.float32)
    found = compare(right, wrong, [{"x": x}])
    errors = {n.node: n for n in found.nodes}
    assert errors["a"].alone.relative == pytest.approx(0.1, rel=1e-4)
    assert errors["b"].alone.db == CLEAN
    assert errors["b"].accumulated.largest == pytest.approx(np.exp(4.4) - np.exp(4.0), rel=1e-4)
    assert errors["c"].alone.relative == pytest.approx(0.1, rel=1e-4)
    assert errors["c"].accumulated.relative == pytest.approx(1.1 * np.exp(0.4) - 1, rel=1e-4)


def test_small_chunks_give_the_same_errors(digits: ir.Model, quantized: ir.Model, feeds: list) -> None:
    whole = compare(digits, quantized, feeds[:1])
    pieces = compare(digits, quantized, feeds[:1], at_once=40_000)
    assert pieces == whole


def test_renamed_models_of_other_tools_and_inputs_by_place(digits: ir.Model, feeds: list) -> None:
    other = run(digits, parse_pipeline("fold-batch-norm")).model
    for count, node in enumerate(other.graph):
        node.name = f"n{count}"
        node.metadata_props.clear()
        node.outputs[0].name = f"v{count}"
    other.graph.inputs[0].name = "in"
    found = compare(digits, other, feeds)
    assert len(found.nodes) == len(other.graph)
    assert all(n.accumulated.db > 100 for n in found.nodes)
    assert found.nodes[0].before == ["conv1", "bn1"]
    assert found.nodes[0].passes == []


def test_values_that_changed_their_shape_or_type_are_left_out_and_named() -> None:
    before = from_text(HEAD + "g (float[2,3] x) => (float[2,3] y) { [a] p = Exp(x) [b] q = Neg(p) [c] y = Abs(q) }")
    after = from_text(
        HEAD + "g (float[2,3] x) => (float[2,3] y) <int64[2] s = {2, 3}, int64[2] t = {3, 2}> { [r0] e = Reshape(x, t) "
        "[a] p = Exp(e) [b] q = Neg(p) [r1] w = Reshape(q, s) [c] y = Abs(w) }"
    )
    found = compare(before, after, random_one(before))
    assert [n.node for n in found.nodes] == ["c"]
    assert found.left == {"a": "shape [2, 3] became [3, 2]", "b": "shape [2, 3] became [3, 2]"}
    assert found.outputs[0].graph.db == CLEAN


def random_one(model: ir.Model) -> list[dict[str, np.ndarray]]:
    return [random_feeds(model)]


def test_values_that_a_scale_was_moved_past_are_no_errors() -> None:
    rng = np.random.default_rng(0)
    before = from_text(
        HEAD + "g (float[2,3,4,4] x, float[3] s, float[3] m, float[12,5] w) => (float[2,5] y) { [act] r = Relu(x) "
        "[norm] n = BatchNormalization(r, s, m, m, s) [pool] p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (n) "
        "[flat] f = Flatten(p) [fc] g = MatMul(f, w) [end] y = Tanh(g) }",
        s=np.array([40, 0.01, 3], np.float32), m=np.array([0.3, -2, 1], np.float32),
        w=rng.standard_normal((12, 5)).astype(np.float32),
    )  # fmt: skip
    after = run(before, parse_pipeline("fold-batch-norm")).model
    assert "BatchNormalization" not in {node.op_type for node in after.graph}
    found = compare(before, after, random_one(before))
    assert set(found.left) == {"pool", "flat"}, found.left
    assert found.nodes[0].node == "act"
    assert all(n.alone.db > 100 for n in found.nodes)
    assert found.first is None


def test_models_that_can_not_be_compared() -> None:
    one = from_text(HEAD + "g (float[2] x) => (float[2] y) { y = Neg(x) }")
    two = from_text(HEAD + "g (float[2] x, float[2] z) => (float[2] y) { y = Add(x, z) }")
    with pytest.raises(ModelError, match="inputs are not the same"):
        compare(one, two, random_one(one))
    with pytest.raises(DataError, match="empty"):
        compare(one, one, [])
    with pytest.raises(DataError, match="lacks the model's input 'x'"):
        compare(one, one, [{"wrong": np.zeros(2, np.float32)}])
    with pytest.raises(DataError):
        compare(one, one, [{"x": np.zeros(3, np.float32)}])


def test_the_command(digits: ir.Model, quantized: ir.Model, feeds: list, tmp_path: Path, graphopt) -> None:
    a, b = save(digits, tmp_path / "a.onnx"), save(quantized, tmp_path / "b.onnx")
    np.savez(tmp_path / "x.npz", **feeds[0])
    done = graphopt("compare", a, b, "--inputs", tmp_path / "x.npz", "--threshold-db", 60, "--fail", "--json")
    assert done.code == 1
    assert done.json["first"]["passes"] == ["insert-qdq"]
    assert done.json["nodes"][0]["accumulated"]["db"] == done.json["first"]["accumulated"]["db"]
    done = graphopt("compare", a, b, "--calibration", tmp_path / "x.npz", "--samples", 4, "--threshold-db", 5, "--fail")
    assert done.code == 0, done.err
    assert "no node is below 5 dB" in done.out
    assert "conv5" in done.out
    done = graphopt("compare", a, a)
    assert "random numbers" in done.err
    assert "21 of them without any error" in done.out
    assert graphopt("compare", a, b, "--inputs", tmp_path / "none.npz").code == 4
    assert graphopt("compare", a, b, "--inputs", tmp_path / "x.npz", "--calibration", tmp_path / "x.npz").code == 2
    assert graphopt("compare", a, tmp_path / "none.onnx").code == 3
    assert graphopt("compare", a, b, "--threshold-db", "nan").code == 2


def test_a_compiled_artifact_is_compared_at_its_outputs(
    digits: ir.Model, feeds: list, tmp_path: Path, graphopt
) -> None:
    a = save(digits, tmp_path / "a.onnx")
    np.savez(tmp_path / "x.npz", **feeds[0])
    assert graphopt("compile", a, "--target", "llvm", "-O2", "-o", tmp_path / "a.gopt").code == 0
    done = graphopt("compare", a, tmp_path / "a.gopt", "-i", tmp_path / "x.npz")
    assert done.code != 0
    assert "--keep-source" in done.err
    assert graphopt("compile", a, "-O2", "-o", tmp_path / "a.gopt", "--keep-source").code == 0
    found = graphopt("compare", a, tmp_path / "a.gopt", "-i", tmp_path / "x.npz", "--json").json
    (output,) = found["outputs"]
    assert output["graph"]["db"] > 100
    assert output["compiled"]["db"] > 100
    assert found["nodes"][0]["before"] == ["conv1", "bn1"]
