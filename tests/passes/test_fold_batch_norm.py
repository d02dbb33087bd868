"""Every pattern that fold-batch-norm folds: the nodes that remain, and the numbers."""

import cProfile
import json
import pstats
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import oracle
from graphopt.base import Context
from graphopt.errors import PassError
from graphopt.passes.fold_batch_norm import FoldBatchNorm
from graphopt.pipeline import run
from graphopt.pipeline.observers import VerifyNumbers
from graphopt.pipeline.verify import check_preserved
from graphopt.testing import apply, assert_equivalent, assert_golden, listing, op_types, random_feeds

BN = "BatchNormalization"
CONV = {"x": "float[2,4,8,8]", "w": "float[6,4,3,3]", "norms": {1: 6}}


def fold(model: ir.Model, rtol: float = 2e-5) -> tuple[list[str], object]:
    """What is left after folding, which must compute the same and be stable under a second run."""
    after, report = apply(FoldBatchNorm(), model)
    assert_equivalent(model, after, rtol=rtol)
    again, second = apply(FoldBatchNorm(), after)
    assert op_types(again) == op_types(after)
    assert not second.changes
    return [t for t in op_types(after) if t != "Constant"], report


# name, body, declarations, remaining operators
FOLDS = {
    "conv": ("t = Conv(x, w) y = BatchNormalization(t, g1, b1, m1, v1)", CONV, ["Conv"]),
    "conv_bias": ("t = Conv(x, w, c) y = BatchNormalization(t, g1, b1, m1, v1)", CONV | {"c": "float[6]"}, ["Conv"]),
    "conv_epsilon": ("t = Conv(x, w) y = BatchNormalization<epsilon=0.3>(t, g1, b1, m1, v1)", CONV, ["Conv"]),
    "conv_padded_strided": (
        "t = Conv<pads=[1,0,2,1], strides=[2,1], dilations=[1,2]>(x, w) y = BatchNormalization(t, g1, b1, m1, v1)",
        CONV,
        ["Conv"],
    ),
    "conv1d": (
        "t = Conv(x, w) y = BatchNormalization(t, g1, b1, m1, v1)",
        {"x": "float[2,3,9]", "w": "float[5,3,3]", "norms": {1: 5}, "out": "float[a,b,c] y"},
        ["Conv"],
    ),
    "conv3d": (
        "t = Conv(x, w, c) y = BatchNormalization(t, g1, b1, m1, v1)",
        {
            "x": "float[1,2,5,5,5]",
            "w": "float[3,2,2,2,2]",
            "c": "float[3]",
            "norms": {1: 3},
            "out": "float[a,b,c,d,e] y",
        },
        ["Conv"],
    ),
    "conv_grouped": (
        "t = Conv<group=2>(x, w) y = BatchNormalization(t, g1, b1, m1, v1)",
        CONV | {"w": "float[6,2,3,3]"},
        ["Conv"],
    ),
    "conv_depthwise": (
        "t = Conv<group=4>(x, w) y = BatchNormalization(t, g1, b1, m1, v1)",
        CONV | {"w": "float[4,1,3,3]", "norms": {1: 4}},
        ["Conv"],
    ),
    "conv_transpose_square": (
        "t = ConvTranspose<strides=[2,2]>(x, w, c) y = BatchNormalization(t, g1, b1, m1, v1)",
        {"x": "float[2,4,5,5]", "w": "float[4,4,3,3]", "c": "float[4]", "norms": {1: 4}},
        ["ConvTranspose"],
    ),
    "conv_transpose_grouped": (
        "t = ConvTranspose<group=2, pads=[1,1,1,1]>(x, w) y = BatchNormalization(t, g1, b1, m1, v1)",
        {"x": "float[2,4,5,5]", "w": "float[4,3,3,3]", "norms": {1: 6}},
        ["ConvTranspose"],
    ),
    "conv_transpose_depthwise": (
        "t = ConvTranspose<group=4>(x, w) y = BatchNormalization(t, g1, b1, m1, v1)",
        {"x": "float[2,4,5,5]", "w": "float[4,1,3,3]", "norms": {1: 4}},
        ["ConvTranspose"],
    ),
    "gemm": (
        "t = Gemm(x, w) y = BatchNormalization(t, g1, b1, m1, v1)",
        {"x": "float[5,3]", "w": "float[3,4]", "norms": {1: 4}, "out": "float[a,b] y"},
        ["Gemm"],
    ),
    "gemm_all_attributes": (
        "t = Gemm<transA=1, transB=1, alpha=0.5, beta=3.0>(x, w, c) y = BatchNormalization(t, g1, b1, m1, v1)",
        {"x": "float[3,5]", "w": "float[4,3]", "c": "float[5,4]", "norms": {1: 4}, "out": "float[a,b] y"},
        ["Gemm"],
    ),
    "gemm_scalar_bias": (
        "t = Gemm<beta=0.5>(x, w, c) y = BatchNormalization(t, g1, b1, m1, v1)",
        {"x": "float[5,3]", "w": "float[3,4]", "c": "float[1]", "norms": {1: 4}, "out": "float[a,b] y"},
        ["Gemm"],
    ),
    "gemm_row_bias": (
        "t = Gemm(x, w, c) y = BatchNormalization(t, g1, b1, m1, v1)",
        {"x": "float[5,3]", "w": "float[3,4]", "c": "float[5,1]", "norms": {1: 4}, "out": "float[a,b] y"},
        ["Gemm"],
    ),
    "gemm_rows": (
        "u = Gemm<transA=1>(w, x) t = Transpose<perm=[1,0]>(u) y = BatchNormalization(t, g1, b1, m1, v1)",
        {"w": "float[3,4]", "x": "float[3,5]", "norms": {1: 4}, "out": "float[a,b] y"},
        ["Gemm", "Transpose"],
    ),
    "matmul_rank2": (
        "t = MatMul(x, w) y = BatchNormalization(t, g1, b1, m1, v1)",
        {"x": "float[5,3]", "w": "float[3,4]", "norms": {1: 4}, "out": "float[a,b] y"},
        ["MatMul", "Add"],
    ),
    "matmul_add": (
        "u = MatMul(x, w) t = Add(c, u) y = BatchNormalization(t, g1, b1, m1, v1)",
        {"x": "float[5,3]", "w": "float[3,4]", "c": "float[4]", "norms": {1: 4}, "out": "float[a,b] y"},
        ["MatMul", "Add"],
    ),
    "matmul_rank3_left_constant": (
        "t = MatMul(w, x) y = BatchNormalization(t, g1, b1, m1, v1)",
        {"w": "float[4,3]", "x": "float[2,3,5]", "norms": {1: 4}, "out": "float[a,b,c] y"},
        ["MatMul", "Add"],
    ),
    "matmul_batch_axis": (
        "t = MatMul(x, w) y = BatchNormalization(t, g1, b1, m1, v1)",
        {"x": "float[2,3,5,6]", "w": "float[3,6,4]", "norms": {1: 3}},
        ["MatMul", "Add"],
    ),
    "matmul_transpose": (
        "u = MatMul(x, w) t = Transpose<perm=[0,2,1]>(u) y = BatchNormalization(t, g1, b1, m1, v1)",
        {"x": "float[2,5,3]", "w": "float[3,4]", "norms": {1: 4}, "out": "float[a,b,c] y"},
        ["MatMul", "Add", "Transpose"],
    ),
    "identity_between": (
        "u = Conv(x, w) t = Identity(u) y = BatchNormalization(t, g1, b1, m1, v1)",
        CONV,
        ["Conv", "Identity"],
    ),
    "affines_between": (
        """u = Conv(x, w) a = Mul(u, p) b = Add(q, a) c = Sub(r, b) d = Div(c, d0)
        y = BatchNormalization(d, g1, b1, m1, v1)""",
        CONV | {"p": "float[6,1,1]", "q": "float[1]", "r": "float[1,6,1,1]", "d0": "float[6,1,1]"},
        ["Conv"],
    ),
    "add_of_positions_between": (
        "u = Conv(x, w) t = Add(u, p) y = BatchNormalization(t, g1, b1, m1, v1)",
        CONV | {"p": "float[6,6,6]"},
        ["Conv", "Add"],
    ),
    "positions_subtracted_between": (
        "u = Conv(x, w) t = Sub(u, p) y = BatchNormalization(t, g1, b1, m1, v1)",
        CONV | {"p": "float[1,6,6]"},
        ["Conv", "Sub"],
    ),
    "sub_of_positions_between": (
        "u = Conv(x, w) s = Sub(u, q) t = Sub(p, s) y = BatchNormalization(t, g1, b1, m1, v1)",
        CONV | {"p": "float[1,6,6]", "q": "float[6]"},
        ["Conv", "Sub", "Sub"],
    ),
    "affines_behind": (
        "t = Conv(x, w) n = BatchNormalization(t, g1, b1, m1, v1) s = Mul(n, p) y = Add(s, q)",
        CONV | {"p": "float[6,1,1]", "q": "float[1,6,1,1]"},
        ["Conv"],
    ),
    "affines_behind_through_views": (
        """t = Conv(x, w) n = BatchNormalization(t, g1, b1, m1, v1) axes = Constant<value_ints=[1,2]>()
        p3 = Unsqueeze(p, axes) i = Identity(p3) s = Mul(n, i) y = Add(s, p3)""",
        CONV | {"p": "float[6]"},
        ["Conv"],
    ),
    "two_norms": (
        "t = Conv(x, w) u = BatchNormalization(t, g1, b1, m1, v1) y = BatchNormalization(u, g2, b2, m2, v2)",
        CONV | {"norms": {1: 6, 2: 6}},
        ["Conv"],
    ),
    "average_pool": (
        """u = Conv(x, w) t = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1]>(u)
        y = BatchNormalization(t, g1, b1, m1, v1)""",
        CONV,
        ["Conv", "AveragePool"],
    ),
    "max_pool_positive": (
        "u = Conv(x, w) t = MaxPool<kernel_shape=[2,2]>(u) y = BatchNormalization(t, g1, b1, m1, v1)",
        CONV | {"values": {"g1": np.full(6, 0.5, np.float32)}},
        ["Conv", "MaxPool"],
    ),
    "pool_flatten": (
        "u = Conv(x, w) p = GlobalAveragePool(u) t = Flatten(p) y = BatchNormalization(t, g1, b1, m1, v1)",
        CONV | {"out": "float[a,b] y"},
        ["Conv", "GlobalAveragePool", "Flatten"],
    ),
    "sum_of_convs": (
        "a = Conv(x, w) b = Conv(x, u) t = Add(a, b) y = BatchNormalization(t, g1, b1, m1, v1)",
        CONV | {"u": "float[6,4,3,3]"},
        ["Conv", "Conv", "Add"],
    ),
    "concat": (
        "a = Conv(x, w) b = Conv(x, u) t = Concat<axis=1>(a, b) y = BatchNormalization(t, g1, b1, m1, v1)",
        CONV | {"u": "float[3,4,3,3]", "norms": {1: 9}},
        ["Conv", "Conv", "Concat"],
    ),
    "concat_other_axis": (
        "a = Conv(x, w) b = Conv(x, u) t = Concat<axis=-1>(a, b) y = BatchNormalization(t, g1, b1, m1, v1)",
        CONV | {"u": "float[6,4,3,3]"},
        ["Conv", "Conv", "Concat"],
    ),
    "before_conv": (
        "t = BatchNormalization(x, g1, b1, m1, v1) y = Conv(t, w, c)",
        CONV | {"norms": {1: 4}, "c": "float[6]"},
        ["Conv"],
    ),
    "before_conv_grouped": (
        "t = BatchNormalization(x, g1, b1, m1, v1) y = Conv<group=2>(t, w)",
        CONV | {"norms": {1: 4}, "w": "float[6,2,3,3]"},
        ["Conv"],
    ),
    "before_conv_same_1x1": (
        'r = Relu(x) t = BatchNormalization(r, g1, b1, m1, v1) y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(t, w)',
        CONV | {"norms": {1: 4}, "w": "float[6,4,1,1]"},
        ["Relu", "Conv"],
    ),
    "before_padded_conv_without_shift": (
        "t = BatchNormalization(x, g1, b1, m1, v1) y = Conv<pads=[1,1,1,1]>(t, w)",
        CONV | {"norms": {1: 4}, "values": {"b1": np.zeros(4, np.float32), "m1": np.zeros(4, np.float32)}},
        ["Conv"],
    ),
    "before_conv_transpose_1x1": (
        "t = BatchNormalization(x, g1, b1, m1, v1) y = ConvTranspose<group=2>(t, w)",
        CONV | {"norms": {1: 4}, "w": "float[4,3,1,1]"},
        ["ConvTranspose"],
    ),
    "before_gemm": (
        "t = BatchNormalization(x, g1, b1, m1, v1) y = Gemm<transB=1, alpha=0.5, beta=2.0>(t, w, c)",
        {"x": "float[5,3]", "w": "float[4,3]", "c": "float[5,4]", "norms": {1: 3}, "out": "float[a,b] y"},
        ["Gemm"],
    ),
    "before_gemm_as_b": (
        "t = BatchNormalization(x, g1, b1, m1, v1) y = Gemm<transB=1>(w, t)",
        {"x": "float[5,3]", "w": "float[4,3]", "norms": {1: 3}, "out": "float[a,b] y"},
        ["Gemm"],
    ),
    "before_matmul": (
        "t = BatchNormalization(x, g1, b1, m1, v1) y = MatMul(t, w)",
        {"x": "float[5,3]", "w": "float[3,4]", "norms": {1: 3}, "out": "float[a,b] y"},
        ["MatMul", "Add"],
    ),
    "before_matmul_add": (
        "t = BatchNormalization(x, g1, b1, m1, v1) u = MatMul(t, w) y = Add(u, c)",
        {"x": "float[5,3]", "w": "float[3,4]", "c": "float[5,4]", "norms": {1: 3}, "out": "float[a,b] y"},
        ["MatMul", "Add"],
    ),
    "before_matmul_vector": (
        "t = BatchNormalization(x, g1, b1, m1, v1) y = MatMul(t, w)",
        {"x": "float[5,3]", "w": "float[3]", "norms": {1: 3}, "out": "float[a] y"},
        ["MatMul", "Add"],
    ),
    "before_matmul_batched": (
        "n = BatchNormalization(x, g1, b1, m1, v1) t = Transpose<perm=[0,2,1]>(n) y = MatMul(t, w)",
        {"x": "float[2,3,5]", "w": "float[2,3,4]", "norms": {1: 3}, "out": "float[a,b,c] y"},
        ["Transpose", "MatMul", "Add"],
    ),
    "before_matmul_rank3_right": (
        "t = BatchNormalization(x, g1, b1, m1, v1) y = MatMul(w, t)",
        {"x": "float[2,3,5]", "w": "float[4,3]", "norms": {1: 3}, "out": "float[a,b,c] y"},
        ["MatMul", "Add"],
    ),
    "before_flatten_gemm": (
        "n = BatchNormalization(x, g1, b1, m1, v1) o = Dropout(n) t = Flatten(o) y = Gemm(t, w, c)",
        {"x": "float[2,3,4,4]", "w": "float[48,5]", "c": "float[5]", "norms": {1: 3}, "out": "float[a,b] y"},
        ["Dropout", "Flatten", "Gemm"],
    ),
    "before_transposed_flatten_gemm": (
        """n = BatchNormalization(x, g1, b1, m1, v1) p = MaxPool<kernel_shape=[2,1]>(n)
        q = Transpose<perm=[0,2,1,3]>(p) t = Flatten(q) y = Gemm(t, w, c)""",
        {
            "x": "float[2,3,4,5]",
            "w": "float[45,5]",
            "c": "float[5]",
            "norms": {1: 3},
            "out": "float[a,b] y",
            "values": {"g1": np.array([0.5, 2, 0], np.float32)},
        },
        ["MaxPool", "Transpose", "Flatten", "Gemm"],
    ),
    "split_channels": (
        """u = Gemm(x, w, c) s = Constant<value_ints=[2,2,3,4]>() t = Reshape(u, s)
        y = BatchNormalization(t, g1, b1, m1, v1)""",
        {"x": "float[2,3]", "w": "float[3,24]", "c": "float[24]", "norms": {1: 2}},
        ["Gemm", "Reshape"],
    ),
    "before_two_convs": (
        """t = BatchNormalization(x, g1, b1, m1, v1) s = Mul(t, p) a = Conv(s, w) b = Conv(s, u)
        y = Concat<axis=1>(a, b)""",
        CONV | {"norms": {1: 4}, "u": "float[3,4,3,3]", "p": "float[4,1,1]"},
        ["Conv", "Conv", "Concat"],
    ),
}


