"""Operators on 8-bit values beside convolutions: they read and write bytes, and yield what the QDQ graph does."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graphopt import oracle
from graphopt.artifact import assemble
from graphopt.base import Context
from graphopt.targets.integer import reference
from graphopt.targets.llvm import Llvm
from graphopt.targets.llvm.cpu import resolve
from graphopt.targets.llvm.plan import plan
from graphopt.targets.lowering.canonical import canonicalise
from graphopt.testing import from_text

EXAMPLES = settings(
    phases=[Phase.explicit, Phase.generate],
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
HERE = ("native", "x86-64-v3")
LETTERS = "abcdefgh"


def network(shapes, body: str, output: str, grids, opset: int = 18, constants=None) -> ir.Model:
    """uint8 inputs a, b... of `shapes`, dequantized to ar, br... after a pooling that turns them channels-last.

    `body` makes `y` of them; `output` is its type and shape. `grids`: (scale, zero) for each input, then for s0, z0...
    """
    weights = {**(constants or {})}
    inputs, head = [], ""
    for letter, shape, (scale, zero) in zip(LETTERS, shapes, grids, strict=False):
        inputs.append(f"uint8[{','.join(map(str, shape))}] {letter}")
        weights |= {f"{letter}s": np.float32(scale), f"{letter}z": np.uint8(zero)}
        head += f"{letter}d = DequantizeLinear({letter}, {letter}s, {letter}z)\n"
        head += f"{letter}r = MaxPool<kernel_shape=[1,1]>({letter}d)\n"
    for index, (scale, zero) in enumerate(grids[len(shapes) :]):
        weights |= {f"s{index}": np.float32(scale), f"z{index}": np.uint8(zero)}
    kinds = {np.dtype(np.float32): "float", np.dtype(np.uint8): "uint8", np.dtype(np.int64): "int64"}
    arrays = {n: np.asarray(w) for n, w in weights.items()}
    declared = [f"{kinds[w.dtype]}{list(w.shape) if w.ndim else ''} {n}" for n, w in arrays.items()]
    text = f"""<ir_version: 9, opset_import: ["": {opset}]>
    g ({", ".join([*inputs, *declared])}) => ({output} y) {{ {head} {body} }}"""
    return from_text(text, **arrays)


def run(model: ir.Model, feeds, mcpu: str = "native"):
    program = Llvm(mcpu=mcpu, threads=1).build(model, Context())
    with assemble(program, target="llvm", before=model, after=model, report={}) as executable:
        return executable.run(feeds)["y"]


def planned(model: ir.Model) -> tuple[list[str], list[str]]:
    """The kernels that are called, without their numbers, and the operators left."""
    canonical = canonicalise(model.clone())
    plan(canonical, resolve("native"), parallel=False)
    symbols = [n.attributes.get_string("symbol") for n in canonical.graph if n.op_type == "CallPacked"]
    return [str(s).rsplit("_", 1)[0] for s in symbols], [n.op_type for n in canonical.graph if n.domain == ""]


def bytes_of(*shape: int, seed: int = 0) -> np.ndarray:
    """Every value occurs where there is room."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    return rng.permutation(np.resize(np.arange(256, dtype=np.uint8), size)).reshape(shape)


def same(model: ir.Model, mcpu: str = "native") -> None:
    feeds = {str(v.name): bytes_of(*v.shape.numpy(), seed=i) for i, v in enumerate(model.graph.inputs)}
    want, got = oracle.run(model, feeds)["y"], run(model, feeds, mcpu)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


UNARY = {
    "relu": "v = Relu(ar)",
    "sigmoid": "v = Sigmoid(ar)",
    "swish": "t = Sigmoid(ar) v = Mul(ar, t)",
    "hard-swish": "v = HardSwish(ar)",
    "hard-sigmoid": "v = HardSigmoid<alpha=0.2, beta=0.4>(ar)",
    "tanh": "v = Tanh(ar)",
    "leaky": "v = LeakyRelu<alpha=0.1>(ar)",
    "clip": "v = Clip(ar, low, high)",
    "gelu": "t0 = Mul(ar, half) t1 = Erf(t0) t2 = Add(t1, one) t3 = Mul(ar, t2) v = Mul(t3, half)",
    "arithmetic": "t0 = Mul(ar, half) t1 = Add(t0, one) v = Relu(t1)",
    "nothing": "",
}
NUMBERS = {"low": np.float32(-0.3), "high": np.float32(1.1), "half": np.float32(0.5), "one": np.float32(1.0)}


