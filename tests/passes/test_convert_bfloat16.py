"""`convert-bfloat16`: what products multiply is rounded to bfloat16 and stored so; sums and the rest are float32."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

import graphopt
from graphopt import graph, oracle
from graphopt.passes.convert_bfloat16 import ConvertBfloat16
from graphopt.testing import apply, assert_golden, assert_preserves, from_text, graphs, listing, op_types

HEAD = '<ir_version: 10, opset_import: ["": 18]> '
GOLDEN = Path(__file__).parents[1] / "golden" / "convert_bfloat16.txt"
NET = (
    HEAD
    + """net (float[N,4,9,9] x, float[6,4,3,3] w, float[6] b, float[49,5] v) => (float[N,6,5] y, float[N,6,7,7] s) {
    [conv] c = Conv (x, w, b)
    [relu] r = Relu (c)
    [soft] s = Softmax <axis = 1> (r)
    shape = Constant <value_ints = [0, 6, 49]> ()
    [flat] f = Reshape (r, shape)
    [mm] m = MatMul (f, v)
    [tail] y = Tanh (m)
}"""
)
SHAPES = {"w": (6, 4, 3, 3), "b": (6,), "v": (49, 5)}
RNG = np.random.default_rng(0)
WEIGHTS = {name: (RNG.normal(size=shape) / 4).astype(np.float32) for name, shape in SHAPES.items()}


def net() -> ir.Model:
    return from_text(NET, **WEIGHTS)


def feeds(n: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(n).normal(size=(n, 4, 9, 9)).astype(np.float32)}


def rounded(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_the_whole_graph(update_golden):
    """Relu's result is rounded before it is reshaped, for Softmax too; the bias is not, nor what the products give."""
    assert_golden(listing(apply(ConvertBfloat16(), net())[0]), GOLDEN, update_golden)


def test_onnxruntime_computes_products_of_rounded_operands():
    after, report = apply(ConvertBfloat16(), net())
    assert report.facts == {"products": 2, "rounded": 2}
    plain = from_text(NET, w=rounded(WEIGHTS["w"]), b=WEIGHTS["b"], v=rounded(WEIGHTS["v"]))
    x = {"x": rounded(feeds()["x"])}
    soft, relu = oracle.run(plain, x, ["s", "r"]).values()
    product = rounded(relu).reshape(2, 6, 49) @ rounded(WEIGHTS["v"])
    got = oracle.run(after, feeds())
    np.testing.assert_allclose(got["y"], np.tanh(product), atol=1e-5)
    assert 0 < np.abs(got["s"] - soft).max() < 1e-2  # of rounded numbers


SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 3.4e38, 1e-40, -65504.1]


def test_onnxruntime_rounds_to_nearest_even():
    """What the tests of the GPU rely on; as an initializer's raw bytes too."""
    text = (
        HEAD
        + """g (float[N] x, bfloat16[N] w) => (float[N] y, float[N] v) {
        b = Cast <to = 16> (x)
        y = Cast <to = 1> (b)
        v = Cast <to = 1> (w)
    }"""
    )
    with np.errstate(all="ignore"):
        values = np.concatenate([SPECIAL, RNG.integers(0, 1 << 32, 20000, np.uint32).view(np.float32)]).astype("f4")
        wanted = rounded(values)
    got = oracle.run(from_text(text, w=values.astype(ml_dtypes.bfloat16)), {"x": values})
    np.testing.assert_array_equal(got["y"], wanted)
    np.testing.assert_array_equal(got["v"], wanted)


def test_files_are_half_as_large(tmp_path):
    text = HEAD + "g (float[N,256] x, float[256,256] w) => (float[N,256] y) { y = MatMul (x, w) }"
    before = from_text(text, w=RNG.normal(size=(256, 256)).astype(np.float32))
    graph.save(before, tmp_path / "before.onnx")
    graph.save(graphopt.optimize(before, graphopt.pipeline.presets.PRESETS["bfloat16"]), tmp_path / "after.onnx")
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("before", "after")]
    assert sizes[1] < 0.51 * sizes[0]