@pytest.mark.parametrize("case", FOLDS)
def test_folds(case, build):
    body, declared, remaining = FOLDS[case]
    types, report = fold(build(body, **declared))
    assert types == remaining
    assert not report.skipped
    assert report.facts["left"] == 0


def test_symbolic_batch(build):
    model = build("t = Conv(x, w) y = BatchNormalization(t, g1, b1, m1, v1)", **CONV | {"x": "float[N,4,H,W]"})
    after, _ = apply(FoldBatchNorm(), model)
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 4, 7, 9)).astype(np.float32)}
    assert op_types(after) == ["Conv"]
    assert_equivalent(model, after, feeds=feeds)


def test_arithmetic_is_float64_rounded_once(build):
    values = {"v1": np.full(6, 1e-12, np.float32), "m1": np.full(6, 3.0, np.float32)}
    model = build(
        "t = Conv(x, w, c) y = BatchNormalization<epsilon=1e-9>(t, g1, b1, m1, v1)", c="float[6]", values=values, **CONV
    )
    after, _ = apply(FoldBatchNorm(), model)
    before = {k: v.const_value.numpy().astype(np.float64) for k, v in model.graph.initializers.items()}
    scale = before["g1"] / np.sqrt(before["v1"] + np.float64(np.float32(1e-9)))
    conv = next(iter(after.graph))
    want_w = (before["w"] * scale[:, None, None, None]).astype(np.float32)
    want_b = ((before["c"] - before["m1"]) * scale + before["b1"]).astype(np.float32)
    np.testing.assert_array_equal(conv.inputs[1].const_value.numpy(), want_w)
    np.testing.assert_allclose(conv.inputs[2].const_value.numpy(), want_b, rtol=1.2e-7)


