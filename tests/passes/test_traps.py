"""Traps that other optimizers fell into, where no pass of ours has a test of its own for them; the bug in brackets.

The other traps are named in test_fold_batch_norm*.py, test_prune_channels.py, test_prune_magnitude.py,
test_insert_qdq.py and test_substitute_distilled.py.
"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import oracle
from graphopt.api import run_pipeline
from graphopt.graph import load
from graphopt.passes.fold_batch_norm import FoldBatchNorm
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.pipeline.presets import preset
from graphopt.testing import apply, assert_equivalent, from_text, op_types, random_feeds

HEADER = '<ir_version: 8, opset_import: ["": 17]>'
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("group", [1, 2])
def test_transposed_convolution_with_as_many_inputs_as_outputs(group: int):
    """Axis 1 is the outputs', Cout / group of them (ultralytics#25364, onnxscript#2867): the wrong axis fits too."""
    model = from_text(
        f"""{HEADER} g (float[N,4,5,5] x, float[4,{4 // group},3,3] w, float[4] a, float[4] b, float[4] m, float[4] v)
        => (float[N,4,h,k] y) {{ t = ConvTranspose<group={group}>(x, w) y = BatchNormalization(t, a, b, m, v) }}""",
        w=normal(4, 4 // group, 3, 3), a=normal(4), b=normal(4), m=normal(4), v=np.abs(normal(4)) + 0.1,
    )  # fmt: skip
    after, _ = apply(FoldBatchNorm(), model)
    assert op_types(after) == ["ConvTranspose"]
    assert_equivalent(model, after, rtol=1e-4)


SLICES = {
    "one inside the other": ("[1]", "[9]", "[1]", "[2]", "[5]", "[1]"),
    "of other axes": ("[1]", "[9]", "[1]", "[0]", "[3]", "[0]"),
    "from the end": ("[-6]", "[-1]", "[1]", "[-3]", "[9223372036854775807]", "[1]"),
    "beyond the end": ("[4]", "[99]", "[1]", "[2]", "[99]", "[-1]"),
}


@pytest.mark.parametrize("case", SLICES)
def test_slices_of_slices(case: str):
    """OnnxSlim#277 adds up starts and ends of two Slices."""
    names = ("s", "e", "a", "s2", "e2", "a2")
    arrays = {name: np.array(eval(text), np.int64) for name, text in zip(names, SLICES[case], strict=True)}
    declared = ", ".join(f"int64[1] {name}" for name in names)
    model = from_text(
        f"{HEADER} g (float[4,12] x, {declared}) => (float[h,k] y) "
        "{ t = Slice(x, s, e, a) y = Slice(t, s2, e2, a2) }",
        **arrays,
    )
    after = run_pipeline(model, preset("O3")).model
    assert_equivalent(model, after, rtol=0)


@pytest.mark.parametrize("limits", ["(r, lo, hi)", "(r, , hi)", "(r, lo)"])
def test_clip_behind_relu(limits: str):
    """onnxruntime#11836 drops a Relu before a Clip whose lower limit is below zero, or has none."""
    model = from_text(
        f"""{HEADER} g (float[N,4] x, float[4,4] w, float lo, float hi) => (float[N,4] y)
        {{ m = MatMul(x, w) r = Relu(m) y = Clip{limits} }}""",
        w=normal(4, 4), lo=np.float32(-1), hi=np.float32(0.5),
    )  # fmt: skip
    after = run_pipeline(model, preset("O3")).model
    assert_equivalent(model, after, rtol=0)
    feeds = [random_feeds(model, k) for k in range(2)]
    quantized = run_pipeline(model, preset("int8"), calibration=feeds).model
    assert min(oracle.run(quantized, one)["y"].min() for one in feeds) >= 0


def nameless(opset: int) -> onnx.ModelProto:
    """Conv, Relu, Conv; no node has a name."""
    w = numpy_helper.from_array(normal(4, 4, 3, 3), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4, 6, 6])] for name in "xy"]
    graph = helper.make_graph(nodes, "g", *ends, [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


@pytest.mark.parametrize("opset", [11, 17])
def test_nodes_without_names_and_scales_per_channel_in_old_opsets(opset: int, tmp_path):
    """onnxruntime#14142: nodes of one name; an axis of DequantizeLinear came with opset 13."""
    onnx.save(nameless(opset), tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    feeds = [random_feeds(model, k) for k in range(2)]
    after = run_pipeline(model, [InsertQdq()], calibration=feeds).model
    assert after.opset_imports[""] >= 13
    assert len({node.name for node in after.graph}) == len(after.graph)
    assert op_types(after).count("QuantizeLinear") >= 2
    scales = [n.inputs[1].const_value.size for n in after.graph if n.op_type == "DequantizeLinear"]
    assert 4 in scales
    want, got = oracle.run(model, feeds[0])["y"], oracle.run(after, feeds[0])["y"]
    assert np.abs(want - got).max() < 0.1 * np.abs(want).max()
