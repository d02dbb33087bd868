"""Every spelling of quantized operators gives what onnxruntime gives, through the llvm target.

Operators that requantise may differ by one step where float arithmetic rounds another way; integers and
dequantized values are equal.
"""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt import oracle
from graphopt.artifact import assemble
from graphopt.base import Context
from graphopt.errors import LoweringError
from graphopt.targets.llvm import Llvm
from graphopt.targets.lowering import lower
from graphopt.targets.lowering.canonical import canonicalise
from graphopt.testing import from_text, op_types

RNG = np.random.default_rng(0)
HEADER = '<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>'


def u8(*shape):
    return RNG.integers(0, 256, shape).astype(np.uint8)


def i8(*shape, low=-128, high=128):
    return RNG.integers(low, high, shape).astype(np.int8)


def f32(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def scale(*shape):
    return RNG.uniform(0.01, 0.05, shape).astype(np.float32)


def model_of(body: str, opset: int = 17, **weights) -> ir.Model:
    return from_text(f"{HEADER.format(opset=opset)} g {body}", **{k: np.asarray(v) for k, v in weights.items()})


def outcome(model: ir.Model, feeds):
    want = oracle.run(model, feeds)
    program = Llvm(threads=1).build(model, Context())
    with assemble(program, target="llvm", before=model, after=model, report={}) as executable:
        return want, executable.run(feeds)


def same(model: ir.Model, feeds, steps: float = 0, rtol: float = 0.0) -> None:
    want, got = outcome(model, feeds)
    for name, expected in want.items():
        assert got[name].dtype == expected.dtype, name
        assert got[name].shape == expected.shape, name
        error = np.abs(got[name].astype(np.float64) - expected.astype(np.float64)).max(initial=0)
        assert error <= steps + rtol * np.abs(expected.astype(np.float64)).max(initial=0), f"{name}: {error}"


def test_qlinear_conv_per_channel_with_bias_and_without_with_scales_of_one_element():
    model = model_of(
        """(uint8[1,5,9,8] x, float[1] sx, uint8[1] zx, int8[6,5,3,3] w, float[6] sw, int8[6] zw, float sy, uint8 zy,
            int32[6] b)
        => (uint8[1,6,5,4] y, uint8[1,6,5,4] q) {
            y = QLinearConv<pads=[1,1,1,1], strides=[2,2]>(x, sx, zx, w, sw, zw, sy, zy, b)
            q = QLinearConv<pads=[1,1,1,1], strides=[2,2]>(x, sx, zx, w, sw, zw, sy, zy)
        }""",
        sx=scale(1), zx=np.uint8([117]), w=i8(6, 5, 3, 3), sw=scale(6), zw=np.zeros(6, np.int8), sy=np.float32(0.1),
        zy=np.uint8(100), b=RNG.integers(-3000, 3000, 6).astype(np.int32),
    )  # fmt: skip
    same(model, {"x": u8(1, 5, 9, 8)}, steps=1)
    assert set(op_types(canonicalise(model.clone()))) == {"DequantizeLinear", "Conv", "QuantizeLinear"}


def test_qlinear_conv_with_unsigned_weights_loses_its_zero_point():
    model = model_of(
        """(uint8[1,3,6,6] x, float sx, uint8 zx, uint8[4,3,3,3] w, float sw, uint8 zw, float sy, uint8 zy)
        => (uint8[1,4,4,4] y) { y = QLinearConv(x, sx, zx, w, sw, zw, sy, zy) }""",
        sx=np.float32(0.02), zx=np.uint8(3), w=u8(4, 3, 3, 3), sw=np.float32(0.01), zw=np.uint8(128),
        sy=np.float32(0.05), zy=np.uint8(128),
    )  # fmt: skip
    same(model, {"x": u8(1, 3, 6, 6)}, steps=1)
    weights = [node.inputs for node in canonicalise(model.clone()).graph if node.op_type == "DequantizeLinear"]
    assert [(i[0].dtype, len(i)) for i in weights if i[0].is_initializer()] == [(ir.DataType.INT8, 2)]


def test_qlinear_conv_keeps_zero_points_that_weights_need():
    model = model_of(
        """(uint8[1,3,6,6] x, float sx, uint8 zx, uint8[4,3,3,3] w, float sw, uint8 zw, float sy, uint8 zy)
        => (uint8[1,4,4,4] y) { y = QLinearConv(x, sx, zx, w, sw, zw, sy, zy) }""",
        sx=np.float32(0.02), zx=np.uint8(3), w=u8(4, 3, 3, 3), sw=np.float32(0.01), zw=np.uint8(90),
        sy=np.float32(0.05), zy=np.uint8(128),
    )  # fmt: skip
    same(model, {"x": u8(1, 3, 6, 6)}, steps=1)


def test_qlinear_matmul_per_tensor_and_per_column():
    model = model_of(
        """(uint8[2,5,7] a, float sa, uint8 za, int8[7,6] b, float sb, int8 zb, float[6] sc, int8[6] zc, float sy,
            uint8 zy) => (uint8[2,5,6] y, uint8[2,5,6] q) {
            y = QLinearMatMul(a, sa, za, b, sb, zb, sy, zy)
            q = QLinearMatMul(a, sa, za, b, sc, zc, sy, zy)
        }""",
        sa=np.float32(0.02), za=np.uint8(120), b=i8(7, 6), sb=np.float32(0.02), zb=np.int8(5), sc=scale(6),
        zc=np.zeros(6, np.int8), sy=np.float32(0.1), zy=np.uint8(128),
    )  # fmt: skip
    same(model, {"a": u8(2, 5, 7)}, steps=1)


def test_qlinear_matmul_with_scales_given_at_run_time():
    model = model_of(
        """(uint8[5,7] a, float sa, uint8 za, int8[7,6] b, float sb, int8 zb, float sy, uint8 zy)
        => (uint8[5,6] y) { y = QLinearMatMul(a, sa, za, b, sb, zb, sy, zy) }"""
    )
    feeds = {"a": u8(5, 7), "sa": np.float32(0.02), "za": np.uint8(120), "b": i8(7, 6), "sb": np.float32(0.02),
             "zb": np.int8(5), "sy": np.float32(0.1), "zy": np.uint8(100)}  # fmt: skip
    same(model, {k: np.asarray(v) for k, v in feeds.items()}, steps=1)


def test_elementwise_and_pooling_of_onnxruntimes_domain():
    """Types after these operators are not known to ONNX's inference: they must follow all the same."""
    model = model_of(
        """(uint8[1,4,6,6] a, uint8[1,4,6,6] b, float sa, uint8 za, float sb, uint8 zb, float sy, uint8 zy, uint8 z0)
        => (uint8[1,4,6,6] add, uint8[1,4,6,6] mul, uint8[1,4,6,6] sig, uint8[1,4,6,6] leaky, uint8[1,8,6,6] cat,
            uint8[1,4,3,3] avg, uint8[1,4,1,1] gap, uint8[1,4,3,3] pooled) {
            add = com.microsoft.QLinearAdd(a, sa, za, b, sb, zb, sy, zy)
            mul = com.microsoft.QLinearMul(a, sa, za, b, sb, zb, sy, zy)
            sig = com.microsoft.QLinearSigmoid(a, sa, za, sb, z0)
            leaky = com.microsoft.QLinearLeakyRelu<alpha=0.2>(a, sa, za, sy, zy)
            cat = com.microsoft.QLinearConcat<axis=1>(sy, zy, a, sa, za, b, sb, zb)
            avg = com.microsoft.QLinearAveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(a, sa, za, sy, zy)
            gap = com.microsoft.QLinearGlobalAveragePool(a, sa, za, sy, zy)
            both = com.microsoft.QLinearAdd(add, sy, zy, mul, sy, z0, sb, zb)
            most = MaxPool<kernel_shape=[2,2], strides=[2,2]>(both)
            pooled = com.microsoft.QLinearAdd(most, sb, zb, most, sb, zb, sy, zy)
        }""",
        sa=np.float32(0.02), za=np.uint8(120), sb=np.float32(0.004), zb=np.uint8(9), sy=np.float32(0.03),
        zy=np.uint8(128), z0=np.uint8(0),
    )  # fmt: skip
    same(model, {"a": u8(1, 4, 6, 6), "b": u8(1, 4, 6, 6)}, steps=1)


def test_softmax_where_and_quantizers_of_onnxruntimes_domain():
    model = model_of(
        """(uint8[3,8] a, bool[3,8] c, float[3,8] x, float sa, uint8 za, float sy, uint8 zy, float[8] sp, int8[8] zp)
        => (uint8[3,8] soft, uint8[3,8] chosen, int8[3,8] q, float[3,8] d) {
            soft = com.microsoft.QLinearSoftmax<axis=-1, opset=13>(a, sa, za, sy, zy)
            chosen = com.microsoft.QLinearWhere(c, a, sa, za, a, sy, zy, sa, zy)
            q = com.microsoft.QuantizeLinear<axis=1>(x, sp, zp)
            d = com.microsoft.DequantizeLinear<axis=1>(q, sp, zp)
        }""",
        sa=np.float32(0.02), za=np.uint8(120), sy=np.float32(0.004), zy=np.uint8(9), sp=scale(8), zp=i8(8),
    )  # fmt: skip
    same(model, {"a": u8(3, 8), "c": RNG.random((3, 8)) > 0.5, "x": f32(3, 8)}, steps=1)


def test_an_old_softmax_over_several_axes_is_not_taken_for_one_over_the_first():
    """Before opset 13 it went over all axes from `axis` on."""
    model = model_of(
        """(uint8[2,3,4] a, float sa, uint8 za, float sy, uint8 zy) => (uint8[2,3,4] y) {
            y = com.microsoft.QLinearSoftmax<axis=1, opset=12>(a, sa, za, sy, zy)
        }""",
        sa=np.float32(0.02), za=np.uint8(120), sy=np.float32(0.004), zy=np.uint8(9),
    )  # fmt: skip
    feeds = {"a": u8(2, 3, 4)}
    with graphopt.compile(model, verify=False) as program:
        np.testing.assert_array_equal(program.run(feeds)["y"], oracle.run(model, feeds)["y"])


@pytest.mark.parametrize("transposed", [0, 1])
def test_qgemm_to_integers_and_to_float(transposed):
    b = i8(6, 7) if transposed else i8(7, 6)
    model = model_of(
        f"""(uint8[5,7] a, float sa, uint8 za, int8[{b.shape[0]},{b.shape[1]}] b, float[6] sb, int8[6] zb, int32[6] c,
            float sy, uint8 zy) => (uint8[5,6] y, float[5,6] real) {{
            y = com.microsoft.QGemm<transB={transposed}, alpha=0.5>(a, sa, za, b, sb, zb, c, sy, zy)
            real = com.microsoft.QGemm<transB={transposed}>(a, sa, za, b, sb, zb)
        }}""",
        sa=np.float32(0.02), za=np.uint8(120), b=b, sb=scale(6), zb=np.zeros(6, np.int8),
        c=RNG.integers(-900, 900, 6).astype(np.int32), sy=np.float32(0.1), zy=np.uint8(128),
    )  # fmt: skip
    want, got = outcome(model, {"a": u8(5, 7)})
    assert np.abs(want["y"].astype(int) - got["y"]).max() <= 1
    np.testing.assert_allclose(got["real"], want["real"], rtol=1e-5, atol=1e-5)


def test_integer_products_are_exact():
    model = model_of(
        """(uint8[2,5,300] a, uint8 za, int8[300,6] b, int8 zb, int8[6] zc, uint8[1,3,8,8] x, uint8 zx, int8[4,3,3,3] w,
            int8 zw) => (int32[2,5,6] m, int32[2,5,6] n, int32[1,4,8,8] c, int32[1,4,6,6] d) {
            m = MatMulInteger(a, b, za, zb)
            n = MatMulInteger(a, b, , zc)
            c = ConvInteger<pads=[1,1,1,1]>(x, w, zx, zw)
            d = ConvInteger(x, w)
        }""",
        za=np.uint8(255), b=i8(300, 6), zb=np.int8(-3), zc=i8(6), zx=np.uint8(7), w=i8(4, 3, 3, 3), zw=np.int8(0),
    )  # fmt: skip
    same(model, {"a": u8(2, 5, 300), "x": u8(1, 3, 8, 8)})


def test_conv_integer_of_computed_weights():
    model = model_of(
        """(uint8[1,3,8,8] x, uint8 zx, uint8[4,3,3,3] w, uint8 zw) => (int32[1,4,6,6] c) {
            c = ConvInteger(x, w, zx, zw)
        }"""
    )
    same(model, {"x": u8(1, 3, 8, 8), "zx": np.array(4, "u1"), "w": u8(4, 3, 3, 3), "zw": np.array(200, "u1")})


@pytest.mark.parametrize("x", [f32(3, 50), np.zeros((3, 50), np.float32), f32(3, 50) ** 2 + 1, -np.ones((3, 50), "f4")])
def test_dynamic_quantization_of_any_range(x):
    model = model_of(
        """(float[3,50] x) => (uint8[3,50] y, float s, uint8 z, float[3,50] d) {
            y, s, z = DynamicQuantizeLinear(x)
            d = DequantizeLinear(y, s, z)
        }"""
    )
    same(model, {"x": x})


def test_onnxruntimes_dynamic_product():
    model = model_of(
        """(float[3,50] x, int8[50,6] w, float[6] s, int8[6] z, float[6] bias, uint8[3,50] q, float sq, uint8 zq)
        => (float[3,6] y, float[3,6] p) {
            y = com.microsoft.DynamicQuantizeMatMul(x, w, s, z, bias)
            p = com.microsoft.MatMulIntegerToFloat(q, w, sq, s, zq)
        }""",
        w=i8(50, 6), s=scale(6), z=np.zeros(6, np.int8), bias=f32(6), sq=np.float32(0.01), zq=np.uint8(77),
    )  # fmt: skip
    same(model, {"x": f32(3, 50), "q": u8(3, 50)}, rtol=1e-5)


@pytest.mark.parametrize("opset", [17, 21])
def test_matmul_nbits(opset):
    """With and without zero points; a last block that the inner dimension doesn't fill."""
    k, n, block, blocks = 50, 6, 16, 4
    model = model_of(
        f"""(float[2,3,{k}] x, uint8[{n},{blocks},8] b4, uint8[{n},{blocks},16] b8, float[{n * blocks}] s,
            uint8[{n * 2}] z4, uint8[{n * 4}] z8)
        => (float[2,3,{n}] p, float[2,3,{n}] q, float[2,3,{n}] r, float[2,3,{n}] t) {{
            p = com.microsoft.MatMulNBits<K={k}, N={n}, bits=4, block_size={block}>(x, b4, s)
            q = com.microsoft.MatMulNBits<K={k}, N={n}, bits=4, block_size={block}>(x, b4, s, z4)
            r = com.microsoft.MatMulNBits<K={k}, N={n}, bits=8, block_size={block}>(x, b8, s)
            t = com.microsoft.MatMulNBits<K={k}, N={n}, bits=8, block_size={block}>(x, b8, s, z8)
        }}""",
        opset=opset, b4=u8(n, blocks, 8), b8=u8(n, blocks, 16), s=scale(n * blocks), z4=u8(n * 2), z8=u8(n * 4),
    )  # fmt: skip
    same(model, {"x": f32(2, 3, k)}, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "int16", "uint16"])