def test_shared_weight_is_copied_and_named(build):
    body = """a = Conv(x, w) n = BatchNormalization(a, g1, b1, m1, v1) b = Conv(x, w)
    o = BatchNormalization(b, g2, b2, m2, v2) y = Concat<axis=1>(n, o)"""
    model = build(body, **CONV | {"norms": {1: 6, 2: 6}})
    after, report = apply(FoldBatchNorm(), model)
    assert_equivalent(model, after)
    assert op_types(after) == ["Conv", "Conv", "Concat"]
    assert "copied w, which other nodes read too" in report.changes[0].action
    assert "copied" not in report.changes[1].action  # the second conv is the last reader
    assert "w" not in after.graph.initializers


def test_shared_weight_and_plain_reader_keep_the_original(build):
    body = "a = Conv(x, w) n = BatchNormalization(a, g1, b1, m1, v1) b = Conv(x, w) y = Add(n, b)"
    model = build(body, **CONV)
    after, _ = apply(FoldBatchNorm(), model)
    assert_equivalent(model, after)
    np.testing.assert_array_equal(
        after.graph.initializers["w"].const_value.numpy(), model.graph.initializers["w"].const_value.numpy()
    )


def test_weights_in_constant_nodes(build):
    body = """w = Constant<value = float[2,1,1,1] {1.5, -2.0}>() g = Constant<value_floats=[2.0, 3.0]>()
    z = Constant<value_floats=[0.5, -1.0]>() v = Constant<value_floats=[1.0, 4.0]>()
    t = Conv(x, w) y = BatchNormalization(t, g, z, z, v)"""
    types, _ = fold(build(body, x="float[2,1,4,4]"))
    assert types == ["Conv"]