@pytest.mark.parametrize("mcpu", HERE)
@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_value_are_tables(name, mcpu):
    body = f"{UNARY[name]} y = QuantizeLinear({'v' if UNARY[name] else 'ar'}, s0, z0)"
    model = network([(1, 19, 7, 3)], body, "uint8[1,19,7,3]", [(0.02, 120), (0.013, 7)], constants=NUMBERS)
    assert planned(model)[0][-1:] == ["lookup"]
    same(model, mcpu)


@pytest.mark.parametrize("mcpu", HERE)
@pytest.mark.parametrize(("op", "other"), [
    ("Add", (1, 19, 7, 3)), ("Mul", (1, 19, 1, 1)), ("Sub", (1, 1, 7, 3)), ("Max", (1, 19, 7, 3)),
    ("Div", (1, 19, 1, 1)),
])  # fmt: skip
def test_operators_on_two_values(op, other, mcpu):
    """Also squeeze-and-excitation's product, and a Relu behind. A division by zero is no number: left out."""
    body = f"v = {op}(ar, br) w = Relu(v) y = QuantizeLinear(w, s0, z0)"
    zero = 90 if op != "Div" else 0
    model = network([(1, 19, 7, 3), other], body, "uint8[1,19,7,3]", [(0.02, 120), (0.03, zero), (0.013, 7)])
    if op == "Div":
        feeds = {"a": bytes_of(1, 19, 7, 3), "b": np.maximum(bytes_of(*other), 1)}
        np.testing.assert_array_equal(run(model, feeds, mcpu), oracle.run(model, feeds)["y"])
    else:
        same(model, mcpu)
    assert planned(model)[0][-1:] == ["pointwise"]


@pytest.mark.parametrize("mcpu", HERE)
def test_concatenation_of_parts_of_other_scales_and_of_the_same(mcpu):
    shapes = [(2, 5, 4, 3), (2, 70, 4, 3), (2, 3, 4, 3)]
    body = "v = Concat<axis=1>(ar, br, cr) y = QuantizeLinear(v, s0, z0)"
    other = network(shapes, body, "uint8[2,78,4,3]", [(0.02, 120), (0.03, 90), (0.01, 0), (0.025, 110)])
    assert planned(other)[0][-1:] == ["lookup"]
    same(other, mcpu)
    equal = network(shapes, body, "uint8[2,78,4,3]", [(0.02, 120)] * 4)
    assert planned(equal)[0][-1:] == ["concat"]
    assert "DequantizeLinear" not in planned(equal)[1]
    same(equal, mcpu)


@pytest.mark.parametrize(("body", "output"), [
    ("v = MaxPool<kernel_shape=[3,2], strides=[2,1], pads=[1,0,1,1]>(ar)", "2,8,3,6"),
    ("v = Resize<mode=\"nearest\", coordinate_transformation_mode=\"asymmetric\", nearest_mode=\"floor\">(ar, , up)",
     "2,8,10,12"),
    ("v = Slice(ar, one, five, axis)", "2,4,5,6"),
    ("t0, v = Split<axis=1>(ar, parts)", "2,3,5,6"),
    ("v = Reshape(ar, flat)", "2,240"),
    ("v = Transpose<perm=[0,2,3,1]>(ar)", "2,5,6,8"),
    ("v = DepthToSpace<blocksize=2>(ar)", "2,2,10,12"),
    ("v = Pad(ar, pads)", "2,8,7,6"),
    ("t0 = Reshape(ar, groups) t1 = Transpose<perm=[0,2,1,3,4]>(t0) v = Reshape(t1, back)", "2,8,5,6"),
])  # fmt: skip
def test_what_moves_bytes_only_never_dequantizes(body, output):
    constants = {"up": np.array([1, 1, 2, 2], np.float32), "one": np.array([1]), "five": np.array([5]),
                 "axis": np.array([1]), "parts": np.array([5, 3]), "flat": np.array([2, 240]),
                 "pads": np.array([0, 0, 1, 0, 0, 0, 1, 0]), "groups": np.array([2, 2, 4, 5, 6]),
                 "back": np.array([2, 8, 5, 6])}  # fmt: skip
    text = f"{body} y = QuantizeLinear(v, as, az)"
    model = network([(2, 8, 5, 6)], text, f"uint8[{output}]", [(0.02, 120)], constants=constants)
    left = planned(model)[1]
    assert not {"DequantizeLinear", "QuantizeLinear"} & set(left), left
    same(model)