def test_quantizers_of_every_type_and_granularity(dtype):
    """Constants and activations; per tensor, per channel, in blocks that divide the axis and in others."""
    kinds = {"channel": ([3], "<axis=0>"), "tensor": ([], "")}
    if not dtype.endswith("16"):  # onnxruntime has no blocks of 16 bits
        kinds |= {"block": ([3, 6], "<axis=1, block_size=4>"), "uneven": ([3, 5], "<axis=1, block_size=5>")}
    bits = int(dtype.lstrip("uint"))
    low = 0 if dtype.startswith("u") else -(1 << (bits - 1))
    numpy = np.dtype(getattr(ml_dtypes, dtype)) if bits == 4 else np.dtype(dtype)
    weights = {"w": RNG.integers(low, low + (1 << bits), (3, 24)).astype(numpy)}
    inputs, outputs, body = f"float[3,24] x, {dtype}[3,24] w", [], ""
    for kind, (shape, attributes) in kinds.items():
        dims = f"[{','.join(map(str, shape))}]" if shape else ""
        inputs += f", float{dims} s_{kind}, {dtype}{dims} z_{kind}"
        outputs += [f"float[3,24] real_{kind}", f"float[3,24] again_{kind}"]
        body += f"""real_{kind} = DequantizeLinear{attributes}(w, s_{kind}, z_{kind})
            q_{kind} = QuantizeLinear{attributes}(x, s_{kind}, z_{kind})
            again_{kind} = DequantizeLinear{attributes}(q_{kind}, s_{kind}, z_{kind})
            """
        weights[f"s_{kind}"] = scale(*shape) * np.float32(1 if bits < 16 else 1e-3)
        weights[f"z_{kind}"] = RNG.integers(low, low + (1 << bits), shape).astype(numpy)
    model = model_of(f"({inputs}) => ({', '.join(outputs)}) {{ {body} }}", opset=21, **weights)
    same(model, {"x": 3 * f32(3, 24)}, rtol=1e-6)