def test_invented_names_do_not_collide(build):
    body = """w_folded = Relu(x) c_bias_folded = Neg(w_folded) t = Conv(c_bias_folded, w)
    y = BatchNormalization(t, g1, b1, m1, v1)"""
    model = build(body, **CONV)
    next(n for n in model.graph if n.op_type == "Conv").name = "c"
    after, _ = apply(FoldBatchNorm(), model)
    assert_equivalent(model, after)
    assert op_types(after) == ["Relu", "Neg", "Conv"]


def test_values_that_changed_do_not_keep_their_names(build):
    """A name denotes the same numbers before and after, so that intermediate values can be compared by name."""
    body = "u = Conv(x, w) t = Transpose<perm=[0,1,3,2]>(u) n = BatchNormalization(t, g1, b1, m1, v1) y = Relu(n)"
    model = build(body, **CONV)
    after, _ = apply(FoldBatchNorm(), model)
    names = {v.name for node in after.graph for v in node.outputs}
    assert "u" not in names
    assert "t" not in names
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)}
    shared = sorted(names & {v.name for node in model.graph for v in node.outputs})
    assert shared == ["n", "y"]
    a, b = oracle.run(model, feeds, shared), oracle.run(after, feeds, shared)
    for name in shared:
        np.testing.assert_allclose(a[name], b[name], atol=2e-5 * np.abs(a[name]).max())


