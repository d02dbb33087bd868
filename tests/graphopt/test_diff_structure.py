"""Diff without provenance: what another tool did is told although it renamed everything."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.diff import GraphDiff, diff
from graphopt.graph import load, save
from graphopt.match.order import longest_rising
from graphopt.models import get
from graphopt.pipeline import preset, run
from graphopt.testing import assert_golden, from_text

GOLDEN = Path(__file__).parents[1] / "golden"


def renamed(model: ir.Model, names: str = "op_{}") -> ir.Model:
    """A copy in which no node or value keeps its name and none knows where it comes from."""
    copy = model.clone()
    for count, node in enumerate(copy.graph.all_nodes()):
        node.name = names.format(count)
        node.metadata_props.clear()
        for slot, value in enumerate(node.outputs):
            value.name = f"v_{count}_{slot}"
    return copy


def anonymous(model: ir.Model) -> ir.Model:
    """A copy that keeps its names and knows of no pass."""
    copy = model.clone()
    for node in copy.graph.all_nodes():
        node.metadata_props.clear()
    return copy


def residual(blocks: int, folded: bool = False) -> ir.Model:
    """`blocks` times Conv, BatchNormalization, Relu, Add; without the normalizations when `folded`."""
    rng = np.random.default_rng(0)
    weights: list[ir.Value] = []

    def weight(*shape: int) -> ir.Value:
        name = f"w{len(weights)}"
        tensor = ir.tensor(rng.random(shape, np.float32) + folded, name=name)
        weights.append(ir.val(name, ir.DataType.FLOAT, list(shape), const_value=tensor))
        return weights[-1]

    x = value = ir.val("x", ir.DataType.FLOAT, [1, 4, 8, 8])
    nodes: list[ir.Node] = []

    def node(op: str, *inputs: ir.Value) -> ir.Value:
        nodes.append(ir.node(op, inputs, name=f"{op}{len(nodes)}"))
        nodes[-1].outputs[0].name = f"{nodes[-1].name}.out"
        return nodes[-1].outputs[0]

    for _ in range(blocks):
        inner = node("Conv", value, weight(4, 4, 1, 1))
        inner = inner if folded else node("BatchNormalization", inner, *(weight(4) for _ in range(4)))
        value = node("Add", node("Relu", inner), value)
    graph = ir.Graph([x], [value], nodes=nodes, initializers=weights, opset_imports={"": 17}, name="g")
    return ir.Model(graph, ir_version=8)


def explained(found: GraphDiff, nodes: int) -> float:
    """The share of the final nodes that the diff puts down to nodes before."""
    return (len(found.matched) + sum(len(one.after) for one in [*found.fused, *found.replaced])) / nodes


@pytest.fixture(scope="module")
def resnet() -> tuple[ir.Model, ir.Model]:
    model = load(get("resnet18").path())
    return model, run(model, preset("O3")).model


def test_names_do_not_matter_for_what_o3_did_to_a_resnet(resnet: tuple[ir.Model, ir.Model]) -> None:
    before, after = resnet
    by_provenance = diff(before, after)
    (count,) = {sum(1 for _ in after.graph.all_nodes())}
    assert explained(by_provenance, count) == 1
    assert by_provenance.fused
    for other in (renamed(after), anonymous(after)):
        found = diff(before, other)
        assert explained(found, count) == 1
        names = dict(zip((n.name for n in after.graph), (n.name for n in other.graph), strict=True))
        assert [(old, names[new]) for old, new in by_provenance.matched] == found.matched
        assert [(m.before, [names[n] for n in m.after]) for m in by_provenance.fused] == [
            (m.before, m.after) for m in found.fused
        ]
        assert not found.changed


def test_numbers_in_names_that_were_given_out_anew_mislead_nobody(resnet: tuple[ir.Model, ir.Model]) -> None:
    """As exporters do it: `Conv_3` is the fourth node, whichever that is."""
    before, after = resnet
    numbered = [renamed(model) for model in (before, after)]
    for model in numbered:
        for index, node in enumerate(model.graph):
            node.name = f"{node.op_type}_{index}"
    found = diff(*numbered)
    want = diff(before, after)
    place = [{node.name: index for index, node in enumerate(model.graph)} for model in (before, after, *numbered)]
    assert [(place[0][a], place[1][b]) for a, b in want.matched] == [
        (place[2][a], place[3][b]) for a, b in found.matched
    ]


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_what_onnxruntime_fused_is_told_with_its_names_and_without(level: str, tmp_path: Path) -> None:
    import onnxruntime as ort

    path = get("digits").path()
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    before, after = load(path), load(tmp_path / "optimised.onnx")
    tail = [] if level == "ORT_ENABLE_BASIC" else ["relu{}"]
    for other in (after, renamed(after)):
        found = diff(before, other)
        groups = {one.before[0]: one.before for one in found.fused}
        assert set(groups) == {f"conv{k}" for k in range(1, 6)}
        for k in (1, 2, 3):
            assert groups[f"conv{k}"] == [f"conv{k}", f"bn{k}", *(n.format(k) for n in tail)]
        assert found.removed == []
        assert found.replaced == []


UNARY, BINARY = ("Relu", "Exp", "Neg"), ("Add", "Sub")


@st.composite
def graphs(draw: st.DrawFn) -> list[tuple[str, list[int]]]:
    """Nodes as operator and the places of what they read; -1 is the input."""
    nodes: list[tuple[str, list[int]]] = []
    for place in range(draw(st.integers(1, 14))):
        op = draw(st.sampled_from(UNARY + BINARY))
        nodes.append((op, [draw(st.integers(-1, place - 1)) for _ in range(1 + (op in BINARY))]))
    return nodes


def built(nodes: list[tuple[str, list[int]]], order: list[int], names: str) -> ir.Model:
    """The graph with its nodes named and listed in `order`, as far as what they read allows; it returns all ends."""
    x = ir.val("x", ir.DataType.FLOAT, [2])
    made: dict[int, ir.Node] = {}
    while len(made) < len(nodes):
        ready = (i for i in order if i not in made and all(p < 0 or p in made for p in nodes[i][1]))
        index = next(ready)
        op, reads = nodes[index]
        made[index] = ir.node(op, [x if p < 0 else made[p].outputs[0] for p in reads], name=names.format(len(made)))
        made[index].outputs[0].name = f"{made[index].name}.out"
    ends = [made[i].outputs[0] for i in range(len(nodes)) if not any(i in reads for _, reads in nodes)]
    graph = ir.Graph([x], ends, nodes=made.values(), opset_imports={"": 17}, name="g")
    return ir.Model(graph, ir_version=8)


@given(graphs(), st.data())
@settings(max_examples=150, deadline=None)
def test_a_graph_is_found_again_whatever_its_names_and_order(nodes: list[tuple[str, list[int]]], data: st.DataObject):
    shuffled = data.draw(st.permutations(range(len(nodes))))
    found = diff(built(nodes, list(range(len(nodes))), "a{}"), built(nodes, shuffled, "b{}"))
    assert found.empty, str(found)


@given(graphs(), st.data())
@settings(max_examples=150, deadline=None)
def test_every_node_is_accounted_for_once(nodes: list[tuple[str, list[int]]], data: st.DataObject):
    """Between any two graphs, also ones that have little in common."""
    other = data.draw(graphs())
    before, after = built(nodes, list(range(len(nodes))), "a{}"), built(other, list(range(len(other))), "b{}")
    found = diff(before, after)
    merges = [*found.fused, *found.replaced]
    olds = [*found.removed, *(old for old, _ in found.matched), *(name for one in merges for name in one.before)]
    news = [*found.added, *(new for _, new in found.matched), *(name for one in merges for name in one.after)]
    assert sorted(olds) == sorted(str(node.name) for node in before.graph)
    assert sorted(news) == sorted(str(node.name) for node in after.graph)


def test_a_subgraph_that_gave_way_to_one_operator_is_fused_into_it() -> None:
    head = '<ir_version: 10, opset_import: ["" : 20]> g (float[2,8] x) => (float[2,8] y) '
    before = from_text(
        head + "<float r = {1.41421}, float one = {1.0}, float half = {0.5}> { [in] a = Tanh(x) [div] b = Div(a, r) "
        "[erf] c = Erf(b) [inc] d = Add(c, one) [mul] e = Mul(a, d) [hal] f = Mul(e, half) [out] y = Neg(f) }"
    )
    after = from_text(head + "{ [p] a = Tanh(x) [q] b = Gelu(a) [r] y = Neg(b) }")
    found = diff(before, after)
    assert found.matched == [("in", "p"), ("out", "r")]
    assert [(one.before, one.after) for one in found.fused] == [(["div", "erf", "inc", "mul", "hal"], ["q"])]
    back = diff(after, before)
    assert [(one.before, one.after) for one in back.replaced] == [(["q"], ["div", "erf", "inc", "mul", "hal"])]


def test_an_operator_that_does_nothing_is_removed_not_fused() -> None:
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[2,3] x, float[3,3] w) => (float[2,3] y) '
    before = from_text(head + "{ [a] h = MatMul(x, w) [b] i = Identity(h) [c] y = Relu(i) }", w=np.eye(3, dtype="f"))
    after = from_text(head + "{ [p] h = MatMul(x, w) [q] y = Relu(h) }", w=np.ones((3, 3), "f"))
    found = diff(before, after)
    assert (found.removed, found.matched, found.fused) == (["b"], [("a", "p"), ("c", "q")], [])


def test_swapped_operands_and_branches_listed_in_another_order_are_the_same_graph() -> None:
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) '
    before = from_text(head + "{ a = Exp(x) b = Relu(a) c = Neg(x) d = Add(b, c) e = Abs(d) y = Sqrt(e) }")
    after = from_text(head + "{ f = Neg(x) g = Exp(x) h = Relu(g) i = Add(f, h) j = Abs(i) k = Cos(j) y = Sqrt(k) }")
    found = diff(renamed(before, "a{}"), renamed(after, "b{}"))
    assert len(found.matched) == 6
    assert found.added == ["b5"]
    assert found.removed == []


def test_types_and_defaults_of_nodes() -> None:
    head = '<ir_version: 8, opset_import: ["" : 17]> '
    before = from_text(head + "g (float[2,3] x, float[3,4] w) => (float[2,4] y) { [g] y = Gemm(x, w) }")
    spelled = from_text(
        head + "g (float[2,3] x, float[3,4] w) => (float[2,4] y) { [g] y = Gemm <alpha=1.0, transA=0> (x, w) }"
    )
    assert diff(before, spelled).empty
    other = from_text(head + "g (double[2,3] x, double[3,4] w) => (double[2,4] y) { [g] y = Gemm(x, w) }")
    found = diff(before, other)
    assert [(one.node, one.what) for one in found.retyped] == [("g", ["output float[2,4] -> double[2,4]"])]
    assert "retyped   g (Gemm): output float[2,4] -> double[2,4]" in str(found)


def test_changed_weights_have_their_magnitude() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2,4] x, float[4] w) => (float[2,4] y) { [a] y = Mul(x, w) }'
    )
    before = from_text(text, w=np.array([3, 4, 0, np.nan], np.float32))
    after = from_text(text, w=np.array([3, 4.5, 0, np.nan], np.float32))
    (one,) = diff(before, after).weights
    assert (one.node, one.input, one.size, one.differ, one.largest) == ("a", 1, 4, 1, 0.5)
    zero = from_text(text, w=np.zeros(4, np.float32))
    (one,) = diff(zero, after).weights
    assert one.relative is None
    ints = '<ir_version: 8, opset_import: ["" : 17]> g (bool[2] x, bool[2] w) => (bool[2] y) { [a] y = And(x, w) }'
    (one,) = diff(from_text(ints, w=np.array([True, False])), from_text(ints, w=np.array([True, True]))).weights
    assert (one.differ, one.relative, one.largest) == (1, 1.0, 1.0)


def test_text_of_each_kind_of_line(update_golden: bool) -> None:
    head = '<ir_version: 8, opset_import: ["" : 17]>\ng (float[1,2,4,4] x, float[2,2,1,1] w, float[2] s) => '
    ones = {"w": np.ones((2, 2, 1, 1), np.float32), "s": np.ones(2, np.float32)}
    before = from_text(
        head
        + "(float[1,2,1,4] y) { [conv] a = Conv(x, w) [norm] b = BatchNormalization(a, s, s, s, s) [act] c = Relu(b) "
        "[drop] d = Identity(c) [old] e = Softplus(d) [mean] f = ReduceMean <axes=[2]> (e) [cube] y = Conv(f, w) }",
        **ones,
    )
    after = from_text(
        head + "(float[1,2,1,1] y) { [p0] a = Conv(x, w, s) [p1] c = Relu(a) [p2] d1 = Exp(c) [p3] d2 = Log(d1) "
        "[p4] f = ReduceMean <axes=[2,3]> (d2) [p5] g = Neg(f) [p6] y = Conv(g, w) }",
        w=np.full((2, 2, 1, 1), 1.5, np.float32),
        s=ones["s"],
    )
    assert_golden(str(diff(before, after)) + "\n", GOLDEN / "diff_structure.txt", update_golden)


def test_a_renamed_graph_of_thousands_of_nodes_with_all_norms_folded() -> None:
    found = diff(residual(300), renamed(residual(300, folded=True)))
    assert len(found.fused) == 300
    assert len(found.matched) == 600
    assert found.added == []
    assert found.removed == []
    assert found.fused[1].before == ["Conv4", "BatchNormalization5"]


@pytest.mark.slow
def test_ten_thousand_nodes_take_less_than_five_seconds() -> None:
    before = residual(2500)
    for other, count in ((renamed(before), 10_000), (renamed(residual(2500, folded=True)), 7_500)):
        start = time.process_time()  # of one thread; the machine may be shared
        found = diff(before, other)
        assert time.process_time() - start < 5
        assert explained(found, count) >= 0.99


def test_longest_rising() -> None:
    assert longest_rising([]) == []
    assert longest_rising([5, 1, 2, 9, 3, 4]) == [1, 2, 4, 5]
    assert longest_rising([3, 3, 3]) in ([0], [1], [2])


def test_graphs_that_are_not_valid_onnx_are_compared_as_well(tmp_path: Path, graphopt) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { [a] h = Relu(x) [b] y = OP(h) }'
    for name, op in (("a.onnx", "Neg"), ("b.onnx", "NoSuchOperator")):
        (tmp_path / name).write_bytes(ir.to_proto(ir.from_onnx_text(text.replace("OP", op))).SerializeToString())
    found = graphopt("diff", tmp_path / "a.onnx", tmp_path / "b.onnx", "--json").json
    assert (found["matched"], found["replaced"]) == ([["a", "a"]], [{"before": ["b"], "after": ["b"]}])
    (tmp_path / "a.onnx").write_bytes(b"no ONNX at all")
    assert graphopt("diff", tmp_path / "a.onnx", tmp_path / "b.onnx").code == 3
    assert graphopt("diff", tmp_path / "b.onnx", tmp_path / "none.onnx").code == 3


@pytest.mark.slow
def test_the_command_on_ten_thousand_nodes(tmp_path: Path, graphopt) -> None:
    before, after = residual(2500), renamed(residual(2500, folded=True))
    paths = [save(model, tmp_path / f"{name}.onnx") for name, model in (("a", before), ("b", after))]
    start = time.process_time()
    found = graphopt("diff", *paths, "--json").json
    assert time.process_time() - start < 5
    assert len(found["fused"]) == 2500
