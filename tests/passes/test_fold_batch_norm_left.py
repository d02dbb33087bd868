"""Near misses: what fold-batch-norm must leave alone, and the reason it gives."""

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.graph import normalise
from graphopt.passes.fold_batch_norm import FoldBatchNorm
from graphopt.testing import apply, assert_equivalent, op_types

BN = "BatchNormalization(t, g1, b1, m1, v1)"
CONV = {"x": "float[2,4,8,8]", "w": "float[6,4,3,3]", "norms": {1: 6}}
AFTER = {"x": "float[2,4,8,8]", "w": "float[6,4,3,3]", "norms": {1: 4}}
POSITIVE = {"g1": np.full(6, 0.5, np.float32)}

# name, body, declarations, what the reason says
LEFT = {
    "conv_read_by_another": (
        f"t = Conv(x, w) n = {BN} y = Add(n, t)",
        CONV,
        "'t', which Conv 'node' produces, is also read by Add",
    ),
    "conv_read_twice_more": (
        f"t = Conv(x, w) n = {BN} a = Relu(t) b = Neg(t) c = Add(n, a) y = Add(c, b)",
        CONV,
        "and 1 more",
    ),
    "conv_is_output": (
        f"t = Conv(x, w) y = {BN}",
        CONV | {"out": "float[a,b,c,d] y, float[e,f,g,h] t"},
        "an output of the graph",
    ),
    "weight_is_input": (
        f"t = Conv(x, xw) y = {BN}",
        {"x": "float[2,4,8,8]", "xw": "float[6,4,3,3]", "norms": {1: 6}},
        "weight 'xw'",
    ),
    "weight_is_computed": (f"u = Relu(w) t = Conv(x, u) y = {BN}", CONV, "computed by Relu"),
    "bias_is_input": (f"t = Conv(x, w, xb) y = {BN}", CONV | {"xb": "float[6]"}, "bias 'xb'"),
    "bias_is_computed": (f"u = Relu(c) t = Conv(x, w, u) y = {BN}", CONV | {"c": "float[6]"}, "computed by Relu"),
    "parameter_is_input": (
        "t = Conv(x, w) y = BatchNormalization(t, xg, b1, m1, v1)",
        CONV | {"xg": "float[6]"},
        "scale 'xg'",
    ),
    "training_mode": (
        "t = Conv(x, w) y, m, v = BatchNormalization<training_mode=1>(t, g1, b1, m1, v1)",
        CONV,
        "training_mode=1 normalises by the statistics of the batch",
    ),
    "two_norms_the_first_in_training": (
        f"""u = Conv(x, w) t, m, v = BatchNormalization<training_mode=1>(u, g2, b2, m2, v2) y = {BN}""",
        CONV | {"norms": {1: 6, 2: 6}},
        "training_mode=1",
    ),
    "relu_between": (f"u = Conv(x, w) t = Relu(u) y = {BN}", CONV, "Relu 'node_1' does not commute"),
    "input_of_the_graph": (f"t = Identity(x) n = {BN} y = Relu(n)", CONV | {"x": "float[2,6,8,8]"}, "'x' is an input"),
    "max_pool_of_a_negative_scale": (
        f"u = Conv(x, w) t = MaxPool<kernel_shape=[2,2]>(u) y = {BN}",
        CONV | {"values": {"g1": np.array([1, 1, 1, 1, 1, -1], np.float32)}},
        "scale below zero",
    ),
    "max_pool_whose_indices_are_read": (
        f"u = Conv(x, w) t, i = MaxPool<kernel_shape=[2,2]>(u) y = {BN} j = Cast<to=1>(i)",
        CONV
        | {"values": {"g1": np.array([1, 1, 1, 1, 1, 0], np.float32)}, "out": "float[a,b,c,d] y, float[e,f,g,h] j"},
        "scale below zero",
    ),
    "average_pool_that_counts_zeros": (
        f"u = Conv(x, w) t = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1>(u) y = {BN}",
        CONV,
        "averages its zero padding in",
    ),
    "flatten_joins_channels": (
        f"u = Conv(x, w) t = Flatten(u) y = {BN}",
        {"x": "float[2,1,3,3]", "w": "float[2,1,2,2]", "norms": {1: 8}, "out": "float[a,b] y"},
        "joins channels whose maps differ",
    ),
    "channel_axis_moved_to_rows": (
        f"u = Conv(x, w) t = Transpose<perm=[0,2,1,3]>(u) y = {BN}",
        CONV,
        "the map's axis 2 is not the axis of the channels of Conv",
    ),
    "matmul_rank3": (
        f"t = MatMul(x, w) y = {BN}",
        {"x": "float[2,5,3]", "w": "float[3,4]", "norms": {1: 5}, "out": "float[a,b,c] y"},
        "weight 'x' of MatMul 'node' is an input",
    ),
    "matmul_rank3_square": (
        f"t = MatMul(x, w) y = {BN}",
        {"x": "float[2,4,4]", "w": "float[4,4]", "norms": {1: 4}, "out": "float[a,b,c] y"},
        "weight 'x' of MatMul 'node' is an input",
    ),
    "mul_of_positions_with_shift": (
        f"u = Conv(x, w) t = Mul(u, p) y = {BN}",
        CONV | {"p": "float[6,6]"},
        "its own factor",
    ),
    "division_by_the_conv": (f"u = Conv(x, w) t = Div(d, u) y = {BN}", CONV | {"d": "float[6,1,1]"}, "not linear"),
    "constant_raises_the_rank": (
        f"u = Conv(x, w) t = Add(u, p) y = {BN}",
        {"x": "float[1,2,5]", "w": "float[3,2,3]", "p": "float[2,1,1,1]", "norms": {1: 1}},
        "raises its rank",
    ),
    "broadcast_channels": (
        f"u = Conv(x, w) t = Mul(u, p) y = {BN}",
        CONV | {"w": "float[1,4,3,3]", "p": "float[6,1,1]"},
        "has 1 channels where the map has 6",
    ),
    "product_of_convs": (
        f"a = Conv(x, w) b = Conv(x, u) t = Mul(a, b) y = {BN}",
        CONV | {"u": "float[6,4,3,3]"},
        "Mul 'node_2' does not commute",
    ),
    "concat_of_two_that_do_not_fold": (
        f"a = Relu(x) b = Neg(x) c = Conv(x, w) t = Concat<axis=1>(a, b, c) y = {BN}",
        {"x": "float[2,4,8,8]", "w": "float[2,4,1,1]", "norms": {1: 10}},
        "does not commute",
    ),
    "concat_with_itself": (
        f"a = Conv(x, w) t = Concat<axis=1>(a, a) y = {BN}",
        CONV | {"norms": {1: 12}},
        "also read by Concat",
    ),
    "variance_not_positive": (
        f"t = Conv(x, w) y = {BN}",
        CONV | {"values": {"v1": np.full(6, -1, np.float32)}},
        "variance + epsilon is not positive",
    ),
    "before_padded_conv": (
        f"t = Relu(x) n = {BN} y = Conv<pads=[1,1,1,1]>(n, w)",
        AFTER,
        "Conv 'node_2' pads with zeros",
    ),
    "before_same_conv": (f't = Relu(x) n = {BN} y = Conv<auto_pad="SAME_LOWER">(n, w)', AFTER, "pads with zeros"),
    "before_pad_of_one_and_conv": (
        f"t = Relu(x) n = {BN} p = Pad(n, q, o) y = Conv(p, w)",
        AFTER
        | {
            "q": "int64[8]",
            "o": "float[]",
            "values": {"q": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "o": np.float32(1)},
        },
        "Pad 'node_2' does not commute",
    ),
    "before_conv_transpose": (
        f"t = Relu(x) n = {BN} y = ConvTranspose(n, w)",
        AFTER | {"w": "float[4,2,3,3]"},
        "spreads the shift unevenly",
    ),
    "before_relu_and_conv": (
        f"t = Relu(x) n = {BN} a = Relu(n) y = Conv(a, w)",
        AFTER,
        "Relu 'node_2' does not commute",
    ),
    "before_conv_and_another": (
        f"t = Relu(x) n = {BN} a = Conv(n, w) b = Exp(n) c = Conv(b, w) y = Add(a, c)",
        AFTER,
        "Exp 'node_3' does not commute",
    ),
    "before_conv_as_its_weight": (
        f"t = Relu(x) n = {BN} y = Conv(c, n)",
        AFTER | {"c": "float[1,4,9,9]"},
        "does not sum over the channels",
    ),
    "before_matmul_of_other_axis": (
        f"t = Relu(x) n = {BN} y = MatMul(n, w)",
        {"x": "float[2,4,4]", "w": "float[4,4]", "norms": {1: 4}, "out": "float[a,b,c] y"},
        "does not sum over the channels",
    ),
    "before_transposed_gemm": (
        f"t = Relu(x) n = {BN} y = Gemm<transA=1>(n, w)",
        {"x": "float[4,4]", "w": "float[4,4]", "norms": {1: 4}, "out": "float[a,b] y"},
        "does not sum over the channels",
    ),
    "norm_is_output_and_read": (
        f"t = Relu(x) n = {BN} y = Conv(n, w)",
        AFTER | {"out": "float[a,b,c,d] y, float[e,f,g,h] n"},
        "'n' is an output of the graph",
    ),
    "quantized_along_the_other_axis": (
        f"w = DequantizeLinear<axis=1>(i, d) t = Conv(x, w) y = {BN}",
        {"x": "float[2,2,5,5]", "i": "int8[3,2,3,3]", "d": "float[2]", "norms": {1: 3}},
        "no scale along the axis of the channels",
    ),
    "quantized_integers_have_no_mirror": (
        f"w = DequantizeLinear<axis=0>(i, d) t = Conv(x, w) y = {BN}",
        {
            "x": "float[2,2,5,5]",
            "i": "int8[3,2,3,3]",
            "d": "float[3]",
            "norms": {1: 3},
            "values": {"i": np.full([3, 2, 3, 3], -128, np.int8), "g1": np.full(3, -1, np.float32)},
        },
        "int8 can't hold them",
    ),
    "activation_is_quantized": (
        f"u = Conv(x, w) q = QuantizeLinear(u, d, z) t = DequantizeLinear(q, d, z) y = {BN}",
        CONV | {"d": "float[]", "z": "int8[]"},
        "DequantizeLinear 'node_2' does not commute",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_leaves(case, build):
    body, declared, reason = LEFT[case]
    model = build(body, **declared)
    after, report = apply(FoldBatchNorm(), model)
    assert op_types(after) == op_types(model)
    assert not report.changes
    assert any(reason in skip.reason for skip in report.skipped), report.skipped
    assert {s.node for s in report.skipped} == {n.name for n in model.graph if n.op_type == "BatchNormalization"}
    if case not in ("variance_not_positive", "training_mode", "two_norms_the_first_in_training"):
        assert_equivalent(model, after, rtol=0)


def test_output_captured_in_a_subgraph_is_left(build):
    body = f"""t = Conv(x, w) n = {BN}
    y = If(xc) <
        then_branch = th () => (float[2,6,6,6] p) {{ p = Relu(t) }},
        else_branch = el () => (float[2,6,6,6] q) {{ q = Relu(n) }}
    >"""
    model = build(body, xc="bool", **CONV)
    after, report = apply(FoldBatchNorm(), model)
    assert op_types(after) == op_types(model)
    assert "is also read by Relu" in report.skipped[0].reason
    assert "in a subgraph" in report.skipped[0].reason


def test_producer_in_an_outer_graph_is_left(build):
    body = f"""t = Conv(x, w)
    y = If(xc) <
        then_branch = th () => (float[2,6,6,6] p) {{ p = {BN} }},
        else_branch = el () => (float[2,6,6,6] q) {{ q = Relu(o) }}
    >"""
    model = build(body, xc="bool", o="float[2,6,6,6]", **CONV)
    _, report = apply(FoldBatchNorm(), model)
    assert "Conv 'node' lies in an outer graph" in report.skipped[0].reason


@pytest.mark.parametrize(
    ("dtype", "scale", "folds"), [("float16", 1e4, False), ("float16", 10, True), ("float", 1e4, True)]
)
def test_overflow_of_the_folded_weight_is_left(build, dtype, scale, folds):
    """float16 ends at 65504: the product of a weight of 10 and a scale of 10000 does not fit, though y may."""
    numpy_dtype = np.float16 if dtype == "float16" else np.float32
    values = {"w": np.full([6, 4, 3, 3], 10, numpy_dtype), "g1": np.full(6, scale, numpy_dtype)}
    declared = {"x": f"{dtype}[2,4,8,8]", "w": f"{dtype}[6,4,3,3]", "out": f"{dtype}[a,b,c,d] y", "values": values}
    parameters = {f"{p}1": f"{dtype}[6]" for p in "gbmv"}
    after, report = apply(FoldBatchNorm(), build(f"t = Conv(x, w) y = {BN}", **declared, **parameters))
    assert (op_types(after) == ["Conv"]) == folds
    if not folds:
        assert "the folded weight 'w' of Conv 'node' overflows float16" in report.skipped[0].reason


def test_shapes_unknown_is_a_reason_not_a_crash(build):
    model = build(
        "u = Conv(x, w) a = Mul(u, p) y = BatchNormalization(a, g1, b1, m1, v1)", **CONV | {"p": "float[6,1,1]"}
    )
    for node in model.graph:
        node.outputs[0].shape = None
    report = FoldBatchNorm().apply(model, None)
    assert "rank of 'u' is unknown" in report.skipped[0].reason


def test_operators_of_other_domains_are_not_mistaken(build):
    model = build(f"t = Conv(x, w) y = {BN}", **CONV)
    conv = next(iter(model.graph))
    conv.domain = "com.example"
    report = FoldBatchNorm().apply(model, None)
    assert "Conv 'node' does not commute" in report.skipped[0].reason


def test_overridable_weight_is_normalised_then_folded(build):
    """Initializers listed as inputs are constants from the door on."""
    model = build(f"t = Conv(x, w) y = {BN}", **CONV)
    model.graph.inputs.append(model.graph.initializers["w"])
    report = FoldBatchNorm().apply(model, None)
    assert "weight 'w' of Conv 'node' is an input of the graph" in report.skipped[0].reason
    _, report = apply(FoldBatchNorm(), normalise(model))
    assert report.facts == {"folded": 1, "left": 0}


def test_reference_attribute_in_a_function_is_left(build):
    function = """<domain: "local", opset_import: ["": 17]>
    block <e> (x) => (y) {
      w = Constant<value = float[2,1,1,1] {1.5, -2.0}>() g = Constant<value_floats=[2.0, 3.0]>()
      z = Constant<value_floats=[0.5, -1.0]>() v = Constant<value_floats=[1.0, 4.0]>()
      t = Conv(x, w) y = BatchNormalization<epsilon: float = @e>(t, g, z, z, v)
    }"""
    model = build("y = local.block<e=0.5>(x)", x="float[2,1,4,4]", extra=function)
    after, report = apply(FoldBatchNorm(), model)
    assert "attribute epsilon of BatchNormalization" in report.skipped[0].reason
    assert_equivalent(model, after, rtol=0)


def test_left_model_is_the_same_object_graph(build):
    """A refused fold leaves no trace: no new initializers, no renamed values."""
    body, declared, _ = LEFT["concat_of_two_that_do_not_fold"]
    model = build(body, **declared)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    FoldBatchNorm().apply(model, None)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