def test_graph_output_keeps_its_name_and_shape(build):
    after, _ = apply(FoldBatchNorm(), build("t = Conv(x, w) y = BatchNormalization(t, g1, b1, m1, v1)", **CONV))
    (y,) = after.graph.outputs
    assert (y.name, list(y.shape)) == ("y", [2, 6, 6, 6])


def test_two_norms_become_one(build):
    body = "t = Relu(x) u = BatchNormalization(t, g1, b1, m1, v1) y = BatchNormalization(u, g2, b2, m2, v2)"
    types, report = fold(build(body, x="float[2,3,4,4]", norms={1: 3, 2: 3}))
    assert types == ["Relu", BN]
    assert report.facts == {"folded": 1, "left": 1}


def test_one_piece_of_a_concat_keeps_a_smaller_norm(build):
    body = "a = Conv(x, w) b = Relu(x) t = Concat<axis=1>(a, b) y = BatchNormalization(t, g1, b1, m1, v1)"
    declared = {"x": "float[2,4,8,8]", "w": "float[6,4,1,1]", "norms": {1: 10}}
    model = build(body, **declared)
    after, report = apply(FoldBatchNorm(), model)
    assert_equivalent(model, after)
    assert sorted(op_types(after)) == ["BatchNormalization", "Concat", "Conv", "Relu"]
    (norm,) = [n for n in after.graph if n.op_type == BN]
    assert norm.inputs[1].shape == (4,)
    assert [s.node for s in report.skipped] == [norm.name]
    assert "Relu" in report.skipped[0].reason


