"""Views: hand-made graphs whose answers can be read off, and properties against brute force."""

from __future__ import annotations

import itertools

import networkx as nx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import UsageError
from graphopt.graph import views

DIAMOND = """
<ir_version: 8, opset_import: ["" : 17]>
diamond (float[2] x) => (float[2] y) {
    [stem] s = Relu(x)
    [left] l = Sigmoid(s)
    [right_a] r = Tanh(s)
    [right_b] q = Neg(r)
    [join] j = Add(l, q)
    [head] y = Abs(j)
}
"""

CAPTURES = """
<ir_version: 8, opset_import: ["" : 17]>
captures (float[2] x, bool c) => (float[2] y) {
    [a] a = Relu(x)
    [b] b = Neg(a)
    [choose] t = If (c) <
        then_branch = outer_then () => (float[2] p) {
            [inner] p = If (c) <
                then_branch = deep () => (float[2] d) { [deep_abs] d = Abs(a) },
                else_branch = shallow () => (float[2] e) { [shallow_tanh] e = Tanh(x) }
            >
        },
        else_branch = outer_else () => (float[2] o) { [else_exp] o = Exp(x) }
    >
    [last] y = Add(b, t)
}
"""

CONSTANTS = """
<ir_version: 8, opset_import: ["" : 17]>
constants (float[2,2] x) => (float[2,2] y)
<float[2,2] w = {1, 2, 3, 4}>
{
    [k] k = Constant <value: tensor = float[1] {2}> ()
    [scaled] v = Mul(w, k)
    [mm] m = MatMul(x, v)
    [add] y = Add(m, k)
}
"""


def graph_of(text: str) -> ir.Graph:
    return ir.from_onnx_text(text).graph


def nodes(graph: ir.Graph, *names: str) -> list[ir.Node]:
    return [node for node in graph if node.name in names]


def names(items) -> list[str]:
    return [item.name for item in items]


def test_an_edge_for_each_value_read() -> None:
    graph = graph_of(DIAMOND)
    edges = {(u.name, v.name, value.name) for u, v, value in views.to_digraph(graph).edges(keys=True)}
    assert edges == {
        ("stem", "left", "s"),
        ("stem", "right_a", "s"),
        ("right_a", "right_b", "r"),
        ("left", "join", "l"),
        ("right_b", "join", "q"),
        ("join", "head", "j"),
    }


def test_a_capture_two_subgraphs_deep_is_an_edge_to_the_outermost_node() -> None:
    graph = graph_of(CAPTURES)
    choose = graph.node("choose")
    assert names(views.reads(choose)) == ["c", "a", "x"]
    edges = {(u.name, v.name) for u, v in views.to_digraph(graph).edges()}
    assert edges == {("a", "b"), ("a", "choose"), ("b", "last"), ("choose", "last")}
    assert names(views.readers(graph)[graph.node("a").outputs[0]]) == ["b", "choose"]


def test_dominators_of_a_diamond() -> None:
    graph = graph_of(DIAMOND)
    before = {v.name: d.name if d else None for v, d in views.dominators(graph).items()}
    assert before == {"x": None, "s": "x", "l": "s", "r": "s", "q": "r", "j": "s", "y": "j"}
    after = {v.name: d.name if d else None for v, d in views.post_dominators(graph).items()}
    assert after == {"x": "s", "s": "j", "l": "j", "r": "q", "q": "j", "j": "y", "y": None}


def test_cuts_pass_by_the_branches() -> None:
    assert names(views.cuts(graph_of(DIAMOND))) == ["x", "s", "j", "y"]


def test_two_inputs_have_no_common_dominator_and_constants_do_not_count_as_inputs() -> None:
    graph = graph_of(CAPTURES)
    assert views.dominators(graph)[graph.node("choose").outputs[0]] is None
    assert names(views.cuts(graph)) == ["y"]
    graph = graph_of(CONSTANTS)
    assert names(views.cuts(graph)) == ["x", "m", "y"]
    assert {v.name for v in views.varying(graph)} == {"x", "m", "y"}


