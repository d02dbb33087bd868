"""fold-constants, eliminate-identity, eliminate-common-subexpressions, remove-unused."""

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.passes.eliminate_common import EliminateCommonSubexpressions
from graphopt.passes.eliminate_identity import EliminateIdentity
from graphopt.passes.fold_constants import PLAIN, FoldConstants
from graphopt.passes.remove_unused import RemoveUnused
from graphopt.testing import apply, assert_equivalent, op_types

X = {"x": "float[2,3]", "out": "float[a,b] y"}


def reasons(report) -> str:
    return " ".join(skip.reason for skip in report.skipped)


# fold-constants


def test_constants_are_folded(build):
    body = "a = Add(p, p) b = Transpose(a) s = Shape(x) z = Cast<to=1>(s) c = Mul(b, z) y = MatMul(x, c)"
    model = build(body, p="float[2,3]", **X)
    after, report = apply(FoldConstants(), model)
    assert_equivalent(model, after, rtol=1e-6)
    assert op_types(after) == ["MatMul"]
    assert len(report.changes) == 5
    assert len(after.graph.initializers) == 1


def test_branch_of_a_constant_condition_is_inlined(build):
    body = """c = Constant<value = bool {1}>() y = If(c) <
        then_branch = th () => (float[2,3] p) { p = Relu(x) },
        else_branch = el () => (float[2,3] q) { q = Neg(x) }
    >"""
    model = build(body, **X)
    after, _ = apply(FoldConstants(), model)
    assert_equivalent(model, after, rtol=0)
    assert op_types(after) == ["Relu"]


def test_the_operators_that_are_not_looked_at_are_those_that_the_folder_has_nothing_for():
    from onnxscript.optimizer._constant_folding import registry

    simplified = {
        name for name in PLAIN for version in (13, 17, 21, 23) if registry.lookup_evaluators("", name, version)
    }
    assert simplified == {"Add"}  # of sizes, which are integers


@pytest.mark.parametrize(("out", "types"), [("float[2,3] y", []), ("float[6] y", ["Reshape"])])
def test_a_reshape_to_the_same_shape_is_found_among_plain_operators(build, out, types):
    sizes = out[6 : out.index("]")].split(",")
    values = {"s": np.array([int(size) for size in sizes], np.int64)}
    model = build("r = Relu(x) y = Reshape(r, s)", x="float[2,3]", s=f"int64[{len(sizes)}]", out=out, values=values)
    after, _ = apply(FoldConstants(), model)
    assert [name for name in op_types(after) if name != "Relu"] == types


def test_the_branch_that_is_taken_says_the_rank(build):
    """A squeeze as PyTorch exports it: of one branch the result is a scalar, and the file states the other's rank."""
    body = """c = Constant<value = bool {1}>() y = If(c) <
        then_branch = th () => (float p) { a = Constant<value_ints = [0]>() p = Squeeze(x, a) },
        else_branch = el () => (float[1] q) { q = Identity(x) }
    >"""
    model = build(body, x="float[1]", out="float[k] y")
    after, _ = apply(FoldConstants(), model)
    assert_equivalent(model, after, rtol=0)
    assert "If" not in op_types(after)


@pytest.mark.parametrize(
    "random",
    ["RandomUniformLike(p)", "Bernoulli(p)", "RandomNormal<shape=[2,3]>()", "Dropout(p, h, t)"],
)
def test_random_operators_are_not_folded(build, random):
    ratio = "h = Constant<value = float {0.5}>() t = Constant<value = bool {1}>()"
    body = f"{ratio} r = {random} a = Neg(r) y = Add(x, a)"
    model = build(body, p="float[2,3]", **X)
    after, _ = apply(FoldConstants(), model)
    assert random.split("<")[0].split("(")[0] in op_types(after)
    assert "Neg" in op_types(after)


def test_growth_is_capped(build):
    body = "s = Constant<value_ints=[2000,3000]>() e = Expand(p, s) f = ReduceSum<keepdims=0>(e) y = Add(x, f)"
    model = build(body, p="float[1,1]", **X)
    after, report = apply(FoldConstants(), model)
    assert "Expand" in op_types(after)
    assert "24000000 bytes, more than max_bytes=1048576" in reasons(report)
    folded, _ = apply(FoldConstants(max_bytes=1 << 25), model)
    assert op_types(folded) == ["Add"]


def test_large_weights_are_folded_when_nothing_grows(build):
    model = build("t = Transpose(p) y = MatMul(x, t)", p="float[700,3]", **X)
    after, _ = apply(FoldConstants(max_bytes=16), model)
    assert op_types(after) == ["MatMul"]


