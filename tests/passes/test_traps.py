"""Traps that other optimizers fell into, where no pass of ours has a test of its own for them; the bug in brackets.

`TRAPS` says which test stands for each trap, here or in the tests of a pass.
"""

import ast
from pathlib import Path

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


FOLD, LEFT = "test_fold_batch_norm.py", "test_fold_batch_norm_left.py"
PRUNE, MAGNITUDE, SUBSTITUTE = "test_prune_channels.py", "test_prune_magnitude.py", "test_substitute_distilled.py"
WEIGHTS, PLACES, HERE = "test_insert_qdq_weights.py", "test_insert_qdq_places.py", "test_traps.py"
KERNELS = "../targets/test_integer_kernels.py"
TRAPS = {
    "a convolution feeds the norm and another user (executorch#20601)": (LEFT, "test_leaves", "conv_read_by_another"),
    "its output is one of the graph (onnxruntime#4110)": (LEFT, "test_leaves", "conv_is_output"),
    "its output is captured in a subgraph (onnxruntime#19421)": (LEFT, "test_output_captured_in_a_subgraph_is_left"),
    "one weight, two convolutions (pytorch#197539)": (FOLD, "test_shared_weight_is_copied_and_named"),
    "invented names are taken already (onnxruntime#24705)": (FOLD, "test_invented_names_do_not_collide"),
    "grouped convolution (ipex-llm#2826)": (FOLD, "test_folds", "conv_grouped"),
    "transposed convolution, Cin = Cout (ultralytics#25364)": (FOLD, "test_folds", "conv_transpose_square"),
    "the same, folded by the whole pipeline": (
        HERE, "test_transposed_convolution_with_as_many_inputs_as_outputs"
    ),
    "transposed convolution with groups (onnxscript#2867)": (FOLD, "test_folds", "conv_transpose_grouped"),
    "a norm before a convolution padded with zeros": (LEFT, "test_leaves", "before_padded_conv"),
    "Pad(1.0) is no padding of a convolution (OnnxSlim#212)": (LEFT, "test_leaves", "before_pad_of_one_and_conv"),
    "training_mode=1 (pytorch#52758)": (LEFT, "test_leaves", "training_mode"),
    "the folded weight overflows float16": (LEFT, "test_overflow_of_the_folded_weight_is_left"),
    "BatchNormalization-15 of mixed types": (FOLD, "test_mixed_half_and_single_precision_norm"),
    "two norms (tf2onnx#2186)": (FOLD, "test_two_norms_become_one"),
    "weights in Constant nodes (optimizer#133)": (FOLD, "test_weights_in_constant_nodes"),
    "initializers that are inputs, or not (onnx#2902)": (LEFT, "test_overridable_weight_is_normalised_then_folded"),
    "MatMul of rank 3: the norm's axis is another": (LEFT, "test_leaves", "matmul_rank3_square"),
    "a tied table, Gather and MatMul (transformers#16283)": (
        MAGNITUDE, "test_tied_embedding_is_masked_once_and_seen_by_both"
    ),
    "the same, channels taken out": (PRUNE, "test_tied_embedding_and_output_matrix"),
    "channels through Concat, with itself too (Torch-Pruning#146)": (PRUNE, "test_concat_also_with_itself"),
    "residuals are coupled (TorchPruner#5)": (PRUNE, "test_the_sides_of_a_residual_go_together"),
    "squeeze-excite is coupled (TorchPruner#5)": (PRUNE, "test_squeeze_excite_is_coupled_to_what_it_scales"),
    "behind Flatten a channel is H W columns (Torch-Pruning#125)": (
        PRUNE, "test_a_channel_behind_flatten_is_all_its_columns"
    ),
    "equal magnitudes at the threshold": (PRUNE, "test_equal_magnitudes_still_give_the_exact_count"),
    "an int32 bias clips (onnxruntime#22020)": (WEIGHTS, "test_bias_beyond_int32_widens_the_scale_of_its_channel"),
    "a channel of zeros: scale 0 (onnxruntime#12470)": (WEIGHTS, "test_zero_channel_and_zero_tensor_get_scale_one"),
    "a shared bias (onnxruntime#24705)": (WEIGHTS, "test_shared_weight_and_shared_bias"),
    "the axis of ConvTranspose, with groups (onnxruntime#19694)": (WEIGHTS, "test_conv_transpose_axis_and_groups"),
    "Gemm with transB=0 (onnxruntime#24815)": (WEIGHTS, "test_gemm_axis_follows_trans_b"),
    "the axis of MatMul's outputs (aimet#3184)": (
        WEIGHTS, "test_matmul_output_axis_on_either_side_and_through_transpose"
    ),
    "one scale for Concat kills a branch (nncf#1778)": (PLACES, "test_concat_does_not_kill_a_small_branch"),
    "MaxPool keeps its scale (tensorflow#46754)": (PLACES, "test_values_that_only_move_keep_their_scale"),
    "Relu before symmetric int8, a tight Clip (onnxruntime#9425, #10434)": (
        PLACES, "test_relu_stays_before_symmetric_int8_and_a_tight_clip_stays"
    ),
    "weights of +-127 saturate on AVX2 (oneDNN#717)": (
        KERNELS, "test_pairs_that_would_saturate_are_not_left_to_maddubs"
    ),
    "softmax reaches 1.0 (onnxruntime#29727)": (PLACES, "test_softmax_reaches_one"),
    "a weight that a branch captures (onnxruntime#8488)": (PLACES, "test_a_branch_keeps_the_float_weight_it_captures"),
    "outputs stay float, int64 stays (onnxruntime#3329)": (
        PLACES, "test_graph_outputs_stay_float_also_in_the_middle_and_integers_are_left"
    ),
    "nodes without names (onnxruntime#14142); scales per channel need opset 13": (
        HERE, "test_nodes_without_names_and_scales_per_channel_in_old_opsets"
    ),
    "a bias that is computed": (WEIGHTS, "test_bias_and_weight_that_are_computed"),
    "a region that is not convex makes a cycle (pytorch#86159)": (
        SUBSTITUTE, "test_a_path_that_leaves_and_comes_back_is_named"
    ),
    "matches that overlap": (SUBSTITUTE, "test_regions_that_overlap_a_replaced_one_are_left_out"),
    "an inner value is used outside (OnnxSlim#163)": (SUBSTITUTE, "test_an_inner_value_used_outside_is_named"),
    "Slices are merged (OnnxSlim#277)": (HERE, "test_slices_of_slices"),
    "Relu and Clip (onnxruntime#11836)": (HERE, "test_clip_behind_relu"),
}  # fmt: skip
"""Trap -> file, test, and the case of it where it is one of many."""


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_has_its_test(trap: str):
    file, name, *case = TRAPS[trap]
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    tests = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
    assert name in tests
    assert all(f'"{one}"' in text for one in case)
