"""Small edits: names never collide, constants are constants, uses are counted through subgraphs."""

import numpy as np
import onnx_ir as ir

from graphopt.graph import add_constant, constant_array, fresh_name, remove_unused, used_once
from graphopt.testing import from_text, op_types


def test_fresh_names_avoid_values_nodes_and_each_other(small: ir.Model):
    g = small.graph
    assert fresh_name(g, "new") == "new"
    assert fresh_name(g, "new") == "new_1"
    assert fresh_name(g, "w1") == "w1_1"
    assert fresh_name(g, "x") == "x_1"
    assert fresh_name(g, "a") == "a_1"


def test_constants_are_initializers_and_constant_nodes_only():
    model = from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[2] x, float[2] w) => (float[2] y) {
            c = Constant<value = float[2] {1.0, 2.0}>()
            a = Add(x, w)
            y = Mul(a, c)
        }
        """,
        w=np.array([3, 4], np.float32),
    )
    _, add, mul = model.graph
    np.testing.assert_array_equal(constant_array(add.inputs[1]), [3, 4])
    np.testing.assert_array_equal(constant_array(mul.inputs[1]), [1, 2])
    assert constant_array(add.inputs[0]) is None
    assert constant_array(mul.inputs[0]) is None
    assert constant_array(None) is None


def test_used_once_counts_outputs_and_subgraphs():
    model = from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[2] x, bool c) => (float[2] y, float[2] r) {
            r = Relu(x)
            a = Neg(x)
            b = Abs(a)
            y = If (c) <
                then_branch = t () => (float[2] u) { u = Add(a, b) },
                else_branch = e () => (float[2] v) { v = Identity(b) }
            >
        }
        """
    )
    relu, neg, abs_, _ = model.graph
    assert not used_once(relu.outputs[0]), "a graph output"
    assert not used_once(neg.outputs[0]), "read by Abs and inside the If"
    assert not used_once(abs_.outputs[0]), "read in both branches"


def test_unused_nodes_and_weights_go(small: ir.Model):
    g = small.graph
    g.append(ir.node("Neg", [g[0].outputs[0]], name="dead"))
    add_constant(g, "orphan", np.zeros(3, np.float32))
    assert remove_unused(small) == 1
    assert op_types(small) == ["Conv", "Relu", "Conv"]
    assert set(g.initializers) == {"w1", "w2"}