@pytest.mark.parametrize("divisor", [0, -1])
def test_integer_division_that_traps_is_left(build, divisor):
    values = {"n": np.array([np.iinfo(np.int64).min], np.int64), "d": np.array([divisor], np.int64)}
    model = build("q = Div(n, d) f = Cast<to=1>(q) y = Add(x, f)", n="int64[1]", d="int64[1]", values=values, **X)
    after, report = apply(FoldConstants(), model)
    assert op_types(after) == ["Div", "Cast", "Add"]
    assert "divides an integer by zero, or the smallest integer by minus one" in reasons(report)


def test_quantizers_stay(build):
    model = build("w = DequantizeLinear(i, d) y = MatMul(x, w)", i="int8[3,4]", d="float[4]", **X)
    after, report = apply(FoldConstants(), model)
    assert op_types(after) == ["DequantizeLinear", "MatMul"]
    assert "marks what is quantized" in reasons(report)


def test_outputs_of_the_graph_stay_computed(build):
    model = build("y = Neg(p)", **X | {"p": "float[2,3]"})
    after, report = apply(FoldConstants(), model)
    assert op_types(after) == ["Neg"]
    assert "is an output of the graph" in reasons(report)


def test_division_of_floats_by_zero_is_folded_silently(build, recwarn):
    model = build("q = Div(p, z) y = Add(x, q)", p="float[3]", z="float[3]", values={"z": np.zeros(3, np.float32)}, **X)
    after, _ = apply(FoldConstants(), model)
    assert_equivalent(model, after)
    assert op_types(after) == ["Add"]
    assert not recwarn.list


# eliminate-identity


def test_identities_go(build):
    body = """a = Identity(x) b = Dropout(a) c = Cast<to=1>(b) d = Transpose<perm=[0,1]>(c) e = Concat<axis=0>(d)
    f = Sum(e) g = Relu(f) y = Identity(g)"""
    model = build(body, **X)
    after, report = apply(EliminateIdentity(), model)
    assert_equivalent(model, after, rtol=0)
    assert op_types(after) == ["Relu"]
    assert len(report.changes) == 7
    assert after.graph.outputs[0].name == "y"


@pytest.mark.parametrize(
    ("body", "out", "reason"),
    [
        ("y = Identity(x)", "float[a,b] y", "it returns 'x', an input or a constant, as output 'y'"),
        ("z = Relu(x) y = Identity(z)", "float[a,b] z, float[c,d] y", "it returns 'z' a second time, as 'y'"),
    ],
)
def test_identities_that_name_an_output_stay(build, body, out, reason):
    model = build(body, x="float[2,3]", out=out)
    after, report = apply(EliminateIdentity(), model)
    assert op_types(after) == op_types(model)
    assert [v.name for v in after.graph.outputs] == [v.name for v in model.graph.outputs]
    assert_equivalent(model, after, rtol=0)
    assert reason in reasons(report)


def test_two_identities_of_one_value_as_outputs(build):
    model = build("z = Relu(x) y = Identity(z) w = Identity(z)", x="float[2,3]", out="float[a,b] y, float[c,d] w")
    after, _ = apply(EliminateIdentity(), model)
    assert_equivalent(model, after, rtol=0)
    assert sorted(op_types(after)) == ["Identity", "Relu"]


def test_identity_that_returns_an_outer_value_from_a_branch_stays(build):
    body = """t = Relu(x) y = If(xc) <
        then_branch = th () => (float[2,3] p) { p = Identity(t) },
        else_branch = el () => (float[2,3] q) { n = Identity(t) q = Neg(n) }
    >"""
    model = build(body, xc="bool", **X)
    after, report = apply(EliminateIdentity(), model)
    assert "of an outer graph from a subgraph" in reasons(report)
    assert sorted(n.op_type for n in after.graph.all_nodes()) == ["Identity", "If", "Neg", "Relu"]
    x = np.ones((2, 3), np.float32)
    for condition in (True, False):
        assert_equivalent(model, after, rtol=0, feeds={"x": x, "xc": np.array(condition)})


@pytest.mark.parametrize("body", ["y = Cast<to=11>(x)", "y = Transpose<perm=[1,0]>(x)", "y = Concat<axis=0>(x, x)"])
def test_what_changes_something_stays(build, body):
    dtype = "double" if "Cast" in body else "float"
    model = build(body, x="float[2,3]", out=f"{dtype}[a,b] y")
    after, _ = apply(EliminateIdentity(), model)
    assert op_types(after) == op_types(model)