def test_random_nodes_are_not_constant() -> None:
    graph = graph_of("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) {
            n = RandomNormal <shape = [2]> ()
            m = Mul(n, n)
            y = Add(x, m)
        }
    """)
    assert {v.name for v in views.varying(graph)} == {"x", "n", "m", "y"}
    assert names(views.cuts(graph)) == ["y"]


def test_a_subgraph_of_its_own_has_its_captures_as_sources() -> None:
    choose = graph_of(CAPTURES).node("choose")
    branch = choose.attributes["else_branch"].as_graph()
    assert {v.name for v in views.varying(branch)} == {"x", "o"}
    assert names(views.cuts(branch)) == ["x", "o"]


def test_between_leaves_constants_out_and_names_what_the_boundary_misses() -> None:
    graph = graph_of(CONSTANTS)
    assert names(views.between(graph, graph.inputs, graph.outputs)) == ["mm", "add"]
    graph = graph_of(DIAMOND)
    s, j = graph.node("stem").outputs[0], graph.node("join").outputs[0]
    assert names(views.between(graph, [s], [j])) == ["left", "right_a", "right_b", "join"]
    with pytest.raises(UsageError, match="also reads `x`"):
        views.between(graph, [graph.node("left").outputs[0]], [j])


def test_boundary_of_a_region_with_an_inner_value_used_outside() -> None:
    graph = graph_of(DIAMOND)
    inputs, outputs = views.boundary(graph, nodes(graph, "stem", "left"))
    assert (names(inputs), names(outputs)) == (["x"], ["s", "l"])
    graph = graph_of(CAPTURES)  # `a` is used by `b` and captured by `choose`
    inputs, outputs = views.boundary(graph, nodes(graph, "a", "b"))
    assert (names(inputs), names(outputs)) == (["x"], ["a", "b"])


def test_reentry_names_the_path_also_through_a_subgraph() -> None:
    graph = graph_of(DIAMOND)
    assert names(views.reentry(graph, nodes(graph, "stem", "join"))) == ["stem", "left", "join"]
    assert names(views.reentry(graph, nodes(graph, "stem", "left", "join"))) == ["stem", "right_a", "right_b", "join"]
    assert views.reentry(graph, nodes(graph, "stem", "left", "right_a")) == []
    graph = graph_of(CAPTURES)
    assert names(views.reentry(graph, nodes(graph, "a", "b", "last"))) == ["a", "choose", "last"]


def test_groups_are_joined_through_wanted_nodes_only() -> None:
    graph = graph_of(DIAMOND)
    parts = views.groups(graph, lambda node: node.op_type not in ("Relu", "Neg"))
    assert [names(part) for part in parts] == [["left", "join", "head"], ["right_a"]]


@st.composite
def graphs(draw) -> ir.Graph:
    """A random graph of up to eight nodes with one or two inputs each."""
    x = ir.val("x", ir.DataType.FLOAT, [2])
    values, made = [x], []
    for index in range(draw(st.integers(1, 8))):
        picks = draw(st.lists(st.sampled_from(values), min_size=1, max_size=2))
        node = ir.node("Abs" if len(picks) == 1 else "Add", picks, name=f"n{index}")
        made.append(node)
        values.append(node.outputs[0])
        node.outputs[0].name = f"v{index}"
    return ir.Graph([x], [values[-1]], nodes=made, opset_imports={"": 17})


def all_paths(graph: ir.Graph) -> list[list[ir.Node]]:
    """Every path between two nodes, by enumeration of edges alone."""
    users = {node: [u for value in node.outputs for u, _ in value.uses()] for node in graph}
    found, pending = [], [[node] for node in graph]
    while pending:
        path = pending.pop()
        found.append(path)
        pending.extend([*path, user] for user in dict.fromkeys(users[path[-1]]))
    return found


@settings(max_examples=120, deadline=None)
@given(graphs(), st.data())
def test_convexity_and_hull_agree_with_the_enumeration_of_all_paths(graph, data) -> None:
    members = set(data.draw(st.lists(st.sampled_from(list(graph)), min_size=1, unique=True)))
    paths = all_paths(graph)
    bad = [p for p in paths if p[0] in members and p[-1] in members and not members.issuperset(p)]
    assert views.is_convex(graph, members) == (not bad)
    trail = views.reentry(graph, members)
    assert bool(trail) == bool(bad)
    if trail:
        assert trail in paths
        assert trail[0] in members
        assert trail[-1] in members
        assert members.isdisjoint(trail[1:-1])
    hull = set(members)
    for path in paths:
        if path[0] in members and path[-1] in members:
            hull.update(path)
    assert set(views.convex_hull(graph, members)) == hull
    assert views.is_convex(graph, hull)


@settings(max_examples=120, deadline=None)
@given(graphs())
def test_cuts_and_dominators_agree_with_the_removal_of_each_value(graph) -> None:
    flow = nx.DiGraph((value, node) for node in graph for value in node.inputs)
    flow.add_edges_from((node, value) for node in graph for value in node.outputs)
    source, sink = graph.inputs[0], graph.outputs[0]

    def separates(value, target) -> bool:
        if value in (source, target):
            return True
        rest = flow.subgraph([n for n in flow if n is not value])
        return not nx.has_path(rest, source, target)

    everything = [source, *(value for node in graph for value in node.outputs)]
    reach = nx.ancestors(flow, sink)
    expected = [v for v in everything if v is sink or (v in reach and separates(v, sink))]
    assert views.cuts(graph) == expected
    for value, dominator in views.dominators(graph).items():
        above = [v for v in everything if v is not value and v in nx.ancestors(flow, value) and separates(v, value)]
        assert dominator is (above[-1] if above else None)


def test_a_large_graph_is_viewed_in_time() -> None:
    x = ir.val("x", ir.DataType.FLOAT, [2])
    made, value = [], x
    for index in range(2000):
        left, right = ir.node("Abs", [value]), ir.node("Neg", [value])
        join = ir.node("Add", [left.outputs[0], right.outputs[0]], name=f"join{index}")
        made += [left, right, join]
        value = join.outputs[0]
    graph = ir.Graph([x], [value], nodes=made, opset_imports={"": 17})
    assert len(views.cuts(graph)) == 2001
    assert views.is_convex(graph, made[:3000])
    assert len(list(itertools.islice(views.convex_hull(graph, [made[0], made[-1]]), 10000))) == 5999
