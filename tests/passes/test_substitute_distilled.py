"""Substitution: known closed forms, near misses, rollback, and a trained model with held-out labels."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import oracle
from graphopt.base import Context
from graphopt.data import open_data
from graphopt.errors import DataError, PassError, UsageError
from graphopt.graph import load, sources
from graphopt.models import get
from graphopt.passes.distil.depthwise import DepthwiseSeparable
from graphopt.passes.distil.moments import Moments
from graphopt.passes.distil.region import of_globs
from graphopt.passes.substitute_distilled import SubstituteDistilled
from graphopt.testing import apply, assert_equivalent, from_text, op_types

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def low_rank_kernel(seed: int, out: int, rank: int, *patch: int) -> np.ndarray:
    return (normal(seed, out, rank) @ normal(seed + 1, rank, int(np.prod(patch)))).reshape(out, *patch)


def substitute(model, seed: int = 0, batches: int = 8, scale: float = 1.0, **options):
    """Run the pass on seeded normal batches; (model after, report)."""
    rng = np.random.default_rng(seed)

    def feeds() -> dict[str, np.ndarray]:
        shapes = {v.name: [d if isinstance(d, int) else 16 for d in v.shape] for v in model.graph.inputs}
        return {n: (scale * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()}

    data = open_data([feeds() for _ in range(batches)], model)
    return apply(SubstituteDistilled(**options), model, Context(calibration=data))


def conv(weight: np.ndarray, attributes: str = "pads=[1,1,1,1]", bias: np.ndarray | None = None):
    text = f"g (float[N,{weight.shape[1]},9,8] x, float{list(weight.shape)} w, float[{len(weight)}] b) => "
    text += f"(float[N,{len(weight)},oh,ow] y) {{ [teacher] y = Conv <{attributes}> (x, w, b) }}"
    return from_text(HEAD + text, w=weight, b=normal(9, len(weight)) if bias is None else bias)


# ---- students with a known answer -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "attributes",
    ["pads=[1,1,1,1]", "strides=[2,1], dilations=[1,2], pads=[0,2,1,0]", 'auto_pad="SAME_LOWER", strides=[2,2]'],
)
def test_an_exactly_low_rank_conv_is_recovered(attributes: str) -> None:
    model = conv(low_rank_kernel(1, 12, 3, 8, 3, 3), attributes)
    after, report = substitute(model, student="low-rank", max_error=1e-4)
    (fact,) = report.facts["substitutions"]
    assert fact["rank"] == 3
    assert fact["held_out_error"] < 1e-5
    assert fact["macs"]["after"] * 12 * 72 == fact["macs"]["before"] * 3 * (72 + 12)
    assert op_types(after) == ["Conv", "Conv"]
    assert_equivalent(model, after, rtol=1e-5)
    assert [n.name for n in model.graph] == ["teacher"]
    assert all(sources(node) == ["teacher"] for node in after.graph)


@pytest.mark.parametrize(
    "attributes",
    ["pads=[1,1,1,1]", "strides=[2,1], dilations=[1,2], pads=[0,2,1,0]", 'auto_pad="SAME_UPPER", strides=[2,2]'],
)
@pytest.mark.parametrize("multiplier", [1, 2])
def test_an_exactly_separable_conv_is_recovered(attributes: str, multiplier: int) -> None:
    depth = normal(3, 6, multiplier, 9)
    point = normal(4, 10, 6, multiplier)
    model = conv(np.einsum("oij,ijs->ois", point, depth).reshape(10, 6, 3, 3), attributes)
    after, report = substitute(model, student="depthwise-separable", max_error=1e-3)
    (fact,) = report.facts["substitutions"]
    assert fact["multiplier"] == multiplier
    assert fact["held_out_error"] < 1e-5
    assert [n.attributes.get_int("group", 1) for n in after.graph] == [6, 1]
    assert_equivalent(model, after, rtol=1e-5)


@pytest.mark.parametrize(
    ("body", "shape", "kind"),
    [
        ("[one] h = Gemm <transB=1, alpha=0.5> (x, w, b)\n[two] y = Gemm <beta=2.0> (h, v, c)", "N,6", ["Gemm"]),
        ("h = MatMul(x, t)\nk = Add(b, h)\ny = MatMul(k, v)", "N,5,6", ["MatMul", "Add"]),
    ],
)
def test_a_chain_without_activations_is_merged_exactly(body: str, shape: str, kind: list[str]) -> None:
    out = shape.replace("6", "4")
    model = from_text(
        HEAD + f"g (float[{shape}] x, float[20,6] w, float[6,20] t, float[20] b, float[20,4] v, float[4] c) => "
        f"(float[{out}] y) {{ {body} }}",
        w=normal(1, 20, 6), t=normal(2, 6, 20), b=normal(3, 20), v=normal(4, 20, 4), c=normal(5, 4),
    )  # fmt: skip
    after, report = substitute(model, student="merged-linear", max_error=1e-4)
    assert op_types(after) == kind
    assert report.facts["substitutions"][0]["held_out_error"] < 1e-5
    assert_equivalent(model, after, rtol=1e-5)
    assert report.facts["macs"]["after"] < report.facts["macs"]["before"]


def test_pointwise_convs_are_merged_and_the_fit_uses_the_data() -> None:
    model = from_text(
        HEAD + "g (float[N,6,4,4] x, float[30,6,1,1] w, float[30] b, float[6,30,1,1] v) => (float[N,6,4,4] y) "
        "{ h = Conv(x, w, b)\nr = Relu(h)\ny = Conv(r, v) }",
        w=normal(1, 30, 6, 1, 1), b=np.full(30, 1.0, np.float32), v=normal(2, 6, 30, 1, 1),
    )  # fmt: skip
    after, report = substitute(model, inputs=("x",), outputs=("y",), max_error=0.5)
    assert op_types(after) == ["Conv"]
    assert 0.01 < report.facts["substitutions"][0]["held_out_error"] < 0.5
    # least squares beats the linearisation it starts from: the best linear map of a Relu is not its slope at 0
    _, tight = substitute(model, inputs=("x",), outputs=("y",), max_error=0.02)
    assert "one linear layer leaves an error" in tight.skipped[0].reason


def test_low_rank_follows_the_data_where_the_kernel_alone_would_not() -> None:
    """The input lives in 2 of 16 channels: rank 2 is exact there, though the kernel has full rank."""
    mixing, weight = normal(1, 2, 16), normal(2, 16, 32)
    model = from_text(
        HEAD + "g (float[N,2] x, float[2,16] m, float[16,32] w) => (float[N,32] y) "
        "{ h = MatMul(x, m)\n[dense] y = MatMul(h, w) }",
        m=mixing, w=weight,
    )  # fmt: skip
    after, report = substitute(model, nodes=("dense",), student="low-rank", max_error=1e-3)
    assert report.facts["substitutions"][0]["rank"] == 2
    assert_equivalent(model, after, rtol=1e-5)


def test_students_next_to_each_other_both_hold() -> None:
    model = from_text(
        HEAD + "g (float[N,16] x, float[16,16] w, float[16,16] v) => (float[N,16] y) "
        "{ [a] h = MatMul(x, w)\n[b] y = MatMul(h, v) }",
        w=low_rank_kernel(1, 16, 2, 16), v=low_rank_kernel(3, 16, 2, 16),
    )  # fmt: skip
    after, report = substitute(model, student="low-rank", max_error=1e-3, regions=5)
    assert len(report.changes) == 2
    assert set(op_types(after)) == {"MatMul", "Add"}
    assert_equivalent(model, after, rtol=1e-5)


def test_regions_that_overlap_a_replaced_one_are_left_out() -> None:
    model = from_text(
        HEAD + "g (float[N,6] x, float[6,20] w, float[20,20] v, float[20,4] u) => (float[N,4] y) "
        "{ [a] h = MatMul(x, w)\n[b] k = MatMul(h, v)\n[c] y = MatMul(k, u) }",
        w=normal(1, 6, 20), v=normal(2, 20, 20), u=normal(3, 20, 4),
    )  # fmt: skip
    after, report = substitute(model, regions=9, max_error=1e-3)
    assert report.facts["substitutions"][0]["nodes"] == ["a", "b", "c"]
    assert len(report.changes) == 1
    assert {skip.reason for skip in report.skipped} == {"overlaps a region that was replaced"}
    assert {skip.node for skip in report.skipped} == {"a", "b", "c", "a .. b", "b .. c"}
    assert_equivalent(model, after, rtol=1e-5)


def test_one_weight_of_two_convs_is_replaced_for_one_only() -> None:
    model = from_text(
        HEAD + "g (float[N,8,6,6] x, float[8,8,3,3] w) => (float[N,8,6,6] y) "
        "{ [a] h = Conv <pads=[1,1,1,1]> (x, w)\nr = Relu(h)\n[b] y = Conv <pads=[1,1,1,1]> (r, w) }",
        w=low_rank_kernel(1, 8, 2, 8, 3, 3),
    )  # fmt: skip
    after, _ = substitute(model, nodes=("a",), max_error=1e-3)
    assert op_types(after) == ["Conv", "Conv", "Relu", "Conv"]
    assert "w" in after.graph.initializers
    assert_equivalent(model, after, rtol=1e-5)


def test_names_already_taken_are_not_taken_again() -> None:
    model = from_text(
        HEAD + "g (float[N,16] x, float[16,16] w) => (float[N,16] y) "
        '{ t0 = Relu(x)\n[t] y = MatMul(t0, w) }',
        w=low_rank_kernel(1, 16, 2, 16),
    )  # fmt: skip
    model.graph[0].name = "t/low-rank_0"
    model.graph[0].outputs[0].name = "t/low-rank_0.out"
    after, report = substitute(model, nodes=("t",), student="low-rank", max_error=1e-3)
    assert report.changes
    names = [n.name for n in after.graph] + [v.name for n in after.graph for v in n.outputs]
    assert len(names) == len(set(names))
    assert_equivalent(model, after, rtol=1e-5)


def test_other_ranks_and_widths_of_float() -> None:
    weight = low_rank_kernel(1, 12, 2, 6, 5)
    model = from_text(
        HEAD + "g (float16[N,6,20] x, float16[12,6,5] w) => (float16[N,12,16] y) { y = Conv(x, w) }",
        w=weight.astype(np.float16),
    )
    data = open_data([{"x": normal(k, 4, 6, 20).astype(np.float16)} for k in range(8)], model)
    after, report = apply(SubstituteDistilled(student="low-rank", max_error=0.01), model, Context(calibration=data))
    assert report.facts["substitutions"][0]["rank"] == 2
    assert {v.dtype.name for v in after.graph.initializers.values()} == {"FLOAT16"}
    assert_equivalent(model, after, rtol=5e-3)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_moments_equal_numpys_also_about_a_large_mean(shift: float) -> None:
    rows = normal(1, 500, 7).astype(np.float64) @ normal(2, 7, 7) + shift
    moments = Moments(7)
    for part in np.split(rows, [3, 100, 490]):
        moments.add(part)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T, bias=True), rtol=1e-8)
    left, right = Moments(7), Moments(7)
    left.add(rows[:50])
    right.add(rows[50:] + 1.0)
    both = np.concatenate([rows[:50], rows[50:] + 1.0])
    np.testing.assert_allclose((left + right).mean, both.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose((left + right).covariance, np.cov(both.T, bias=True), rtol=1e-8)
    gap = both - 3.0
    np.testing.assert_allclose((left + right).about(np.full(7, 3.0)), gap.T @ gap / len(gap), rtol=1e-8)


def test_no_step_of_the_alternation_raises_the_loss() -> None:
    model = conv(normal(1, 10, 6, 3, 3))
    student = DepthwiseSeparable(model, of_globs(model.graph, ["teacher"])[0], 0.9)
    student.fitting.add(student.rows(normal(2, 4, 6, 9, 8), np.zeros(0)))
    cov = student.fitting.covariance
    p, d = np.zeros((10, 0)), np.zeros((6, 0, 9))
    losses = [student._loss(p, d, cov)]
    for _ in range(3):
        p, d = student._grow(p, d)
        for _ in range(3):
            p = student._solve_pointwise(p, d, cov)
            losses.append(student._loss(p, d, cov))
            d = student._solve_depthwise(p, d, cov)
            losses.append(student._loss(p, d, cov))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5 * losses[0]


def test_a_channel_of_large_values_does_not_hide_the_others() -> None:
    """One output is a hundred times the rest: rank 1 has nearly all energy, yet most channels would be lost."""
    weight = normal(1, 16, 16)
    weight[:, 0] *= 100.0
    model = from_text(HEAD + "g (float[N,16] x, float[16,16] w) => (float[N,16] y) { y = MatMul(x, w) }", w=weight)
    _, report = substitute(model, student="low-rank", max_error=0.3, max_macs=0.8)
    assert not report.changes
    left = float(report.skipped[0].reason.split("an error of ")[1].split()[0])
    assert left > 0.3


# ---- rolled back ----------------------------------------------------------------------------------------


def test_a_kernel_of_full_rank_stays_and_the_report_has_the_numbers() -> None:
    model = conv(normal(1, 16, 8, 3, 3))
    after, report = substitute(model, max_error=0.01)
    assert op_types(after) == ["Conv"]
    assert_equivalent(model, after, rtol=0.0)
    assert not report.changes
    assert report.facts["substitutions"] == []
    assert report.facts["macs"]["before"] == report.facts["macs"]["after"]
    (skip,) = report.skipped
    assert "rank" in skip.reason
    assert "filters a channel" in skip.reason


def test_a_fit_that_does_not_hold_on_held_out_data_is_rolled_back() -> None:
    """Every fourth sample is held out; only these reach the channels that the fit never saw."""
    model = from_text(
        HEAD + "g (float[N,16] x, float[16,32] w) => (float[N,32] y) { [dense] y = MatMul(x, w) }", w=normal(1, 16, 32)
    )
    x = np.zeros((64, 16), np.float32)
    x[:, :2] = normal(2, 64, 2)
    x[3::4] = normal(3, 16, 16)
    data = open_data([{"x": x}], model)
    after, report = apply(SubstituteDistilled(student="low-rank", max_error=0.05), model, Context(calibration=data))
    assert op_types(after) == ["MatMul"]
    (skip,) = report.skipped
    assert skip.reason.startswith("rolled back: low-rank rank 2")
    assert "above max_error=0.05" in skip.reason
    # the same model and rank is accepted when the held-out data is like the rest
    x[3::4, 2:] = 0.0
    after, _ = apply(
        SubstituteDistilled(student="low-rank", max_error=0.05),
        model,
        Context(calibration=open_data([{"x": x}], model)),
    )
    assert op_types(after) == ["MatMul", "MatMul", "Add"]


def test_too_little_saved_is_not_worth_it() -> None:
    model = conv(low_rank_kernel(1, 12, 3, 8, 3, 3))
    _, report = substitute(model, student="low-rank", max_error=1e-3, max_macs=0.2)
    assert not report.changes
    assert "rank 2, the largest that saves enough MACs" in report.skipped[0].reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Conv <group=2, pads=[1,1,1,1]> (x, g)", "grouped"),
        ("y = Conv <pads=[1,1,1,1]> (x, u)", "reads 2 varying values"),
        ("y = Relu(x)", "not a single Conv"),
        ("h = Conv <pads=[1,1,1,1]> (x, w)\ny = Relu(h)", "not a single Conv|followed by Relu"),
        ("h = Conv <pads=[1,1,1,1]> (x, w)\ny = Add(h, p)", "one number per channel"),
        ("h = Conv <pads=[1,1,1,1]> (x, w)\ny = Add(h, x)", "not constant"),
    ],
)
def test_what_no_student_suits_is_named(body: str, reason: str) -> None:
    model = from_text(
        HEAD + "g (float[N,8,4,4] x, float[8,8,3,3] u, float[8,8,3,3] w, float[8,4,3,3] g, float[4] p) => "
        f"(float[N,8,4,4] y) {{ {body} }}",
        w=normal(1, 8, 8, 3, 3), g=normal(2, 8, 4, 3, 3), p=normal(3, 4),
    )  # fmt: skip
    _, report = substitute(model, nodes=("*",), max_error=0.9)
    assert not report.changes
    (skip,) = report.skipped
    assert any(part in skip.reason for part in reason.split("|")), skip.reason


# ---- regions that can't be ------------------------------------------------------------------------------

BRANCH = """
g (float[N,8] x, float[8,8] w) => (float[N,8] y) {
    [first] a = MatMul(x, w)
    [side] s = Tanh(a)
    [more] m = Neg(s)
    [second] b = MatMul(a, w)
    [join] y = Add(b, m)
}
"""
CAPTURED = """
g (float[N,8] x, bool c, float[8,8] w) => (float[N,8] y) {
    [first] a = MatMul(x, w)
    [second] b = MatMul(a, w)
    [pick] t = If(c) <then_branch = p () => (float[N,8] d) { d = Neg(a) }, else_branch = q () => (float[N,8] e)
    { e = Abs(x) }>
    [join] y = Add(b, t)
}
"""


def test_a_path_that_leaves_and_comes_back_is_named() -> None:
    model = from_text(HEAD + BRANCH, w=normal(1, 8, 8))
    with pytest.raises(UsageError, match="not convex: the path `first` -> `side` -> `more` -> `join`"):
        substitute(model, nodes=("first", "second", "join"))


@pytest.mark.parametrize("text", [BRANCH, CAPTURED])
def test_an_inner_value_used_outside_is_named(text: str) -> None:
    model = from_text(HEAD + text, w=normal(1, 8, 8))
    data = [{"x": normal(1, 2, 8), "c": np.array(True)}] * 4 if "bool" in text else [{"x": normal(1, 2, 8)}] * 4
    context = Context(calibration=open_data(data, model))
    with pytest.raises(UsageError, match="computes `a`, also used outside"):
        apply(SubstituteDistilled(inputs=("x",), outputs=("b",)), model, context)
    _, report = apply(SubstituteDistilled(nodes=("first", "second")), model, context)
    assert "yields 2" in report.skipped[0].reason


def test_a_captured_output_is_grafted_for_the_subgraph_too() -> None:
    model = from_text(HEAD + CAPTURED, w=low_rank_kernel(1, 8, 1, 8))
    data = open_data([{"x": normal(k, 4, 8), "c": np.array(k % 2 == 0)} for k in range(8)], model)
    after, report = apply(SubstituteDistilled(nodes=("first",), max_error=1e-3), model, Context(calibration=data))
    assert report.changes
    for flag in (True, False):
        assert_equivalent(model, after, rtol=1e-5, feeds={"x": normal(7, 3, 8), "c": np.array(flag)})


def test_an_output_of_the_graph_inside_the_region_is_refused_and_at_its_end_keeps_its_name() -> None:
    text = "g (float[N,16] x, float[16,16] w) => (float[N,16] a, float[N,16] b) "
    text += "{ [first] a = MatMul(x, w)\n[second] b = MatMul(a, w) }"
    model = from_text(HEAD + text, w=low_rank_kernel(1, 16, 2, 16))
    with pytest.raises(UsageError, match="computes `a`"):
        substitute(model, inputs=("x",), outputs=("b",))
    after, report = substitute(model, inputs=("x",), outputs=("a",), max_error=1e-3)
    assert report.changes
    assert [v.name for v in after.graph.outputs] == ["a", "b"]
    assert_equivalent(model, after, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": ("x",)}, "give both or none"),
        ({"inputs": ("x",), "outputs": ("y",), "nodes": ("a",)}, "not by both"),
        ({"inputs": ("x",), "outputs": ("nowhere",)}, "no value named `nowhere`"),
        ({"inputs": ("s",), "outputs": ("b",)}, "also reads `x`"),
        ({"inputs": ("y",), "outputs": ("y",)}, "Nothing lies between"),
        ({"nodes": ("conv*",)}, r"matches `conv\*`"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message: str) -> None:
    model = from_text(HEAD + BRANCH, w=normal(1, 8, 8))
    with pytest.raises(UsageError, match=message):
        substitute(model, **options)


def test_calibration_data_is_needed_and_must_suffice_and_be_finite() -> None:
    model = from_text(HEAD + BRANCH, w=normal(1, 8, 8))
    with pytest.raises(DataError, match="needs calibration data"):
        apply(SubstituteDistilled(), model)
    with pytest.raises(DataError, match="too few"):
        apply(SubstituteDistilled(), model, Context(calibration=open_data([{"x": normal(1, 1, 8)}], model)))
    with pytest.raises(PassError, match="not finite"):
        substitute(model, scale=np.inf)


# ---- a trained model ------------------------------------------------------------------------------------


def test_digits_keep_their_accuracy_on_held_out_labels() -> None:
    reference = get("digits")
    model = load(reference.path())
    evaluation = reference.evaluation()

    def accuracy(candidate) -> float:
        session = oracle.Session(candidate)
        return evaluation.score(session.run(feeds) for feeds in evaluation.feeds())

    context = Context(calibration=open_data(reference.calibration(), model))
    after, report = apply(SubstituteDistilled(regions=2, max_error=0.25), model, context)
    assert len(report.changes) == 2
    assert report.facts["macs"]["after"] <= 0.7 * report.facts["macs"]["before"]
    assert report.facts["parameters"]["after"] <= 0.85 * report.facts["parameters"]["before"]
    assert accuracy(after) >= accuracy(model) - 0.01
    for fact in report.facts["substitutions"]:
        assert fact["held_out_error"] <= 0.25