def test_norm_in_a_branch_is_folded(build):
    body = """y = If(xc) <
        then_branch = th () => (float[2,6,6,6] p) { t = Conv(x, w) p = BatchNormalization(t, g1, b1, m1, v1) },
        else_branch = el () => (float[2,6,6,6] q) { q = Conv(x, w) }
    >"""
    model = build(body, xc="bool", **CONV)
    after, report = apply(FoldBatchNorm(), model)
    assert report.facts == {"folded": 1, "left": 0}
    x = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)
    for condition in (True, False):
        assert_equivalent(model, after, feeds={"x": x, "xc": np.array(condition)})


def test_norm_in_a_function_is_folded_with_constant_nodes(build):
    function = """<domain: "local", opset_import: ["": 17]>
    block (x) => (y) {
      w = Constant<value = float[2,1,1,1] {1.5, -2.0}>() g = Constant<value_floats=[2.0, 3.0]>()
      z = Constant<value_floats=[0.5, -1.0]>() v = Constant<value_floats=[1.0, 4.0]>()
      t = Conv(x, w) y = BatchNormalization(t, g, z, z, v)
    }"""
    model = build("y = local.block(x)", x="float[2,1,4,4]", extra=function)
    after, report = apply(FoldBatchNorm(), model)
    assert_equivalent(model, after)
    assert report.facts == {"folded": 1, "left": 0}
    (body,) = after.functions.values()
    assert sorted(n.op_type for n in body) == ["Constant", "Constant", "Conv"]


