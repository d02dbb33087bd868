"""Quantized models in integers on the GPU: `targets.integer.reference` and the llvm target to the bit."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import graph, models, oracle
from graphopt.api import optimize
from graphopt.artifact import assemble
from graphopt.base import Context
from graphopt.pipeline.presets import preset
from graphopt.targets.cuda import Cuda
from graphopt.targets.cuda.arch import tvm_target
from graphopt.targets.cuda.kernels import to_loops
from graphopt.targets.cuda.lowering.integer import to_integer_operators, to_integers
from graphopt.targets.cuda.lowering.lower import lower_for_gpu
from graphopt.targets.integer import reference
from graphopt.targets.llvm import Llvm
from graphopt.targets.lowering.canonical import canonicalise
from graphopt.testing import from_text
from graphopt.testing.cuda_emulation import emulate, host

needs_linux = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")


TYPES = {"float32": "float", "int8": "int8", "uint8": "uint8", "int32": "int32"}


def net(inputs: str, outputs: str, body: str, **constants) -> ir.Model:
    """A model of ONNX text; `constants` become initializers, arrays or numbers with a type."""
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    given = [f"{TYPES[a.dtype.name]}[{','.join(map(str, a.shape))}] {name}" for name, a in arrays.items()]
    given = [one.replace("[]", "") for one in given]
    head = f'<ir_version: 10, opset_import: ["": 18]> net ({", ".join([inputs, *given])}) => ({outputs})'
    return graph.normalise(from_text(f"{head} {{ {body} }}", **arrays))


def scales(**values: float) -> dict[str, np.float32]:
    return {name: np.float32(value) for name, value in values.items()}


def on_host(model: ir.Model, feeds):
    """What the GPU's loops give before they are scheduled, on the CPU."""
    return host.calls(model, feeds, "sm_80")[1]


def integer_form(model: ir.Model) -> tuple[ir.Model, dict[str, str]]:
    """The model in ONNX's integer operators, and which products are."""
    made = canonicalise(model.clone())
    found = to_integer_operators(made)
    graph.infer_shapes(made)
    return made, found


def equal(got, want):
    for name, value in want.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_array_equal(got[name], value)


