"""Operators that TVM's importer lacks or gets wrong, written in others: each gives what onnxruntime, or ONNX, gives."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt
from graphopt import oracle
from graphopt.errors import LoweringError
from graphopt.testing import from_text

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def agrees(text: str, feeds: dict, opset: int = 20, rtol: float = 1e-4, **weights) -> None:
    """The model compiles without onnxruntime, and gives what onnxruntime gives."""
    model = from_text(f'<ir_version: 9, opset_import: ["": {opset}]> {text}', **weights)
    got = graphopt.compile(model, "llvm{threads=1}", fallback=False).run(feeds)
    for name, want in oracle.run(model, feeds).items():
        assert (got[name].dtype, got[name].shape) == (want.dtype, want.shape), name
        np.testing.assert_allclose(
            got[name].astype(np.float64), want.astype(np.float64), rtol=rtol, atol=1e-5, err_msg=name
        )


def test_of_one_value_or_two():
    agrees(
        """g (float[8] x, float[8] z, float[8] p, float[8] q, int32[8] i, uint8[8] u, uint8[8] by) =>
        (float[8] a, float[8] b, bool[8] c, bool[8] d, float[8] e, int32[8] f, uint8[8] l, uint8[8] r, float[8] m) {
            a = Sinh(x)
            b = Cosh(x)
            c = IsInf<detect_negative=0>(z)
            d = IsInf<detect_positive=0>(z)
            e = Pow(p, i)
            f = Pow(i, i)
            l = BitShift<direction="LEFT">(u, by)
            r = BitShift<direction="RIGHT">(u, by)
            m = Mod<fmod=1>(x, q)
        }""",
        {
            "x": np.array([-4, -0.6, -0.49, -1e-4, 0, 1e-3, 0.5, 5], np.float32),
            "z": np.array([-np.inf, np.inf, np.nan, 0, 1, -1, np.inf, -np.inf], np.float32),
            "p": np.abs(normal(8)) + 0.1,
            "q": np.array([3, -0.25, 0.2, 1, 2, 0.3, -0.7, 5], np.float32),
            "i": np.arange(8, dtype=np.int32) % 5,
            "u": np.array([1, 2, 255, 128, 7, 9, 200, 3], np.uint8),
            "by": np.array([0, 1, 2, 3, 4, 5, 6, 7], np.uint8),
        },
    )


def test_indices_and_fill_values_known_at_run_time():
    agrees(
        """g (int64[4] i, float[2] values, float[2,3] x, float fill) => (float[4,5] a, float[5,4] b, float[4,4] c) {
            five = Constant<value_int=5>()
            pads = Constant<value_ints=[1, 0, 1, 1]>()
            a = OneHot(i, five, values)
            b = OneHot<axis=0>(i, five, values)
            c = Pad(x, pads, fill)
        }""",
        {
            "i": np.array([0, -1, 7, 4]),
            "values": np.array([2, 5], np.float32),
            "x": normal(2, 3),
            "fill": np.array(7, np.float32),
        },
    )


def test_norms_and_reductions_of_nothing():
    agrees(
        """g (float[3,4] x, float[2,0] none) => (float[3,4] a, float[3,4] b, float[2] s, float[2] m, float[2] l) {
            ax = Constant<value_ints=[1]>()
            a = LpNormalization<axis=1, p=1>(x)
            b = LpNormalization<axis=0, p=2>(x)
            s = ReduceSum<keepdims=0>(none, ax)
            m = ReduceMax<keepdims=0>(none, ax)
            l = ReduceLogSumExp<keepdims=0>(none, ax)
        }""",
        {"x": normal(3, 4) * np.array([[1], [0], [1]], np.float32), "none": np.zeros((2, 0), np.float32)},
    )


def test_layer_norm_with_its_mean_and_deviation():
    agrees(
        """g (float[2,3,4] x, float[3,4] s) => (float[2,3,4] y, float[2,1,1] mean, float[2,1,1] inverse) {
            y, mean, inverse = LayerNormalization<axis=1>(x, s)
        }""",
        {"x": normal(2, 3, 4), "s": normal(3, 4)},
    )


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("kind", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_recurrent_layers_whose_weights_are_inputs(kind: str, gates: int, direction: str):
    d, t, b, i, h = 1 + (direction == "bidirectional"), 4, 3, 2, 5
    cell = f", float[{d},{b},{h}] c0" if kind == "LSTM" else ""
    outputs = f", float[{d},{b},{h}] c" if kind == "LSTM" else ""
    extra = ", linear_before_reset=1" if kind == "GRU" and direction == "reverse" else ""
    agrees(
        f"""g (float[{t},{b},{i}] x, float[{d},{gates * h},{i}] w, float[{d},{gates * h},{h}] r,
        float[{d},{2 * gates * h}] bias, int32[{b}] lengths, float[{d},{b},{h}] h0{cell}) =>
        (float[{t},{d},{b},{h}] y, float[{d},{b},{h}] last{outputs}) {{
            y, last{", c" if cell else ""} = {kind}<hidden_size={h}, direction="{direction}"{extra}>(
                x, w, r, bias, lengths, h0{", c0" if cell else ""})
        }}""",
        {
            "x": normal(t, b, i),
            "w": normal(d, gates * h, i),
            "r": normal(d, gates * h, h),
            "bias": normal(d, 2 * gates * h),
            "lengths": np.array([4, 2, 1], np.int32),
            "h0": normal(d, b, h),
            **({"c0": normal(d, b, h)} if cell else {}),
        },
    )


def test_a_scan_of_known_length_backwards_too():
    agrees(
        """g (float[2] s, float[3,2] x, float[2,3] z) => (float[2] last, float[2,3] y) {
            last, y = Scan<num_scan_inputs=2, scan_input_axes=[0, 1], scan_input_directions=[0, 1],
                scan_output_axes=[1], scan_output_directions=[1],
                body=body (float[2] a, float[2] b, float[2] c) => (float[2] n, float[2] o) {
                    p = Mul(a, c)
                    n = Add(p, b)
                    o = Sub(n, c)
                }>(s, x, z)
        }""",
        {"s": normal(2), "x": normal(3, 2), "z": normal(2, 3)},
    )


@pytest.mark.parametrize("attributes", ["", "<onesided=1>", "<inverse=1>"])
def test_fourier_transforms(attributes: str):
    parts, bins = (1, 4) if "onesided" in attributes else (2, 6)
    agrees(
        f"""g (float[2,6,{parts}] x) => (float[2,{bins},2] y) {{ y = DFT{attributes}(x) }}""",
        {"x": normal(2, 6, parts)},
    )


RESIZES = {
    "antialias": ("[1, 1, 4, 5]", 'mode="linear", antialias=1'),
    "cubic-antialias": ("[1, 1, 3, 4]", 'mode="cubic", antialias=1'),
    "exclude-outside": ("[1, 1, 11, 13]", 'mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5'),
    "symmetric": ("[1, 1, 4, 9]", 'mode="linear", coordinate_transformation_mode="half_pixel_symmetric"'),
}


@pytest.mark.parametrize("case", RESIZES)
def test_resizes_that_tvm_gets_wrong(case: str):
    into, attributes = RESIZES[case]
    h, w = (int(size) for size in into.strip("[]").split(",")[2:])
    agrees(
        f"""g (float[1,1,7,8] x) => (float[1,1,{h},{w}] y) {{
            sizes = Constant<value_ints={into}>()
            y = Resize<{attributes}>(x, , , sizes)
        }}""",
        {"x": normal(1, 1, 7, 8)},
    )


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_a_resize_that_keeps_corners_goes_by_whole_sizes(mode: str):
    """As onnxruntime, the oracle, does; ONNX's reference takes the product: 2.4 of 4 * 0.6."""
    agrees(
        f"""g (float[1,1,2,4] x) => (float[1,1,1,2] y) {{
            scales = Constant<value_floats=[1.0, 1.0, 0.6, 0.6]>()
            y = Resize<mode="{mode}", coordinate_transformation_mode="align_corners">(x, , scales)
        }}""",
        {"x": np.arange(1, 9, dtype=np.float32).reshape(1, 1, 2, 4)},
    )


