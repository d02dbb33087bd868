"""`convert-float16`: products in float16, what is delicate in float32, and the interface as it was."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

import graphopt
from graphopt import graph, oracle
from graphopt.base import Context
from graphopt.data import open_data
from graphopt.passes.convert_float16 import ConvertFloat16
from graphopt.testing import apply, assert_preserves, from_text, graphs, op_types

HEAD = '<ir_version: 10, opset_import: ["": 18]> '
NET = (
    HEAD
    + """net (float[N,4,9,9] x, float[6,4,3,3] w, float[6] b, float two) => (float[N,6,7,7] y, float[N,6,7,7] s) {
    [conv] c = Conv (x, w, b)
    [relu] r = Relu (c)
    [soft] s = Softmax <axis = 1> (r)
    [mul] m = Mul (r, two)
    [exp] e = Exp (c)
    [sum] a = Add (m, e)
    [tail] y = Identity (a)
}"""
)
W = np.random.default_rng(0).normal(size=(6, 4, 3, 3)).astype(np.float32) / 8
B = np.linspace(-1, 1, 6, dtype=np.float32)


def net(two: float = 2.0, b=B) -> ir.Model:
    return from_text(NET, w=W, b=b, two=np.float32(two))


def feeds(n: int = 2):
    return {"x": np.random.default_rng(n).normal(size=(n, 4, 9, 9)).astype(np.float32)}


def types(model: ir.Model) -> dict[str, ir.DataType]:
    return {str(node.name): node.outputs[0].dtype for node in model.graph}


def test_products_and_their_followers_are_float16_the_rest_is_not():
    """The wider type wins: an Add of one operand in float32 stays float32."""
    after, report = apply(ConvertFloat16(), net())
    found = types(after)
    half = {name for name in ("conv", "relu", "soft", "mul", "exp", "sum") if found[name] == ir.DataType.FLOAT16}
    assert half == {"conv", "relu", "mul"}
    assert report.facts["converted"] == len(report.changes) == 3
    assert report.facts["casts"] == op_types(after).count("Cast") == 4  # x; c for Exp, r for Softmax, m for Add
    want, got = oracle.run(net(), feeds()), oracle.run(after, feeds())
    for name, array in want.items():
        assert got[name].dtype == np.float32
        assert 0 < np.abs(got[name] - array).max() < 1e-2 * np.abs(array).max()


@pytest.mark.parametrize(("constant", "says"), [(1e5, "beyond float16"), (-3e38, "beyond float16"), (1e-6, "few bits")])
def test_a_constant_that_float16_cannot_hold_keeps_its_node_float32(constant, says):
    after, report = apply(ConvertFloat16(), net(two=constant))
    assert types(after)["mul"] == ir.DataType.FLOAT
    assert [(skip.node, says in skip.reason) for skip in report.skipped] == [("mul", True)]


def test_ranges_on_calibration_data_decide_too():
    """Within a factor of 2 of 65504 is too near: calibration data are not all data."""
    model = net(b=np.full(6, 2e4, np.float32))
    after, report = apply(ConvertFloat16(exclude=("mul",)), model, Context(calibration=open_data([feeds()], net())))
    assert types(after)["relu"] == ir.DataType.FLOAT16
    assert [skip.reason for skip in report.skipped] == ["excluded"]
    _, report = apply(ConvertFloat16(), model, Context(calibration=open_data([feeds()], net())))
    assert [(skip.node, "on the calibration data" in skip.reason) for skip in report.skipped] == [("mul", True)]


def test_what_is_excluded_or_quantized_stays():
    after, report = apply(ConvertFloat16(exclude=("Conv",)), net())
    assert types(after)["relu"] == ir.DataType.FLOAT
    assert report.facts == {"converted": 0, "casts": 0}
    quantized = from_text(
        HEAD + """g (float[2,4] x, float s, uint8 z, float[4,3] w) => (float[2,3] y) {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            [mm] y = MatMul (d, w) }""",
        s=np.float32(0.1), z=np.uint8(3), w=np.ones((4, 3), np.float32),
    )  # fmt: skip
    _, report = apply(ConvertFloat16(), quantized)
    assert [skip.reason for skip in report.skipped] == ["'d' is quantized"]


def test_a_subgraph_reads_what_it_did():
    model = from_text(
        HEAD + """g (float[2,4] x, bool c, float[4,3] w) => (float[2,3] y) {
            [mm] m = MatMul (x, w)
            y = If (c) <then_branch = t () => (float[2,3] p) { p = Exp (m) },
                        else_branch = e () => (float[2,3] q) { q = Neg (m) }> }""",
        w=np.ones((4, 3), np.float32),
    )  # fmt: skip
    after, _ = apply(ConvertFloat16(), model)
    assert types(after)["mm"] == ir.DataType.FLOAT16
    for c in (True, False):
        given_ = {"x": np.full((2, 4), 0.3, np.float32), "c": np.array(c)}
        want, got = oracle.run(model, given_)["y"], oracle.run(after, given_)["y"]
        np.testing.assert_allclose(got, want, rtol=2e-3)


def test_again_it_finds_nothing_to_do():
    once, _ = apply(ConvertFloat16(), net())
    _, report = apply(ConvertFloat16(), once)
    assert report.facts == {"converted": 0, "casts": 0}


def test_random_graphs():
    @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(model=graphs(dtypes=("float32",)))
    def keeps(model: ir.Model):
        assert_preserves(ConvertFloat16(), model)

    keeps()


def test_the_llvm_target_takes_it(tmp_path):
    graph.save(net(), tmp_path / "net.onnx")
    program = graphopt.compile(tmp_path / "net.onnx", target="llvm", pipeline="convert-float16")
    got, want = program.run(feeds()), oracle.run(net(), feeds())
    for name, array in want.items():
        assert np.abs(got[name] - array).max() < 1e-2 * np.abs(array).max()


def test_from_the_command_line(tmp_path):
    graph.save(net(), tmp_path / "net.onnx")
    command = ["opt", "net.onnx", "-p", "convert-float16{exclude=[Mul]}", "-o", "half.onnx"]
    done = subprocess.run(
        [sys.executable, "-m", "graphopt", *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert types(graph.load(tmp_path / "half.onnx"))["conv"] == ir.DataType.FLOAT16