def spread(value: np.ndarray) -> None:
    assert len(np.unique(value)) > min(20, value.size // 3), "a test of nothing"


RESIDUAL = """fx = DequantizeLinear (x, sx, zx)
    fw = DequantizeLinear <axis = 0> (w, sw)
    c = Conv <pads = [1,1,1,1], strides = [2,2]> (fx, fw, b)
    qi = QuantizeLinear (c, si, zi)
    fi = DequantizeLinear (qi, si, zi)
    fr = DequantizeLinear (r, sr, zr)
    a = Add (fi, fr)
    m = Relu (a)
    y = QuantizeLinear (m, sy, zy)"""


@needs_linux
def test_a_convolution_with_a_residual_is_the_reference_to_the_bit():
    """Border of zero points, a scale a channel, results of 8 bits before and after the addition; odd sizes."""
    rng = np.random.default_rng(0)
    w = rng.integers(-127, 128, (8, 5, 3, 3)).astype(np.int8)
    sw = rng.uniform(0.002, 0.01, 8).astype(np.float32)
    b = rng.normal(size=8).astype(np.float32)
    zeros = {name: np.uint8(value) for name, value in {"zx": 117, "zi": 99, "zr": 140, "zy": 7}.items()}
    model = net(
        "uint8[N,5,9,11] x, uint8[N,8,5,6] r", "uint8[N,8,5,6] y", RESIDUAL,
        w=w, sw=sw, b=b, **scales(sx=0.02, si=0.05, sr=0.03, sy=0.04), **zeros,
    )  # fmt: skip
    feeds = {"x": rng.integers(0, 256, (3, 5, 9, 11), dtype=np.uint8)}
    feeds["r"] = rng.integers(0, 256, (3, 8, 5, 6), dtype=np.uint8)
    unit = np.float32(0.02) * sw
    bias = np.rint(b / unit.astype(np.float64)).astype(np.int32)
    acc = reference.convolution(feeds["x"], 117, w, bias, (2, 2), (1, 1), (1, 1, 1, 1))
    inner = reference.requantise(acc, (unit / np.float32(0.05))[:, None, None], 99, 0, 255)
    terms = [
        reference.scaled(inner, 99, np.float32(np.float32(0.05) / np.float32(0.04))),
        reference.scaled(feeds["r"], 140, np.float32(np.float32(0.03) / np.float32(0.04))),
    ]
    want = {"y": reference.total(terms, 7, 7, 255).astype(np.uint8)}
    spread(want["y"])
    form, found = integer_form(model)
    assert list(found.values()) == ["int8"]
    equal(oracle.run(form, feeds), want)
    equal(emulate(model, feeds), want)


def test_products_are_rounded_before_they_are_added_where_a_kernel_gives_8_bits():
    """CUDA's compiler would make fused multiply-adds of them; the emulation's does not, and can't see it."""
    one = np.uint8(1)
    numbers = {"w": np.ones((8, 5, 3, 3), np.int8), "sw": np.full(8, 0.01, np.float32), "b": np.zeros(8, np.float32)}
    quantized = net(
        "uint8[1,5,9,11] x, uint8[1,8,5,6] r", "uint8[1,8,5,6] y", RESIDUAL,
        **numbers, **scales(sx=0.02, si=0.05, sr=0.03, sy=0.04), zx=one, zi=one, zr=one, zy=one,
    )  # fmt: skip
    plain = net("float[4,6] x, float[4,6] y", "float[4,6] z", "p = Mul (x, y)\nz = Add (p, x)")
    for model, rounded in ((quantized, True), (plain, False)):
        source = Cuda(arch="sm_80", compiler="source").build(model, Context()).files["kernels.cu"].decode()
        assert ("__fmul_rn(" in source) is rounded


OPEN = """fx = DequantizeLinear (x, sx, zx)
    fw = DequantizeLinear <axis = 0> (w, sw)
    c = Conv <pads = [2,1,1,3], strides = [2,1], dilations = [1,2], group = {group}> (fx, fw)
    y = QuantizeLinear (c, sy, zy)"""


@needs_linux
@pytest.mark.parametrize("group", [1, 4])
def test_borders_of_images_of_open_size(group):
    """Even and odd sizes under a stride of two, and images smaller than the window; dilated."""
    rng = np.random.default_rng(8)
    w = rng.integers(-127, 128, (12, 4 // group, 4, 3)).astype(np.int8)
    numbers = {"sw": rng.uniform(0.002, 0.01, 12).astype(np.float32), "zx": np.uint8(90), "zy": np.uint8(120)}
    model = net(
        "uint8[N,4,H,W] x", "uint8[N,12,h,v] y", OPEN.format(group=group), w=w, **numbers, **scales(sx=0.02, sy=0.05)
    )
    sizes = [(7, 9), (8, 5), (2, 3), (1, 2)]
    feeds = [{"x": rng.integers(0, 256, (2, 4, *size)).astype(np.uint8)} for size in sizes]
    m = (np.float32(0.02) * numbers["sw"] / np.float32(0.05))[:, None, None]
    for one, got in zip(feeds, emulate(model, feeds), strict=True):
        acc = reference.convolution(one["x"], 90, w, None, (2, 1), (1, 2), (2, 1, 1, 3), group)
        np.testing.assert_array_equal(got["y"], reference.requantise(acc, m, 120, 0, 255))


ATTENTION = """qq = QuantizeLinear (q, sq, zq)
    fq = DequantizeLinear (qq, sq, zq)
    qk = QuantizeLinear (k, sk, zk)
    fk = DequantizeLinear (qk, sk, zk)
    [scores] s = MatMul (fq, fk)
    qs = QuantizeLinear (s, sy, zy)
    y = DequantizeLinear (qs, sy, zy)"""


def test_both_operands_of_a_matmul_may_be_computed():
    """Both with a zero point: the sums of rows and columns are taken off."""
    zeros = {"zq": np.uint8(117), "zk": np.uint8(140), "zy": np.uint8(100)}
    numbers = {**scales(sq=0.02, sk=0.03, sy=0.05), **zeros}
    model = net("float[N,2,7,12] q, float[N,2,12,9] k", "float[N,2,7,9] y", ATTENTION, **numbers)
    rng = np.random.default_rng(1)
    feeds = {name: rng.normal(size=s).astype(np.float32) for name, s in (("q", (3, 2, 7, 12)), ("k", (3, 2, 12, 9)))}
    want = oracle.run(model, feeds)
    spread(want["y"])
    form, found = integer_form(model)
    assert found == {"scores": "int8"}
    np.testing.assert_allclose(oracle.run(form, feeds)["y"], want["y"], atol=0.05 * 1.001)
    equal(on_host(model, feeds), oracle.run(form, feeds))


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 1 << 16),
    group=st.sampled_from([1, 1, 3]),
    kernel=st.sampled_from([(1, 1), (3, 3), (2, 5)]),
    stride=st.integers(1, 2),
    zero=st.sampled_from([0, 1, 128, 255]),
    signed=st.booleans(),
)
def test_convolutions_of_any_shape(seed, group, kernel, stride, zero, signed):
    """Grouped, strided, padded on one side, of any zero point, int8 or uint8: as onnxruntime runs the integer form."""
    rng = np.random.default_rng(seed)
    kind, z = ("int8", zero - 128) if signed else ("uint8", zero)
    channels, out = 3 * int(rng.integers(1, 4)), 3 * int(rng.integers(1, 5))
    pads = [int(rng.integers(0, k)) for k in (*kernel, *kernel)]
    body = f"""q = QuantizeLinear (x, sx, zx)
        fx = DequantizeLinear (q, sx, zx)
        fw = DequantizeLinear <axis = 0> (w, sw)
        c = Conv <pads = {pads}, strides = [{stride},{stride}], group = {group}> (fx, fw)
        e = Clip (c, low, high)
        y = QuantizeLinear (e, sy, zy)"""
    w = rng.integers(-127, 128, (out, channels // group, *kernel)).astype(np.int8)
    sw = rng.uniform(0.002, 0.02, out).astype(np.float32)
    zeros = {"zx": np.array(z, kind), "zy": np.array(5, kind)}
    numbers = scales(sx=0.02, sy=0.05, low=-3, high=2.5)
    model = net(f"float[2,{channels},9,10] x", f"{kind}[2,{out},h,v] y", body, w=w, sw=sw, **numbers, **zeros)
    feeds = {"x": rng.normal(size=(2, channels, 9, 10)).astype(np.float32)}
    form, found = integer_form(model)
    assert list(found.values()) == ["int8"]
    want = oracle.run(form, feeds)
    steps = np.abs(want["y"].astype(int) - oracle.run(model, feeds)["y"].astype(int))
    assert steps.max() <= 1
    equal(on_host(model, feeds), want)


def _layer(weights: str, product: str = "MatMul (fx, fw)") -> str:
    return f"""q = QuantizeLinear (x, sx, zx)
        fx = DequantizeLinear (q, sx, zx)
        fw = {weights}
        [product] y = {product}"""


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        (_layer("DequantizeLinear <axis = 1> (w, sn)"), True),
        (_layer("DequantizeLinear <axis = 0> (w, sk)"), False),
        (_layer("DequantizeLinear (w, s)"), False),
        (_layer("Identity (v)"), False),
        (_layer("DequantizeLinear <axis = 1> (w, sn)", "Gemm <alpha = 0.5> (fx, fw)"), False),
        (_layer("DequantizeLinear <axis = 1> (w, sn)", "MatMul (x, fw)"), False),
        (_layer("DequantizeLinear <axis = 1> (w, sn, far)"), False),
    ],
    ids=["plain", "scales along the sum", "scale at run time", "float", "alpha", "float input", "no int8"],
)
def test_near_misses_stay_float_and_right(text, taken):
    rng = np.random.default_rng(2)
    kind, zeros = (np.uint8, {"far": np.full(4, 3, np.uint8)}) if "far" in text else (np.int8, {})
    weights = {"w": rng.integers(-100, 101, (6, 4)).astype(kind), **zeros, "zx": np.uint8(117), **scales(sx=0.02)}
    weights |= {"sn": np.full(4, 0.01, np.float32), "sk": np.full(6, 0.01, np.float32)}
    model = net("float[N,6] x, float s, float[6,4] v", "float[N,4] y", text, **weights)
    _, found = integer_form(model)
    assert found == {"product": "int8" if taken else "float32"}
    feeds = {"x": rng.normal(size=(5, 6)).astype(np.float32), "s": np.array(0.01, np.float32)}
    feeds["v"] = rng.normal(size=(6, 4)).astype(np.float32)
    got = on_host(model, feeds)["y"]
    np.testing.assert_allclose(got, oracle.run(model, feeds)["y"], rtol=1e-5, atol=1e-5)


def test_a_float_model_is_left_alone():
    model = canonicalise(graph.load(models.get("digits").path()))
    before = [node.name for node in model.graph]
    assert to_integers(model) == {}
    assert [node.name for node in model.graph] == before


@needs_linux
@pytest.mark.usefixtures("on_integers")
def test_a_whole_quantized_model_on_the_emulated_device():
    """Digits: onnxruntime's and the llvm target's integers, bit for bit, checks of memory and races on."""
    entry = models.get("digits")
    model = optimize(graph.load(entry.path()), preset("int8"), calibration=entry.calibration())
    feeds = entry.example(3)
    form, found = integer_form(model)
    assert set(found.values()) == {"int8"}
    want = oracle.run(form, feeds)
    got = emulate(model, feeds)
    equal(got, want)
    program = Llvm(threads=1).build(model, Context())
    assert all(said.startswith("int8") for said in program.report["integer"].values())
    with assemble(program, target="llvm", before=model, after=model, report={}) as executable:
        equal(executable.run(feeds), want)
    report = Cuda(arch="sm_80", compiler="source").build(model, Context()).report
    assert report["integer"] == found
    assert report["tensor_core_share"] == 1.0
    assert report["macs"] == sum(graph.cost.macs(node) for node in graph.load(entry.path()).graph)


def test_integer_operators_are_onnxruntimes_to_the_bit():
    """MatMulInteger and ConvInteger of zero points that are known at run time only, with a border: int32 results."""
    body = """p = MatMulInteger (a, b, za, zb)
        c = ConvInteger <pads = [1,0,1,1], strides = [2,1]> (x, w, zx)
        d = MatMulInteger (a, v, za)"""
    rng = np.random.default_rng(4)
    model = net(
        "uint8[N,5,20] a, uint8 za, int8[20,9] b, uint8[1,3,7,8] x, uint8 zx",
        "int32[N,5,9] p, int32[1,8,h,v2] c, int32[N,5,6] d", body,
        w=rng.integers(-128, 128, (8, 3, 3, 3)).astype(np.int8), zb=np.int8(7),
        v=rng.integers(0, 128, (20, 6)).astype(np.uint8),
    )  # fmt: skip
    feeds = {"a": rng.integers(0, 256, (3, 5, 20)).astype(np.uint8), "za": np.array(200, np.uint8)}
    feeds |= {"x": rng.integers(0, 256, (1, 3, 7, 8)).astype(np.uint8), "zx": np.array(3, np.uint8)}
    feeds["b"] = rng.integers(-128, 128, (20, 9)).astype(np.int8)
    assert set(integer_form(model)[1].values()) == {"int8"}
    equal(on_host(model, feeds), oracle.run(model, feeds))


@needs_linux
def test_weights_quantized_ahead_and_activations_at_run_time():
    """DynamicQuantizeLinear's scale and zero point go into the sums, which are onnxruntime's."""
    body = """q, s, z = DynamicQuantizeLinear (x)
        p = MatMulInteger (q, w, z)
        f = Cast <to = 1> (p)
        m = Mul (f, s)
        y = Mul (m, sw)"""
    rng = np.random.default_rng(5)
    w = rng.integers(-127, 128, (24, 16)).astype(np.int8)
    model = net("float[N,24] x", "float[N,16] y, int32[N,16] p", body, w=w, **scales(sw=0.01))
    feeds = {"x": rng.normal(size=(5, 24)).astype(np.float32)}
    got, want = emulate(model, feeds), oracle.run(model, feeds)
    np.testing.assert_array_equal(got["p"], want["p"])
    np.testing.assert_allclose(got["y"], want["y"], rtol=1e-6)


def test_onnxruntimes_quantized_operators_differ_by_ties_only():
    """QLinearConv, which onnxruntime computes in integers: at most a step, for a value in a thousand."""
    body = "y = QLinearConv <pads = [1,1,1,1]> (x, sx, zx, w, sw, zw, sy, zy)"
    rng = np.random.default_rng(6)
    zeros = {"zx": np.uint8(110), "zy": np.uint8(120), "zw": np.zeros(16, np.int8)}
    numbers = {**scales(sx=0.02, sy=0.06), "sw": rng.uniform(0.002, 0.01, 16).astype(np.float32)}
    w = rng.integers(-127, 128, (16, 8, 3, 3)).astype(np.int8)
    model = net("uint8[N,8,14,15] x", "uint8[N,16,14,15] y", body, w=w, **numbers, **zeros)
    feeds = {"x": rng.integers(0, 256, (2, 8, 14, 15)).astype(np.uint8)}
    got, want = on_host(model, feeds)["y"].astype(int), oracle.run(model, feeds)["y"].astype(int)
    spread(want)
    assert np.abs(got - want).max() <= 1
    assert np.mean(got != want) < 1e-3


POOLS = """fx = DequantizeLinear (x, sx, zx)
    a = AveragePool <kernel_shape = [3,2], pads = [1,0,0,1], strides = [2,2]> (fx)
    qa = QuantizeLinear (a, sa, za)
    fa = DequantizeLinear (qa, sa, za)
    b = AveragePool <kernel_shape = [2,2], pads = [1,1,0,0], count_include_pad = 1> (fx)
    y = QuantizeLinear (b, sa, za)
    g = GlobalAveragePool (fa)
    z = QuantizeLinear (g, sz, zz)
    fm = MaxPool <kernel_shape = [2,2]> (fx)
    m = QuantizeLinear (fm, sx, zx)"""


def test_average_pools_are_the_reference():
    rng = np.random.default_rng(7)
    zeros = {"zx": np.uint8(110), "za": np.uint8(100), "zz": np.uint8(3)}
    outputs = "uint8[N,6,9,8] y, uint8[N,6,1,1] z, uint8[N,6,8,7] m, uint8[N,6,h,v] qa"
    model = net("uint8[N,6,9,8] x", outputs, POOLS, **scales(sx=0.02, sa=0.011, sz=0.003), **zeros)
    x = rng.integers(0, 256, (3, 6, 9, 8)).astype(np.uint8)
    got = on_host(model, {"x": x})
    m = np.float32(np.float32(0.02) / np.float32(0.011))
    qa = reference.average(x, 110, m, (100, 0, 255), (3, 2), (2, 2), (1, 0, 0, 1), False)
    z = reference.average(
        qa, 100, np.float32(np.float32(0.011) / np.float32(0.003)), (3, 0, 255), qa.shape[2:], (1, 1), (0,) * 4, False
    )
    y = reference.average(x, 110, m, (100, 0, 255), (2, 2), (1, 1), (1, 1, 0, 0), True)
    spread(qa)
    for name, value in {"qa": qa, "z": z, "y": y}.items():
        np.testing.assert_array_equal(got[name], value)
    np.testing.assert_array_equal(got["m"], oracle.run(model, {"x": x})["m"])


def test_what_is_between_layers_has_eight_bits():
    """Residuals and what is pooled as well, which are read once; not the pool's sums, and not the output."""
    entry = models.get("digits")
    model = optimize(graph.load(entry.path()), preset("int8"), calibration=entry.calibration())
    lowered, _ = lower_for_gpu(model)
    with tvm_target("sm_80"):
        main = to_loops(lowered.module, lowered.sources)[0]["main"]
    types = [binding.var.ty for block in main.body.blocks for binding in block.bindings]
    assert sum(str(kind.dtype) == "int8" for kind in types) > 8
    assert [list(kind.shape)[1:] for kind in types if str(kind.dtype) != "int8"] == [[1, 1, 48], [10]]


def test_an_image_resized_and_added_is_no_border():
    """As feature pyramids have it."""
    text = """p (float[1,4,4,4] x, float[1,4,8,8] s) => (float[1,4,8,8] y) {
        k = Constant<value_floats=[1.0, 1.0, 2.0, 2.0]>()
        r = Resize(x, , k)
        y = Add(s, r)
    }"""
    model = from_text(f'<ir_version: 10, opset_import: ["": 18]> {text}')
    rng = np.random.default_rng(0)
    feeds = {"x": rng.normal(size=(1, 4, 4, 4)).astype("f"), "s": rng.normal(size=(1, 4, 8, 8)).astype("f")}
    got = emulate(model, feeds, checks=False)["y"]
    np.testing.assert_allclose(got, oracle.run(model, feeds)["y"], rtol=1e-6, atol=1e-6)


def test_activations_are_fused_with_their_product():
    """HardSwish by its parts, with numbers of shape [1] as some exporters write them: one kernel from int8 to int8."""
    body = """fx = DequantizeLinear (x, s, zx)
        fw = DequantizeLinear (w, s)
        c = Conv <pads = [1,1,1,1]> (fx, fw)
        a = Add (c, three)
        b = Clip (a, low, high)
        d = Mul (c, b)
        e = Div (d, six)
        y = QuantizeLinear (e, s, zx)"""
    rng = np.random.default_rng(9)
    numbers = {"three": np.array([3], np.float32), "six": np.array([6], np.float32), "zx": np.uint8(90)}
    w = rng.integers(-127, 128, (16, 8, 3, 3)).astype(np.int8)
    model = net("uint8[N,8,9,9] x", "uint8[N,16,9,9] y", body, w=w, **numbers, **scales(s=0.02, low=0, high=6))
    lowered, _ = lower_for_gpu(model)
    with tvm_target("sm_80"):
        module = to_loops(lowered.module, lowered.sources)[0]
    assert sum("conv2d" in variable.name_hint for variable, _ in module.functions_items()) == 1
    (convolution,) = (v.name_hint for v, _ in module.functions_items() if "conv2d" in v.name_hint)
    assert "round" in convolution
    assert "transpose" not in convolution
    feeds = {"x": rng.integers(0, 256, (2, 8, 9, 9)).astype(np.uint8)}
    got, want = on_host(model, feeds)["y"].astype(int), oracle.run(model, feeds)["y"].astype(int)
    spread(want)
    assert np.abs(got - want).max() <= 1