def test_float8_weights_are_kept_small_and_float8_activations_are_computed():
    w = f32(16, 64).astype(ml_dtypes.float8_e4m3fn)
    constant = model_of(
        """(float[3,16] x, float8e4m3fn[16,64] w, float s) => (float[3,64] y) {
            d = DequantizeLinear(w, s) y = MatMul(x, d) }""",
        opset=19, w=w, s=np.float32(0.5),
    )  # fmt: skip
    same(constant, {"x": f32(3, 16)}, rtol=1e-5)
    assert max(a.nbytes for a in lower(constant).weights.values()) <= 1024
    activation = model_of(
        """(float[3,16] x, float s, float8e4m3fn z) => (float[3,16] y) {
            q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }""",
        opset=19, s=np.float32(0.5), z=np.zeros((), ml_dtypes.float8_e4m3fn),
    )  # fmt: skip
    same(activation, {"x": f32(3, 16)}, rtol=1e-5)


def test_what_has_no_such_form_is_refused_by_name():
    model = model_of(
        """(float[3,16] x, uint8[8,1,8] b, float[8] s, int32[16] order) => (float[3,8] y) {
            y = com.microsoft.MatMulNBits<K=16, N=8, bits=4, block_size=16>(x, b, s, , order) }""",
        b=u8(8, 1, 8), s=scale(8), order=np.zeros(16, np.int32),
    )  # fmt: skip
    with pytest.raises(LoweringError, match="MatMulNBits"):
        lower(model)


