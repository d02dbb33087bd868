"""Costs against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.graph.cost import cost, totals
from graphopt.testing import from_text
from graphopt.testing.random_graphs import random_graph

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def one(text: str, **weights):
    return cost(from_text(HEAD + text, **weights)).nodes[0]


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("text", "weights", "macs"),
    [
        # out 1*8*5*5, each sums 4 channels of 3x3
        ("g (float[1,4,5,5] x) => (float[a,b,c,d] y) { y = Conv <pads=[1,1,1,1]> (x, w) }", [8, 4, 3, 3], 200 * 36),
        # two groups: each output sees 2 channels
        ("g (float[1,4,5,5] x) => (float[a,b,c,d] y) { y = Conv <group=2> (x, w) }", [8, 2, 3, 3], 8 * 9 * 18),
        # every input element meets Cout/group * kernel weights
        ("g (float[1,4,5,5] x) => (float[a,b,c,d] y) { y = ConvTranspose <group=2> (x, w) }", [4, 3, 2, 2], 100 * 12),
        ("g (float[7,4] x) => (float[a,b] y) { y = Gemm <transB=1> (x, w) }", [5, 4], 7 * 5 * 4),
        ("g (float[4,7] x) => (float[a,b] y) { y = Gemm <transA=1> (x, w) }", [4, 5], 7 * 5 * 4),
        ("g (float[2,3,4] x) => (float[a,b,c] y) { y = MatMul(x, w) }", [4, 5], 6 * 5 * 4),
        ("g (float[N,4] x) => (float[N,5] y) { y = MatMul(x, w) }", [4, 5], 5 * 4),
        ("g (float[4] x) => (float[4] y) { y = Add(x, w) }", [4], 0),
    ],
)
def test_macs(text: str, weights: list[int], macs: int) -> None:
    text = text.replace(" x) =>", f" x, float{weights} w) =>")
    assert one(text, w=zeros(*weights)).macs == macs


def test_lstm_counts_both_products_in_both_directions() -> None:
    node = one(
        "g (float[9,2,3] x, float[2,16,3] w, float[2,16,4] r) => (float[9,2,2,4] y) "
        '{ y = LSTM <hidden_size=4, direction="bidirectional"> (x, w, r) }',
        w=zeros(2, 16, 3),
        r=zeros(2, 16, 4),
    )
    assert node.macs == 9 * 2 * 2 * 4 * 4 * (3 + 4)


def test_bytes_shapes_and_totals_with_a_shared_weight() -> None:
    model = from_text(
        HEAD + "g (float[N,4] x, float[4,4] w) => (float[N,4] y) { [one] h = MatMul(x, w)\n[two] y = MatMul(h, w) }",
        w=zeros(4, 4),
    )
    total = cost(model)
    first = total.nodes[0]
    assert (first.name, first.op, first.inputs, first.outputs) == ("one", "MatMul", [("N", 4), (4, 4)], [("N", 4)])
    assert (first.parameters, first.bytes_read, first.bytes_written) == (16, 16 + 64, 16)
    assert (total.parameters, total.weight_bytes, total.macs, total.unknown) == (16, 64, 32, [])


def test_half_bytes_are_packed_and_subgraphs_count() -> None:
    model = from_text(
        '<ir_version: 10, opset_import: ["" : 21]>\n'
        "g (float[4] x, bool c) => (float[4] y)\n"
        "<float s = {0.5}, int4[4] q = {1, 2, 3, 4}>\n"
        "{ d = DequantizeLinear(q, s)\n"
        "y = If(c) <then_branch = t () => (float[4] a) { a = Add(x, d) }, "
        "else_branch = e () => (float[4] b) { b = Mul(x, d) }> }"
    )
    total = cost(model)
    assert total.weight_bytes == 4 + 2
    assert total.nodes[0].bytes_read == 4 + 2
    assert [node.op for node in total.nodes] == ["DequantizeLinear", "If", "Add", "Mul"]


def test_a_node_of_unknown_rank_is_listed() -> None:
    model = from_text(
        '<ir_version: 8, opset_import: ["" : 17, "custom" : 1]>\n'
        "g (float[2,2] x) => (float[2,2] y) { [odd] h = custom.Odd(x)\n[next] y = MatMul(h, x) }"
    )
    total = cost(model)
    assert total.unknown == ["odd", "next"]
    assert total.nodes[0].op == "custom::Odd"


@pytest.mark.parametrize("seed", range(8))
def test_totals_are_those_of_the_account_by_node(seed: int) -> None:
    model = random_graph(seed)
    whole = cost(model)
    assert totals(model) == {
        "nodes": len(whole.nodes),
        "parameters": whole.parameters,
        "weight_bytes": whole.weight_bytes,
        "macs": whole.macs,
    }