@pytest.mark.parametrize("scale", ["scalar", "per channel"])
@pytest.mark.parametrize("gamma", [[1.0, 2.0, 0.5], [-1.0, 0.0, 0.5]])
def test_quantized_weight_takes_the_factor_into_its_scale(build, scale, gamma):
    shape = "float[]" if scale == "scalar" else "float[3]"
    zero = shape.replace("float", "int8")
    body = "w = DequantizeLinear<axis=0>(i, d, z) t = Conv(x, w) y = BatchNormalization(t, g1, b1, m1, v1)"
    values = {"g1": np.array(gamma, np.float32), "z": np.full([] if scale == "scalar" else [3], 3, np.int8)}
    model = build(body, x="float[2,2,5,5]", i="int8[3,2,3,3]", d=shape, z=zero, norms={1: 3}, values=values)
    after, report = apply(FoldBatchNorm(), model)
    assert_equivalent(model, after, rtol=2e-5)
    assert op_types(after) == ["DequantizeLinear", "Conv"]
    assert report.facts["left"] == 0
    dequantize = next(iter(after.graph))
    assert dequantize.inputs[0].dtype == ir.DataType.INT8
    assert (dequantize.inputs[1].const_value.numpy() > 0).all()


def test_quantized_grouped_and_matmul_weights(build):
    body = """w = DequantizeLinear<axis=1>(i, d) t = MatMul(x, w) n = BatchNormalization(t, g1, b1, m1, v1)
    o = BatchNormalization(n, g2, b2, m2, v2) y = Gemm(o, w)"""
    values = {"g1": np.array([1, 2, -3], np.float32)}
    model = build(
        body, x="float[4,3]", i="int8[3,3]", d="float[3]", norms={1: 3, 2: 3}, values=values, out="float[a,b] y"
    )
    after, report = apply(FoldBatchNorm(), model)
    assert_equivalent(model, after, rtol=2e-5)
    assert report.facts["left"] == 0
    assert op_types(after).count("DequantizeLinear") == 2  # the shared one is copied


def test_quantized_bias_becomes_a_float(build):
    body = """w = DequantizeLinear<axis=0>(i, d) c = DequantizeLinear<axis=0>(j, e) t = Conv(x, w, c)
    y = BatchNormalization(t, g1, b1, m1, v1)"""
    values = {"j": np.array([500, -7, 80], np.int32)}
    model = build(
        body,
        x="float[2,2,5,5]",
        i="int8[3,2,3,3]",
        d="float[3]",
        j="int32[3]",
        e="float[3]",
        norms={1: 3},
        values=values,
    )
    after, report = apply(FoldBatchNorm(), model)
    assert_equivalent(model, after, rtol=2e-5)
    assert op_types(after).count("DequantizeLinear") == 1
    assert report.facts["left"] == 0