@pytest.mark.parametrize("kind", ["uint4-block", "int4-block", "int8-row", "uint8-row", "int4-column", "uint8-tensor"])
def test_rows_of_quantized_tables_are_taken_before_they_are_dequantized(kind):
    dtype, how = kind.split("-")
    numpy = np.dtype(getattr(ml_dtypes, dtype)) if "4" in dtype else np.dtype(dtype)
    low, high = {"uint4": (0, 16), "int4": (-8, 8), "uint8": (0, 256), "int8": (-128, 128)}[dtype]
    shape = {"block": (400, 2), "row": (400,), "column": (64,), "tensor": ()}[how]
    attributes = {"block": "<axis=1, block_size=32>", "row": "<axis=0>", "column": "<axis=1>", "tensor": ""}[how]
    dims = str(list(shape)) if shape else ""
    model = model_of(
        f"""({dtype}[400,64] t, float{dims} s, {dtype}{dims} z, int64[N,5] rows) => (float[N,5,64] y) {{
            d = DequantizeLinear{attributes}(t, s, z) y = Gather(d, rows) }}""",
        opset=21, t=RNG.integers(low, high, (400, 64)).astype(numpy), s=scale(*shape),
        z=RNG.integers(low, high, shape).astype(numpy),
    )  # fmt: skip
    lowered = lower(model)
    packed = 400 * 64 // (2 if "4" in dtype else 1)
    assert sum(a.nbytes for a in lowered.weights.values()) <= packed + 4 * 400 * 3
    same(model, {"rows": RNG.integers(0, 400, (3, 5))}, rtol=1e-6)
