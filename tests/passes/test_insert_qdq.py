"""What insert-qdq gives as a whole: options, the same result each time, accuracy on held-out labels, refusals."""

import collections
import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest
from qdq import build, close, conv_relu_conv, initializers, node_of, normal, producers, quantized, scale_of

from graphopt import models, oracle
from graphopt.base import Context
from graphopt.data import Batches, open_data
from graphopt.errors import DataError, PassError, UsageError
from graphopt.graph import constant_array, load
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.passes.quant.calibrate import calibrate
from graphopt.pipeline.registry import make_target, parse_pipeline
from graphopt.testing import apply, op_types


def test_conv_relu_conv():
    before = conv_relu_conv()
    feeds = {"x": normal(4, 3, 8, 8)}
    after, report = quantized(before, feeds)
    first, second = node_of(after, "Conv"), node_of(after, "Conv", 1)
    assert producers(first) == ["DequantizeLinear"] * 3
    assert producers(second) == ["DequantizeLinear"] * 2
    assert producers(node_of(after, "Relu")) == ["Conv"]  # no pair between Conv and the Relu that alone reads it
    assert constant_array(first.inputs[1].producer().inputs[0]).dtype == np.int8
    assert scale_of(first.inputs[1]).shape == (6,)
    bias = first.inputs[2].producer()
    assert constant_array(bias.inputs[0]).dtype == np.int32
    np.testing.assert_allclose(
        constant_array(bias.inputs[1]), scale_of(first.inputs[0]) * scale_of(first.inputs[1]), rtol=1e-6
    )
    assert constant_array(second.inputs[0].producer().inputs[2]) == 0  # after a Relu, zero is the lowest
    assert {str(v.dtype) for v in after.graph.outputs} == {"FLOAT"}
    assert "w1" not in after.graph.initializers  # the float weights are gone
    assert report.facts["quantized"] == report.facts["weighted"] == 2
    close(before, after, feeds)


@pytest.mark.parametrize("observer", ["minmax", "moving-average", "percentile", "mse"])  # entropy clips the rare
@pytest.mark.parametrize("more", [{}, {"activations": "int8"}, {"weight_bits": 7}, {"power_of_two": True}], ids=str)
def test_options(observer, more):
    before = conv_relu_conv()
    feeds = {"x": normal(4, 3, 8, 8)}
    after, _ = quantized(before, feeds, observer=observer, **more)
    close(before, after, feeds, share=0.06)
    pair = node_of(after, "QuantizeLinear")
    assert constant_array(pair.inputs[2]).dtype == np.dtype(more.get("activations", "uint8"))
    weights = constant_array(node_of(after, "Conv").inputs[1].producer().inputs[0])
    assert np.abs(weights).max() == (63 if "weight_bits" in more else 127) or "power_of_two" in more
    if "power_of_two" in more:
        mantissa, _ = np.frexp(scale_of(node_of(after, "Conv").inputs[1]))
        assert (mantissa == 0.5).all()


@pytest.mark.parametrize(
    ("target", "asked", "bits"),
    [
        ("llvm{mcpu=x86-64-v3}", None, 7), ("llvm{mcpu=cascadelake}", None, 8), ("llvm{mcpu=neoverse-n1}", None, 8),
        ("llvm{mcpu=x86-64-v3}", 8, 8), (None, None, 8),
    ],
)  # fmt: skip
def test_weights_have_the_bits_that_the_target_is_fastest_with(target, asked, bits):
    """x86 without VNNI adds two products of 8 bits in 16, which only 7-bit weights never saturate."""
    context = Context(
        calibration=Batches(lambda: [{"x": normal(4, 3, 8, 8)}]), target=None if target is None else make_target(target)
    )
    after, report = apply(InsertQdq(weight_bits=asked), conv_relu_conv(), context)
    weights = constant_array(node_of(after, "Conv").inputs[1].producer().inputs[0])
    assert np.abs(weights).max() == 2 ** (bits - 1) - 1
    assert report.facts["weight_bits"] == bits
    assert all(change.action.endswith("7-bit weights") == (bits == 7) for change in report.changes)


