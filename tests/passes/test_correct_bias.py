"""Bias correction: output means come back, integers stay integers, and the float model stays known."""

import functools

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import models, oracle
from graphopt.api import run_pipeline
from graphopt.errors import DataError, PassError
from graphopt.graph import constant_array, load, save
from graphopt.passes.correct.bias import shift_bias
from graphopt.passes.correct.twin import float_twin
from graphopt.passes.correct.walk import Walk, sample
from graphopt.passes.correct_bias import CorrectBias
from graphopt.testing import assert_equivalent, from_text

RNG = np.random.default_rng(0)
HEAD = '<ir_version: 8, opset_import: ["": 17]> '


def normal(*shape, scale=1.0):
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


@functools.cache
def digits(pipeline):
    model = models.get("digits")
    return run_pipeline(model.path(), pipeline, calibration=model.calibration)


def noise(model, reference):
    """Signal to noise (dB) of the logits on the held-out images."""
    signal = error = 0.0
    for feeds in models.get("digits").evaluation().feeds():
        want, got = (oracle.run(m, feeds)["logits"].astype(np.float64) for m in (reference, model))
        signal, error = signal + (want**2).sum(), error + ((want - got) ** 2).sum()
    return 10 * np.log10(signal / error)


def test_logits_come_closer():
    reference = digits("fold-batch-norm").model
    plain = noise(digits("fold-batch-norm,insert-qdq{weight_bits=4}").model, reference)
    result = digits("fold-batch-norm,insert-qdq{weight_bits=4},correct-bias")
    assert noise(result.model, reference) > plain + 2
    assert set(result.steps[-1].report.facts["shifts"]) == {"conv1", "conv2", "conv3", "conv4", "conv5", "classifier"}
    for node in result.model.graph:
        if node.op_type == "Conv":
            assert constant_array(node.inputs[2].producer().inputs[0]).dtype == np.int32


def test_same_bytes(tmp_path):
    pipeline = "fold-batch-norm,insert-qdq{weight_bits=4},correct-bias"
    first = save(digits(pipeline).model, tmp_path / "a.onnx").read_bytes()
    digits.cache_clear()
    assert save(digits(pipeline).model, tmp_path / "b.onnx").read_bytes() == first


def test_twin_is_the_float_model():
    """Also after the biases moved: further corrections compare with the original."""
    reference = digits("fold-batch-norm").model
    for pipeline in ("insert-qdq", "insert-qdq{weight_bits=3},correct-bias"):
        twin = float_twin(digits(f"fold-batch-norm,{pipeline}").model, "x")
        feeds = models.get("digits").example(4)
        np.testing.assert_array_equal(oracle.run(twin, feeds)["logits"], oracle.run(reference, feeds)["logits"])
        assert "DequantizeLinear" not in {n.op_type for n in twin.graph}


def test_walk_sees_changed_weights():
    """Every value is what the whole model gives, and a weight changed on the way counts from there on."""
    model = digits("fold-batch-norm,insert-qdq").model.clone()
    feeds = sample(_batches(), 12)
    assert sum(len(f["image"]) for f in feeds) == 12
    walk = Walk(model, feeds)
    nodes = [n for n in model.graph if n.op_type in ("Conv", "Gemm")]
    for node in nodes:
        got = walk.at(node.outputs[0])
        for piece, array in zip(feeds, got, strict=True):
            np.testing.assert_array_equal(array, oracle.run(model, piece, [node.outputs[0].name])[node.outputs[0].name])
        if node.name == "conv3":
            later = nodes[3].inputs[1].producer()
            later.replace_input_with(0, _negated(model, later.inputs[0]))


def _batches():
    from graphopt.data import open_data

    return open_data(models.get("digits").calibration, digits("fold-batch-norm").model)


def _negated(model, value):
    from graphopt.graph import add_constant

    return add_constant(model.graph, "negated", -constant_array(value))


MATMULS = """
g (float[n,6] x, float[6,5] w1, float[5] b1, float[5,4] w2, float[4,3] w3, float[3] c, float[3,2] w4)
  => (float[n,2] z) {
  a = MatMul (x, w1)
  b = Add (b1, a)
  r = Relu (b)
  d = MatMul (r, w2)
  e = Gemm <beta: float = 2.0> (d, w3, c)
  z = Gemm (e, w4)
}
"""


def test_places_of_a_bias():
    """The Add's constant behind a MatMul, a new int32 bias where there was none; and where there is no place."""
    model = from_text(
        HEAD + MATMULS,
        w1=normal(6, 5), b1=normal(5), w2=normal(5, 4), w3=normal(4, 3), c=normal(3), w4=normal(3, 2),
    )  # fmt: skip
    feeds = {"x": normal(64, 6) + 1}
    result = run_pipeline(model, "insert-qdq{weight_bits=3},correct-bias", calibration=[feeds])
    reasons = [skip.reason for skip in result.steps[1].report.skipped]
    assert len(result.steps[1].report.changes) == 2
    assert any("no Add alone reads it" in reason for reason in reasons)
    assert any("beta" in reason for reason in reasons)
    last = list(result.model.graph)[-1]
    assert constant_array(last.inputs[2].producer().inputs[0]).dtype == np.int32
    mean = [oracle.run(m, feeds)["z"].mean(axis=0) for m in (model, result.model)]
    step = constant_array(last.inputs[2].producer().inputs[1]).max()  # the last layer's bias makes the means equal
    np.testing.assert_allclose(mean[1], mean[0], atol=0.51 * step)
    twin = float_twin(result.model, "x")
    np.testing.assert_array_equal(oracle.run(twin, feeds)["z"], oracle.run(model, feeds)["z"])


def test_a_file_does_not_know_its_float_weights(tmp_path):
    path = save(digits("fold-batch-norm,insert-qdq").model, tmp_path / "q.onnx")
    with pytest.raises(PassError, match="same pipeline"):
        run_pipeline(path, "correct-bias", calibration=models.get("digits").calibration)


def test_needs_data_and_leaves_float_models_alone():
    model = load(models.get("digits").path())
    with pytest.raises(DataError, match="calibration"):
        run_pipeline(model, [CorrectBias()])
    result = run_pipeline(model, [CorrectBias()], calibration=models.get("digits").calibration)
    assert not result.steps[0].changed
    assert isinstance(result.model, ir.Model)


def test_a_half_precision_bias_stays_one():
    """Found by fuzzing: prune-magnitude refits biases, and gave a float16 Conv a float32 one."""
    w = np.random.default_rng(0).standard_normal((2, 2, 3, 3)).astype(np.float16)
    model = from_text(
        """<ir_version: 9, opset_import: ["": 17]> g (float16[N,2,4,4] x, float16[2,2,3,3] w) => (float16[N,2,4,4] y)
        { y = Conv<pads=[1,1,1,1]>(x, w) }""",
        w=w,
    )
    (node,) = model.graph
    shift_bias(model.graph, node, np.array([0.5, -1.0]))
    assert node.inputs[2].dtype == ir.DataType.FLOAT16
    assert_equivalent(model, model)  # onnxruntime runs it