def test_dropout_whose_mask_is_read_or_that_trains_stays(build):
    body = """h = Constant<value = float {0.5}>() t = Constant<value = bool {1}>()
    a, m = Dropout(x) b = Dropout(a, h, t) n = Cast<to=1>(m) y = Add(b, n)"""
    after, _ = apply(EliminateIdentity(), build(body, **X))
    assert op_types(after).count("Dropout") == 2


# eliminate-common-subexpressions


def test_equal_nodes_are_merged(build):
    body = """a = Relu(x) b = Relu(x) c = Constant<value_float=2.0>() d = Constant<value_float=2.0>()
    e = Mul(a, c) f = Mul(b, d) y = Add(e, f)"""
    model = build(body, **X)
    after, report = apply(EliminateCommonSubexpressions(), model)
    assert_equivalent(model, after, rtol=0)
    assert op_types(after) == ["Relu", "Constant", "Mul", "Add"]
    assert len(report.changes) == 3


def test_merged_output_keeps_its_name(build):
    model = build("a = Relu(x) y = Relu(x) z = Neg(a)", x="float[2,3]", out="float[a,b] y, float[c,d] z")
    after, _ = apply(EliminateCommonSubexpressions(), model)
    assert_equivalent(model, after, rtol=0)
    assert op_types(after) == ["Relu", "Neg"]


def test_two_outputs_stay_two(build):
    model = build("y = Relu(x) z = Relu(x)", x="float[2,3]", out="float[a,b] y, float[c,d] z")
    after, report = apply(EliminateCommonSubexpressions(), model)
    assert op_types(after) == ["Relu", "Relu"]
    assert "under two names" in reasons(report)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("LeakyRelu<alpha=0.1>(x)", "LeakyRelu<alpha=0.2>(x)"),
        ("Sub(x, p)", "Sub(p, x)"),
        ("Constant<value_float=0.0>()", "Constant<value_float=-0.0>()"),
        ("RandomUniformLike(x)", "RandomUniformLike(x)"),
        ("Bernoulli(p)", "Bernoulli(p)"),
    ],
)
def test_near_equal_and_random_nodes_stay(build, first, second):
    model = build(f"a = {first} b = {second} c = Add(a, b) y = Add(x, c)", p="float[2,3]", **X)
    after, _ = apply(EliminateCommonSubexpressions(), model)
    assert op_types(after) == op_types(model)


# remove-unused


def test_unread_things_go(build):
    model = build("a = Relu(x) b = Neg(a) y = Exp(x)", p="float[2,3]", **X)
    model.graph.opset_imports["com.example"] = 1
    after, report = apply(RemoveUnused(), model)
    assert_equivalent(model, after, rtol=0)
    assert op_types(after) == ["Exp"]
    assert not after.graph.initializers
    assert set(after.opset_imports) == {""}
    assert sorted(c.node for c in report.changes) == ["node", "node_1", "p"]


def test_inputs_stay_though_unread(build):
    model = build("y = Exp(x)", xx="float[2]", **X)
    after, _ = apply(RemoveUnused(), model)
    assert [v.name for v in after.graph.inputs] == [v.name for v in model.graph.inputs]


def test_weight_read_only_in_a_branch_stays(build):
    body = """y = If(xc) <
        then_branch = th () => (float[2,3] r) { r = Add(x, p) },
        else_branch = el () => (float[2,3] q) { q = Neg(x) }
    >"""
    model = build(body, xc="bool", p="float[2,3]", **X)
    after, report = apply(RemoveUnused(), model)
    assert "p" in after.graph.initializers
    assert not report.changes


def test_all_are_stable_under_a_second_run(build):
    body = "a = Identity(x) b = Relu(a) c = Relu(a) d = Add(p, p) e = Mul(b, d) f = Mul(c, d) y = Add(e, f) g = Neg(y)"
    model = build(body, p="float[2,3]", **X)
    passes = [FoldConstants(), EliminateIdentity(), EliminateCommonSubexpressions(), RemoveUnused()]
    once = model
    for pass_ in passes:
        once, _ = apply(pass_, once)
    assert op_types(once) == ["Relu", "Mul", "Add"]
    assert_equivalent(model, once, rtol=1e-6)
    for pass_ in passes:
        again, report = apply(pass_, once)
        assert not report.changes
        assert ir.to_proto(again).graph.node == ir.to_proto(once).graph.node