def test_left_alone_with_a_reason():
    before = build(
        """
        g (float[n,4] x, float16[n,4] h, float[4,4] w1, float[4,4] bad, float16[4,4] w2, float[16] flat, int64[2] s)
          => (float[n,4] a, float[n,4] b, float16[n,4] c, float[n,4] d, float[n,4] e) {
          a = MatMul (x, w1)
          b = MatMul (x, bad)
          c = MatMul (h, w2)
          m = Reshape (flat, s)
          d = MatMul (x, m)
          z = Sub (x, x)
          i = Div (z, z)
          e = MatMul (i, w1)
        }
        """,
        w1=normal(4, 4),
        bad=np.full((4, 4), np.inf, np.float32),
        w2=np.ones((4, 4), np.float16),
        flat=normal(16),
        s=np.array([4, 4]),
    )
    first = before.graph.node(0).name
    feeds = {"x": normal(2, 4), "h": np.ones((2, 4), np.float16)}
    after, report = quantized(before, feeds, exclude=(first,))
    assert sorted(s.reason for s in report.skipped) == [
        "'i' is not finite on the calibration data",
        "excluded",
        "it computes in FLOAT16; float32 is quantized",
        "its weight 'bad' is empty or not finite",
        "its weight 'flat' comes through a Reshape: run fold-constants first",
    ]
    assert "QuantizeLinear" not in op_types(after)
    assert report.facts["quantized"] == 0


def test_again_changes_nothing():
    once, _ = quantized(conv_relu_conv())
    twice, report = quantized(once)
    assert op_types(twice) == op_types(once)
    assert {s.reason for s in report.skipped} == {"it is quantized already"}


def test_same_data_same_model_in_any_batches(tmp_path):
    before = conv_relu_conv()
    x = normal(20, 3, 8, 8)
    files = []
    for k, size in enumerate((20, 3)):
        data = open_data({"x": x}, before, batch_size=size)
        after, _ = apply(InsertQdq(observer="mse"), before, Context(calibration=data))
        ir.save(after, tmp_path / f"{k}.onnx")
        files.append((tmp_path / f"{k}.onnx").read_bytes())
    assert files[0] == files[1]


def test_provenance_of_the_new_nodes():
    from graphopt.graph import sources

    before = conv_relu_conv()
    names = {node.name for node in before.graph}
    after, _ = quantized(before)
    assert all(sources(node) and set(sources(node)) <= names for node in after.graph)
    pair = [n for n in node_of(after, "Relu").outputs[0].consumers() if n.op_type == "QuantizeLinear"]
    assert sources(pair[0]) == [node_of(before, "Relu").name]


def test_onnxruntime_fuses_what_is_placed(tmp_path):
    """The placement is what integer kernels want: after fusion no float Conv, Add, pool or Gemm is left."""
    import onnx
    import onnxruntime as ort

    after = quantize_reference("digits")[1]
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    ort.InferenceSession(ir.to_proto(after).SerializeToString(), options, providers=["CPUExecutionProvider"])
    ops = collections.Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert (ops["QLinearConv"], ops["QLinearAdd"], ops["QGemm"]) == (5, 1, 1)
    assert not {"Conv", "Add", "Relu", "Gemm"} & set(ops)


def quantize_reference(name):
    from graphopt.pipeline import run

    model = models.get(name)
    before = load(model.path())
    context = Context(calibration=open_data(model.calibration, before))
    return model, run(before, parse_pipeline("fold-batch-norm,insert-qdq"), context).model


def held_out(name):
    """The metric of the quantized model on held-out labels, and the float baseline."""
    model, after = quantize_reference(name)
    evaluation = model.evaluation()
    session = oracle.Session(after)
    return evaluation.score(session.run(feeds) for feeds in evaluation.feeds()), model.baseline


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_accuracy_on_held_out_labels(name):
    metric, baseline = held_out(name)
    assert metric >= baseline - 0.005


@pytest.mark.slow
@pytest.mark.parametrize("name", ["angle-classifier", "ocr-recogniser", "magika", "crepe-tiny", "minilm-l3"])
def test_accuracy_of_fetched_models(name):
    """At most half a point is lost."""
    metric, baseline = held_out(name)
    assert metric >= baseline - 0.0051


def test_weights_take_a_quarter_of_the_bytes():
    model, after = quantize_reference("mnist")
    before = sum(v.const_value.nbytes for v in initializers(load(model.path())))
    assert sum(v.const_value.nbytes for v in initializers(after)) < 0.3 * before


def test_calibration_memory_does_not_grow_with_the_samples():
    model = conv_relu_conv()
    peaks = []
    for count in (40, 800):
        stream = Batches(lambda count=count: ({"x": np.ones((4, 3, 8, 8), np.float32)} for _ in range(count // 4)))
        tracemalloc.start()
        calibrate(model, [model.graph.inputs[0], node_of(model, "Relu").outputs[0]], stream)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_refusals():
    model = conv_relu_conv()
    with pytest.raises(DataError, match="insert-qdq needs calibration data"):
        apply(InsertQdq(), model)
    with pytest.raises(UsageError, match="observer"):
        parse_pipeline("insert-qdq{observer=median}")
    with pytest.raises(UsageError, match="weight_bits"):
        parse_pipeline("insert-qdq{weight_bits=9}")
    model.graph.opset_imports[""] = 12
    with pytest.raises(PassError, match="opset 13"):
        InsertQdq().apply(model, Context(calibration=Batches(list)))