@st.composite
def windows(draw: st.DrawFn):
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    pads = tuple(draw(st.integers(0, k - 1)) for k in (*kernel, *kernel))
    size = tuple(k + draw(st.integers(0, 7)) for k in kernel)
    return kernel, strides, pads, size, draw(st.integers(1, 70)), draw(st.booleans()), draw(st.booleans())


@EXAMPLES
@given(windows(), st.sampled_from(HERE), st.integers(0, 255), st.integers(0, 255))
def test_average_pooling_follows_the_reference(case, mcpu, zero, offset):
    kernel, strides, pads, size, channels, counted, to_float = case
    x = bytes_of(2, channels, *size)
    grid = (np.float32(0.02), np.float32(0.013))
    m = grid[0] if to_float else grid[0] / grid[1]
    want = reference.average(x, zero, m, None if to_float else (offset, 0, 255), kernel, strides, pads, counted)
    body = f"""v = AveragePool<kernel_shape={list(kernel)}, strides={list(strides)}, pads={list(pads)},
        count_include_pad={int(counted)}>(ar) y = {"Identity(v)" if to_float else "QuantizeLinear(v, s0, z0)"}"""
    shape = ",".join(map(str, want.shape))
    model = network(
        [x.shape], body, f"{'float' if to_float else 'uint8'}[{shape}]", [(grid[0], zero), (grid[1], offset)]
    )
    assert "average" in planned(model)[0]
    np.testing.assert_array_equal(run(model, {"a": x}, mcpu), want.astype(np.float32 if to_float else np.uint8))


@pytest.mark.parametrize("op", ["GlobalAveragePool(ar)", "ReduceMean(ar, spatial)"])
def test_global_averages(op):
    x = bytes_of(2, 37, 7, 7)
    body = f"v = {op} y = QuantizeLinear(v, s0, z0)"
    constants = {"spatial": np.array([-1, 2])}
    model = network([x.shape], body, "uint8[2,37,1,1]", [(0.02, 120), (0.013, 7)], constants=constants)
    m = np.float32(0.02) / np.float32(0.013)
    want = reference.average(x, 120, m, (7, 0, 255), (7, 7), (1, 1), (0, 0, 0, 0), False)
    np.testing.assert_array_equal(run(model, {"a": x}), want)
    assert np.abs(want - oracle.run(model, {"a": x})["y"].astype(int)).max() <= 1


def test_per_channel_affine_between_quantizers():
    """BatchNormalization behind a Relu, as in CREPE."""
    rng = np.random.default_rng(1)
    constants = {n: rng.standard_normal((1, 19, 1, 1)).astype(np.float32) for n in ("c0", "c1")}
    body = "t0 = Relu(ar) t1 = Mul(t0, c0) v = Add(t1, c1) y = QuantizeLinear(v, s0, z0)"
    model = network([(1, 19, 7, 3)], body, "uint8[1,19,7,3]", [(0.02, 120), (0.013, 100)], constants=constants)
    assert planned(model)[0][-1:] == ["pointwise"]
    x = bytes_of(1, 19, 7, 3)
    off = run(model, {"a": x}).astype(int) - oracle.run(model, {"a": x})["y"].astype(int)
    assert np.abs(off).max() <= 1