def test_golden(build, update_golden):
    """One graph with each kind of fold, as text: a stem, a Concat of which one piece stays, a norm before a Conv."""
    body = """stem = Conv(x, w0) n1 = BatchNormalization(stem, g1, b1, m1, v1) r1 = Relu(n1)
    left = Conv(r1, w1) right = MaxPool<kernel_shape=[1,1]>(r1) both = Concat<axis=1>(left, right)
    n2 = BatchNormalization(both, g2, b2, m2, v2) r2 = Relu(n2)
    n3 = BatchNormalization(r2, g3, b3, m3, v3) last = Conv(n3, w2) pooled = GlobalAveragePool(last)
    flat = Flatten(pooled) out = MatMul(flat, w3) y = BatchNormalization(out, g4, b4, m4, v4)"""
    declared = {"x": "float[N,3,8,8]", "w0": "float[4,3,3,3]", "w1": "float[6,4,1,1]", "w2": "float[5,10,1,1]"}
    norms = {1: 4, 2: 10, 3: 10, 4: 7}
    model = build(body, **declared, w3="float[5,7]", norms=norms, out="float[a,b] y")
    after, report = apply(FoldBatchNorm(), model)
    assert_equivalent(model, after, rtol=2e-5)
    lines = [f"{c.node}: {c.action}" for c in report.changes] + [f"{s.node} stays: {s.reason}" for s in report.skipped]
    golden = Path(__file__).parents[1] / "golden" / "fold_batch_norm.txt"
    assert_golden(listing(after) + "\n" + "\n".join(lines) + "\n", golden, update_golden)


def test_mixed_half_and_single_precision_norm(build):
    """BN-15 may keep its parameters in float32 beside float16 activations."""
    body = "t = Conv(x, w) y = BatchNormalization(t, g1, b1, m1, v1)"
    model = build(body, x="float16[1,2,5,5]", w="float16[3,2,3,3]", norms={1: 3}, out="float16[a,b,c,d] y")
    after, _ = apply(FoldBatchNorm(), model)
    assert op_types(after) == ["Conv"]
    assert {v.dtype for v in after.graph.initializers.values()} == {ir.DataType.FLOAT16}
    assert_equivalent(model, after, rtol=4e-3)


def test_half_precision_passes_the_pipelines_check(build):
    """float16 rounds at 1e-3, where the pass declares 1e-4; a wrong fold is still caught."""
    declared = {"x": "float16[2,4,8,8]", "w": "float16[6,4,3,3]", "out": "float16[a,b,c,d] y"}
    parameters = {f"{p}1": "float16[6]" for p in "gbmv"}
    model = build("t = Conv(x, w) y = BatchNormalization(t, g1, b1, m1, v1)", **declared, **parameters)
    feeds = random_feeds(model)
    after = run(model, [FoldBatchNorm()], observers=[VerifyNumbers(feeds)]).model
    assert op_types(after) == ["Conv"]
    want, got = oracle.run(model, feeds), oracle.run(after, feeds)
    got["y"][0, 0, 0, 0] += np.float16(0.05 * np.abs(want["y"]).max())
    with pytest.raises(PassError, match="moved output 'y'"):
        check_preserved("a wrong fold", FoldBatchNorm.preserves, want, got)


def test_provenance_names_conv_and_norm(build):
    model = build("t = Conv(x, w) y = BatchNormalization(t, g1, b1, m1, v1)", **CONV)
    names = [node.name for node in model.graph]
    after, _ = apply(FoldBatchNorm(), model)
    (conv,) = after.graph
    assert sorted(json.loads(conv.metadata_props["graphopt.source"])) == sorted(names)


def test_linear_in_the_number_of_nodes(build):
    """Counted in function calls, which do not depend on the machine's load."""

    def calls(blocks: int) -> int:
        body = "".join(
            f" t{i} = Conv({f's{i - 1}' if i else 'x'}, w) n{i} = BatchNormalization(t{i}, g1, b1, m1, v1)"
            f" s{i} = Mul(n{i}, p)"
            for i in range(blocks)
        )
        declared = {"x": "float[1,2,4,4]", "w": "float[2,2,1,1]", "p": "float[2,1,1]", "norms": {1: 2}}
        model = build(f"{body} y = Relu(s{blocks - 1})", **declared)
        with cProfile.Profile() as profile:
            report = FoldBatchNorm().apply(model, Context())
        assert report.facts == {"folded": blocks, "left": 0}
        return pstats.Stats(profile).total_calls

    calls(10)
    assert calls(320) < 1.2 * 8 * calls(40)  # quadratic would be 64 times