def test_running_sums_and_reversed_sequences():
    agrees(
        """g (float[3,4] x, int64[4] lengths) => (float[3,4] p, float[3,4] q, float[3,4] r) {
            axis = Constant<value_int=1>()
            p = CumSum(x, axis)
            q = CumSum<exclusive=1, reverse=1>(x, axis)
            r = ReverseSequence(x, lengths)
        }""",
        {"x": normal(3, 4), "lengths": np.array([1, 3, 2, 0])},
    )


def test_bits_and_columns():
    """BitCast (opset 26 and no onnxruntime to ask), and Col2Im as the inverse of cutting an image into its parts."""
    text = """<ir_version: 10, opset_import: ["": 26]> g (float[3] x, float[1,4,4] columns) =>
    (int32[3] bits, float[1,1,4,4] image) {
        bits = BitCast<to=6>(x)
        size = Constant<value_ints=[4, 4]>()
        block = Constant<value_ints=[2, 2]>()
        image = Col2Im<strides=[2, 2]>(columns, size, block)
    }"""
    x, image = normal(3), np.arange(16, dtype=np.float32).reshape(4, 4)
    columns = image.reshape(2, 2, 2, 2).transpose(1, 3, 0, 2).reshape(1, 4, 4)
    got = graphopt.compile(from_text(text), "llvm{threads=1}", fallback=False).run({"x": x, "columns": columns})
    np.testing.assert_array_equal(got["bits"], x.view(np.int32))
    np.testing.assert_array_equal(got["image"][0, 0], image)


FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")


@pytest.fixture(scope="module")
def casts():
    """Programs that cast float32 to each float8 type and back, saturating and not."""
    made = {}
    for name in FLOAT8:
        dtype = ir.DataType.from_numpy(np.dtype(getattr(ml_dtypes, name)))
        text = f"""<ir_version: 9, opset_import: ["": 19]> g (float[K] x) => ({dtype.name.lower()}[K] s, float[K] f,
            {dtype.name.lower()}[K] n) {{
            s = Cast<to={int(dtype)}>(x)
            f = Cast<to=1>(s)
            n = Cast<to={int(dtype)}, saturate=0>(x)
        }}"""
        model = from_text(text)
        made[name] = model, graphopt.compile(model, "llvm{threads=1}", fallback=False)
    return made


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=64), st.sampled_from(FLOAT8))
def test_float8_casts_are_onnxruntimes(casts, numbers: list[float], name: str):
    model, program = casts[name]
    x = np.array(numbers, np.float32)
    got, want = program.run({"x": x}), oracle.run(model, {"x": x})
    for key in ("s", "n"):
        same = got[key].view(np.uint8) == want[key].view(np.uint8)
        nan = np.isnan(got[key].astype(np.float32)) & np.isnan(want[key].astype(np.float32))
        assert np.all(same | nan), (x[~(same | nan)], got[key], want[key])
    np.testing.assert_array_equal(got["f"], want["s"].astype(np.float32))


@pytest.mark.parametrize("name", FLOAT8)
def test_float8_casts_around_every_code_and_between(casts, name: str):
    model, program = casts[name]
    codes = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, name)).astype(np.float32)
    finite = np.sort(codes[np.isfinite(codes)])
    middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    x = np.concatenate([codes, middles, np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, -np.inf)])
    x = x.astype(np.float32)
    got, want = program.run({"x": x})["s"], oracle.run(model, {"x": x})["s"]
    number = ~np.isnan(x)
    np.testing.assert_array_equal(got.view(np.uint8)[number], want.view(np.uint8)[number])
    assert np.all(np.isnan(got[~number].astype(np.float32)))


def test_four_bit_integers_go_in_and_out():
    model = from_text("""<ir_version: 10, opset_import: ["": 21]> g (int4[K] x, float[K] f) =>
        (float[K] a, int4[K] b, uint4[K] c) {
        a = Cast<to=1>(x)
        b = Cast<to=22>(f)
        c = Cast<to=21>(f)
    }""")
    program = graphopt.compile(model, "llvm{threads=1}", fallback=False)
    x = np.arange(-8, 8).astype(ml_dtypes.int4)
    f = np.arange(16, dtype=np.float32) - 4
    got, want = program.run({"x": x, "f": f}), oracle.run(model, {"x": x, "f": f})
    np.testing.assert_array_equal(got["a"], np.arange(-8, 8))
    assert (got["b"].dtype, got["c"].dtype) == (np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4))
    inside = (f >= 0) & (f < 8)
    for name in ("b", "c"):
        np.testing.assert_array_equal(got[name].astype(int)[inside], want[name].astype(int)[inside])


def test_sums_of_halves_are_taken_in_float32():
    text = '<ir_version: 9, opset_import: ["": 19]> g (float16[1,4096] x, float16[4096,1] w) => (float16[1,1] y) '
    model = from_text(text + "{ y = MatMul(x, w) }")
    x, w = np.ones((1, 4096), np.float16), np.full((4096, 1), 0.1, np.float16)
    got = graphopt.compile(model, "llvm{threads=1}", fallback=False).run({"x": x, "w": w})["y"]
    np.testing.assert_allclose(got, [[409.5]], rtol=1e-3)


def test_values_given_when_compiling_are_no_inputs_any_more():
    text = '<ir_version: 9, opset_import: ["": 19]> g (float[2,3] x, int64[1] axes) => (float[A,B] y) '
    model = from_text(text + "{ y = ReduceSum(x, axes) }")
    with pytest.raises(LoweringError, match="constant axes"):
        graphopt.compile(model, fallback=False)
    program = graphopt.compile(model, fallback=False, values={"axes": [1]})
    assert [spec.name for spec in program.inputs] == ["x"]
    np.testing.assert_allclose(program.run({"x": np.ones((2, 3), np.float32)})["y"], [[3], [3]])