def test_near_misses():
    """Two constants, integers, what is quantized, and a constant that would become infinite stay as they are."""
    model = from_text(
        HEAD + """g (float[2,4] x, float s, uint8 z, float[4,3] w, float[4,3] huge, int32[2,4] i, int32[4,3] j)
            => (float[2,3] y, float[2,3] p, float[2,3] t, int32[2,3] k, float[2,4] r) {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            [quantized] y = MatMul (d, w)
            [large] p = MatMul (x, huge)
            c = Constant <value = float[2,4] {1, 2, 3, 4, 5, 6, 7, 8}> ()
            [constant] t = MatMul (c, w)
            [integers] k = MatMul (i, j)
            [no_product] r = Relu (x) }""",
        s=np.float32(0.1), z=np.uint8(3), w=np.ones((4, 3), np.float32), huge=np.full((4, 3), 3.4e38, np.float32),
        j=np.ones((4, 3), np.int32),
    )  # fmt: skip
    after, report = apply(ConvertBfloat16(), model)
    assert "Cast" not in op_types(after)
    assert {skip.node: skip.reason for skip in report.skipped} == {
        "quantized": "'d' is quantized",
        "large": "its constant 'huge' is beyond bfloat16's 3.3895e+38",
    }


def test_an_excluded_node_reads_what_it_did():
    for pattern in ("mm", "MatMul"):
        after, report = apply(ConvertBfloat16(exclude=(pattern, "Softmax")), net())
        assert [(skip.node, skip.reason) for skip in report.skipped] == [("mm", "excluded")]
        assert op_types(after).count("Cast") == 3  # x there and back, w


def test_a_subgraph_reads_the_rounded_value():
    model = from_text(
        HEAD + """g (float[2,4] x, bool c, float[4,3] w) => (float[2,3] y, float[2,4] z) {
            [exp] e = Exp (x)
            [mm] y = MatMul (e, w)
            z = If (c) <then_branch = t () => (float[2,4] p) { p = Exp (e) },
                        else_branch = f () => (float[2,4] q) { q = Neg (e) }> }""",
        w=np.ones((4, 3), np.float32),
    )  # fmt: skip
    after, _ = apply(ConvertBfloat16(), model)
    x = RNG.normal(size=(2, 4)).astype(np.float32)
    got = oracle.run(after, {"x": x, "c": np.array(False)})
    np.testing.assert_array_equal(got["z"], -rounded(np.exp(x)))


def test_again_it_finds_nothing_to_do():
    once, _ = apply(ConvertBfloat16(), net())
    _, report = apply(ConvertBfloat16(), once)
    assert report.facts == {"products": 0, "rounded": 0}


@pytest.mark.parametrize("pipeline", ["fold-constants", "eliminate-identity,eliminate-common-subexpressions"])
def test_clean_up_keeps_it(pipeline):
    once, _ = apply(ConvertBfloat16(), net())
    after = graphopt.optimize(once.clone(), pipeline)
    assert op_types(after).count("Cast") == op_types(once).count("Cast") == 6


def test_random_graphs():
    @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(model=graphs(dtypes=("float32",)))
    def keeps(model: ir.Model):
        assert_preserves(ConvertBfloat16(), model)

    keeps()


@pytest.mark.parametrize("target", ["llvm", "npu"])
def test_other_targets_compute_the_same(tmp_path, target):
    """Every output within float32's rounding of onnxruntime's, of the same rounded operands."""
    after, _ = apply(ConvertBfloat16(), net())
    graph.save(after, tmp_path / "net.onnx")
    program = graphopt.compile(tmp_path / "net.onnx", target=target)
    got, want = program.run(feeds()), oracle.run(after, feeds())
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, atol=2e-5)


def test_llvm_rounds_to_nearest_even_within_a_kernel(tmp_path):
    text = (
        HEAD
        + """g (float[N] x) => (float[N] y) {
        n = Neg (x)
        b = Cast <to = 16> (n)
        f = Cast <to = 1> (b)
        y = Abs (f)
    }"""
    )
    graph.save(from_text(text), tmp_path / "net.onnx")
    x = {"x": np.array(SPECIAL, np.float32)}
    got = graphopt.compile(tmp_path / "net.onnx", target="llvm").run(x)
    np.testing.assert_array_equal(got["y"], np.abs(rounded(-x["x"])))


def test_from_the_command_line(tmp_path):
    graph.save(net(), tmp_path / "net.onnx")
    command = ["opt", "net.onnx", "-p", "convert-bfloat16{exclude=[MatMul]}", "-o", "brain.onnx"]
    done = subprocess.run(
        [sys.executable, "-m", "graphopt", *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {str(v.dtype) for v in graph.load(tmp_path / "brain.onnx").graph.initializers.values()} >= {"BFLOAT16"}