def test_signed_values_become_unsigned_and_come_back():
    model = from_text(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[1,20,6,6] x, float s, int8 z, float t, int8 u) => (int8[1,20,6,6] y) {
            p = MaxPool<kernel_shape=[1,1]>(x)
            q = QuantizeLinear(p, s, z) d = DequantizeLinear(q, s, z) v = HardSwish(d) y = QuantizeLinear(v, t, u)
        }""",
        s=np.float32(0.02), z=np.int8(-5), t=np.float32(0.013), u=np.int8(3),
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((1, 20, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(run(model, {"x": x}), oracle.run(model, {"x": x})["y"])


@pytest.mark.parametrize("mcpu", ["neoverse-n1", "x86-64-v2"])
def test_other_cpus_get_kernels_too(mcpu):
    body = "v = Sigmoid(ar) w = Mul(v, br) q = QuantizeLinear(v, s0, z0) y = QuantizeLinear(w, s0, z0)"
    model = network([(1, 19, 7, 3), (1, 19, 7, 3)], body, "uint8[1,19,7,3]", [(0.02, 120), (0.03, 1), (0.013, 7)])
    canonical = canonicalise(model.clone())
    assert plan(canonical, resolve(mcpu), parallel=False)


def test_run_time_quantization_runs_on_the_integer_kernels():
    """MatMulInteger, with the zero point that DynamicQuantizeLinear finds, and weights with one of their own."""
    rng = np.random.default_rng(2)
    model = from_text(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[N,7,300] x, int8[300,21] w, int8 zw, float[21] sw) => (float[N,7,21] y) {
            q, s, z = DynamicQuantizeLinear(x)
            p = MatMulInteger(q, w, z, zw) f = Cast<to=1>(p) u = Mul(s, sw) y = Mul(f, u)
        }""",
        w=rng.integers(-100, 100, (300, 21)).astype(np.int8), zw=np.int8(3),
        sw=rng.uniform(0.01, 0.02, 21).astype(np.float32),
    )  # fmt: skip
    kernels, left = planned(model)
    assert "integer_dense" in kernels
    assert not {"MatMulInteger", "MatMul"} & set(left)
    for x in (rng.standard_normal((2, 7, 300)), np.zeros((1, 7, 300)), rng.uniform(2, 3, (3, 7, 300))):
        feeds = {"x": x.astype(np.float32)}
        want = oracle.run(model, feeds)["y"]
        np.testing.assert_allclose(run(model, feeds), want, rtol=1e-6, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize(
    "attributes",
    ["", "<pads = [1, 0, 2, 1], strides = [2, 1]>", "<pads = [1, 1, 1, 1], group = 2, dilations = [1, 2]>"],
)
@pytest.mark.parametrize("zero", [True, False])
def test_convolutions_quantized_at_run_time_have_kernels(attributes, zero):
    """What pads an image is its zero point, which isn't known before."""
    rng = np.random.default_rng(4)
    channels = 4 if "group" in attributes else 8
    model = from_text(
        f"""<ir_version: 9, opset_import: ["": 18]>
        g (float[2,8,9,12] x, int8[6,{channels},3,3] w, int8 zw, float sw) => (float[2,6,OH,OW] y) {{
            q, s, z = DynamicQuantizeLinear(x)
            p = ConvInteger{attributes}(q, w{", z, zw" if zero else ""}) f = Cast<to=1>(p) u = Mul(s, sw) y = Mul(f, u)
        }}""",
        w=rng.integers(-100, 100, (6, channels, 3, 3)).astype(np.int8), zw=np.int8(3), sw=np.float32(0.02),
    )  # fmt: skip
    kernels, left = planned(model)
    assert "integer_conv" in kernels
    assert not {"ConvInteger", "Conv"} & set(left)
    for x in (rng.standard_normal((2, 8, 9, 12)), rng.uniform(2, 3, (2, 8, 9, 12)), np.full((2, 8, 9, 12), -1.0)):
        feeds = {"x": x.astype(np.float32)}
        want = oracle.run(model, feeds)["y"]
        np.testing.assert_allclose(run(model, feeds), want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_an_activation_behind_a_product_quantized_at_run_time_has_a_kernel():
    rng = np.random.default_rng(3)
    model = from_text(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[N,7,30] x, int8[30,21] w, float[21] sw, float[21] b, float r, float one, float half)
        => (float[N,7,21] y) {
            q, s, z = DynamicQuantizeLinear(x)
            p = MatMulInteger(q, w, z) f = Cast<to=1>(p) u = Mul(s, sw) t = Mul(f, u) v = Add(t, b)
            e0 = Div(v, r) e1 = Erf(e0) e2 = Add(e1, one) e3 = Mul(v, e2) y = Mul(e3, half)
        }""",
        w=rng.integers(-127, 127, (30, 21)).astype(np.int8), sw=rng.uniform(0.01, 0.02, 21).astype(np.float32),
        b=rng.standard_normal(21).astype(np.float32), r=np.float32(2**0.5), one=np.float32(1), half=np.float32(0.5),
    )  # fmt: skip
    kernels, left = planned(model)
    assert {"integer_dense", "elementwise"} <= set(kernels)
    assert "Erf" not in left
    feeds = {"x": rng.standard_normal((2, 7, 30)).astype(np.float32)}
    want = oracle.run(model, feeds)["y"]
    np.testing.assert_allclose(run(model, feeds), want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
