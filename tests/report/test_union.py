"""Two graphs as one: what stands in whose place, and what a report says of each."""

from graphopt.api import open_model
from graphopt.report.blocks import blocks
from graphopt.report.union import AFTER, BEFORE, unite
from graphopt.testing import from_text

HEADER = '<ir_version: 10, opset_import: ["": 20]>'


def by_name(union):
    return {item.name: item for item in union.items}


def test_a_fused_node_stands_where_its_operator_stood(result):
    before, done = result
    items = by_name(unite(before, done.model))
    assert (items["conv1"].status, items["conv1"].sides) == ("fused", BEFORE | AFTER)
    assert (items["bn1"].status, items["bn1"].sides) == ("fused", BEFORE)
    assert "bn1" in items["conv1"].what[0]
    assert (items["relu1"].status, items["relu1"].sides) == ("same", BEFORE | AFTER)


def test_wires_are_those_of_either_side(result):
    before, done = result
    union = unite(before, done.model)
    named = {(union.items[w.source].name, union.items[w.target].name): w.sides for w in union.wires}
    assert named["conv1", "bn1"] == BEFORE
    assert named["conv1", "relu1"] == AFTER
    assert named["x", "conv1"] == named["relu1", "add"] == named["relu2", "y"] == BEFORE | AFTER


def test_one_graph_alone_has_no_changes(network):
    union = unite(None, open_model(network()))
    assert {item.sides for item in union.items} == {AFTER}
    assert {item.status for item in union.items} == {"same"}


def test_every_node_is_somewhere_once(result):
    before, done = result
    union = unite(before, done.model)
    for which, model in (("before", before), ("after", done.model)):
        found = [getattr(item, which).name for item in union.items if getattr(item, which) is not None]
        assert sorted(found) == sorted(node.name for node in model.graph)


def test_nodes_of_subgraphs_and_constants():
    model = open_model(
        from_text(
            f"""{HEADER} g (bool c, float[2] x) => (float[2] y) {{
            [k] two = Constant<value = float[2] {{2.0, 2.0}}>()
            [twice] z = Mul(x, two)
            [if] y = If (c) <
                then_branch = t () => (float[2] p) {{ [up] p = Relu(z) }},
                else_branch = e () => (float[2] q) {{ [down] q = Neg(z) }}
            > }}"""
        )
    )
    union = unite(None, model)
    names = {(union.items[w.source].name, union.items[w.target].name) for w in union.wires}
    assert {("twice", "up"), ("twice", "down"), ("up", "if"), ("down", "if"), ("c", "if")} <= names
    assert "k" not in by_name(union)


def test_blocks_are_the_folders_of_names():
    names = ["/enc/0/conv/Conv", "/enc/0/conv/Relu", "/enc/1/Conv", "/enc/1/Add", "head", "dec.conv", "dec.relu", "dec"]
    titles, parents, members = blocks(names)
    assert titles == ["enc", "enc/0", "enc/1", "dec"]
    assert parents == [-1, 0, 0, -1]
    assert members == [1, 1, 2, 2, -1, 3, 3, 3]
