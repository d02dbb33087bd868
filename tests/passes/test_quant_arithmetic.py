"""The arithmetic of quantization against exact fractions and against onnxruntime; the observers' ranges."""

from fractions import Fraction
from typing import get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.errors import UsageError
from graphopt.passes.quant.arithmetic import (
    dequantize,
    quantize,
    quantize_bias,
    quantize_weight,
    scale_and_zero_point,
)
from graphopt.passes.quant.observers import Statistics, propose_range
from graphopt.passes.quant.spec import Observer, QuantSpec

SPECS = [
    QuantSpec("uint8", False),
    QuantSpec("int8", False),
    QuantSpec("int8", True),
    QuantSpec("int8", True, 7),
    QuantSpec("int8", True, 4),
    QuantSpec("int8", True, power_of_two=True),
    QuantSpec("uint8", False, power_of_two=True),
]
specs = st.sampled_from(SPECS)
reals = st.floats(width=32, allow_nan=False, allow_infinity=False)
arrays = hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=20), elements=reals)


def plain(x, scale, zero, spec):
    """One number: the quotient in float32 as the standard computes it, then exactly, ties to even."""
    with np.errstate(over="ignore"):
        quotient = np.float32(x) / np.float32(scale)
    steps = round(Fraction(float(quotient))) if np.isfinite(quotient) else int(np.sign(quotient)) * 10**40
    return min(max(steps + int(zero), spec.lowest), spec.highest)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a loaded machine is no failure
@given(arrays, st.floats(2**-100, 2.0**100, width=32), st.integers(-128, 255), specs)
def test_quantize_is_the_plain_formula(x, scale, zero, spec):
    zero = np.array(min(max(zero, spec.lowest), spec.highest), spec.numpy)
    got = quantize(x, np.float32(scale), zero, spec)
    want = np.array([plain(v, scale, zero, spec) for v in x.ravel()]).reshape(x.shape)
    np.testing.assert_array_equal(got, want)
    assert got.dtype == spec.numpy


def ort_round_trip(x, scale, zero, axis):
    """x quantized and dequantized by onnxruntime."""
    text = '<ir_version: 8, opset_import: ["": 13]> g (float[a,b] x) => (uint8[a,b] q, float[a,b] d) { }'
    model = onnx.parser.parse_model(text)
    kind = onnx.helper.np_dtype_to_tensor_dtype(zero.dtype)
    model.graph.output[0].type.tensor_type.elem_type = kind
    model.graph.initializer.extend([onnx.numpy_helper.from_array(scale, "s"), onnx.numpy_helper.from_array(zero, "z")])
    model.graph.node.extend(
        onnx.helper.make_node(op, [source, "s", "z"], [out], axis=axis)
        for op, source, out in (("QuantizeLinear", "x", "q"), ("DequantizeLinear", "q", "d"))
    )
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(np.float32, (3, 5), elements=st.floats(-100, 100, width=32)),
    st.sampled_from([s for s in SPECS if s.bits is None and not s.symmetric]),
    st.sampled_from([0, 1]),
)
def test_bit_for_bit_as_onnxruntime(x, spec, axis):
    low, high = x.min(axis=1 - axis), x.max(axis=1 - axis)
    scale, zero = scale_and_zero_point(low, high, spec)
    q, d = ort_round_trip(x, scale, zero, axis)
    np.testing.assert_array_equal(quantize(x, scale, zero, spec, axis), q)
    np.testing.assert_array_equal(dequantize(q, scale, zero, axis), d)


def test_ties_go_to_even():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5], np.float32)
    got = quantize(x, np.float32(1), np.int8(0), QuantSpec("int8", False))
    np.testing.assert_array_equal(got, [0, 2, 2, 0, -2, 126, 127])
    _, d = ort_round_trip(x[None], np.float32([1]), np.zeros(1, np.int8), 0)
    np.testing.assert_array_equal(d[0], got)


@given(reals, reals, specs)
def test_a_range_is_covered_and_zero_is_exact(a, b, spec):
    low, high = min(a, b), max(a, b)
    scale, zero = scale_and_zero_point(low, high, spec)
    assert scale.dtype == np.float32
    assert scale > 0
    assert spec.lowest <= zero <= spec.highest
    ends = np.array([low, 0.0, high], np.float32)
    back = dequantize(quantize(ends, scale, zero, spec), scale, zero)
    assert back[1] == 0
    assume(float(scale) * 255 < np.finfo(np.float32).max)
    if scale != 1:  # 1 stands for an empty range as well
        assert np.all(np.abs(back.astype(float) - ends) <= 1.001 * float(scale))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-42])
def test_an_empty_range_has_scale_one(spec, value):
    scale, zero = scale_and_zero_point(min(value, 0), max(value, 0), spec)
    assert scale == 1
    assert dequantize(quantize(np.float32([value]), scale, zero, spec), scale, zero) == 0


def test_powers_of_two():
    scale, _ = scale_and_zero_point(-1.0, np.array([0.3, 1.0, 100.0]), QuantSpec("int8", True, power_of_two=True))
    np.testing.assert_array_equal(scale, [2.0**-6, 2.0**-6, 1.0])  # 1/127 and 100/127, rounded up


@given(hnp.arrays(np.float32, (4, 3, 5), elements=st.floats(-9, 9, width=32)), st.sampled_from([None, 0, 1, 2, -1]))
def test_weights_per_channel(weight, axis):
    q, scale, zero = quantize_weight(weight, QuantSpec("int8", True, axis=axis, observer="minmax"))
    assert scale.shape == zero.shape == (() if axis is None else (weight.shape[axis],))
    assert not zero.any()
    assert q.min() >= -127  # never -128
    error = np.abs(np.moveaxis(dequantize(q, scale, zero, axis) - weight, axis or 0, -1))
    assert np.all(error <= 0.5001 * scale)


def test_seven_bit_weights_cannot_saturate_int16_sums():
    q, _, _ = quantize_weight(np.float32([[-3, 3, 1]]), QuantSpec("int8", True, 7, axis=0))
    assert 2 * 255 * int(np.abs(q).max()) < 2**15


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.floats(1e-8, 1))
def test_bias_is_int32_or_nothing(bias, scale):
    bias = np.array(bias, np.float32)
    scale = np.full(len(bias), scale, np.float32)
    q = quantize_bias(bias, scale)
    steps = [round(Fraction(float(b)) / Fraction(float(s))) for b, s in zip(bias, scale, strict=True)]
    if q is None:
        assert max(map(abs, steps)) >= 2**31 - 1
    else:
        assert np.all(np.abs(q - np.array(steps)) <= np.abs(np.array(steps)) * 1e-15 + (np.abs(steps) > 2**30))


def test_specs_validate_themselves():
    with pytest.raises(UsageError, match="symmetric"):
        QuantSpec("uint8", True)
    with pytest.raises(UsageError, match="bits"):
        QuantSpec("int8", True, 9)
    for wrong in ({"dtype": "int5"}, {"dtype": "uint4"}, {"dtype": "float8e5m2", "symmetric": False}, {"block": 32}):
        with pytest.raises(UsageError):
            QuantSpec(**{"dtype": "int8", "symmetric": True} | wrong)
    with pytest.raises(UsageError, match="2 or more"):
        QuantSpec("int4", True, axis=0, block=1)
    assert [QuantSpec("int4", True, axis=a, block=b).granularity for a, b in ((None, None), (0, None), (0, 16))] == [
        "tensor",
        "channel",
        "block",
    ]
    assert [(s.lowest, s.highest) for s in SPECS[:5]] == [(0, 255), (-128, 127), (-127, 127), (-63, 63), (-7, 7)]


def observing(observer):
    return QuantSpec("uint8", False, observer=observer)


def test_the_mse_observer_clips_weights_where_that_is_closer():
    weight = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    errors = {}
    for observer in ("minmax", "mse"):
        spec = QuantSpec("int4", True, axis=1, block=32, observer=observer)
        q, scale, zero = quantize_weight(weight, spec)
        errors[observer] = np.square(dequantize(q, scale, zero, 1, 32) - weight).reshape(8, 2, 32).sum(axis=2)
    assert np.all(errors["mse"] <= errors["minmax"])
    assert errors["mse"].sum() < 0.95 * errors["minmax"].sum()


BLOCKS = [
    QuantSpec(dtype, dtype == "int4", axis=axis, block=3, observer="minmax")
    for dtype in ("int4", "uint4")
    for axis in (0, 1, -1)
]


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=11), elements=st.floats(-9, 9, width=32))
)
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("spec", BLOCKS, ids=str)
def test_weights_per_block(spec, weight):
    """Odd sizes too: the last block along the axis is shorter; every block has its own scale, none the neighbour's."""
    q, scale, zero = quantize_weight(weight, spec)
    size = weight.shape[spec.axis]
    assert scale.shape[spec.axis] == zero.shape[spec.axis] == -(-size // 3)
    error = np.abs(dequantize(q, scale, zero, spec.axis, spec.block) - weight)
    for k, start in enumerate(range(0, size, 3)):
        part = np.moveaxis(error, spec.axis, 0)[start : start + 3]
        alone, _, _ = quantize_weight(
            np.moveaxis(np.moveaxis(weight, spec.axis, 0)[start : start + 3], 0, spec.axis), spec
        )
        np.testing.assert_array_equal(np.moveaxis(q, spec.axis, 0)[start : start + 3], np.moveaxis(alone, spec.axis, 0))
        assert np.all(part <= 1.001 * np.moveaxis(scale, spec.axis, 0)[k])


@pytest.mark.parametrize("dtype", ["float8e4m3fn", "float8e5m2"])
def test_float8_saturates_and_keeps_its_own_numbers(dtype):
    spec = QuantSpec(dtype, True)
    own = np.arange(256, dtype=np.uint8).view(spec.numpy).astype(np.float32)
    own = own[np.isfinite(own)]
    one, zero = np.float32(1), np.zeros((), spec.numpy)
    np.testing.assert_array_equal(dequantize(quantize(own, one, zero, spec), one, zero), own)
    beyond = np.float32([-1e9, 1e9, 3e38])
    top = np.abs(own).max()
    np.testing.assert_array_equal(dequantize(quantize(beyond, one, zero, spec), one, zero), [-top, top, top])


def test_sixteen_bits():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    for dtype in ("int16", "uint16"):
        spec = QuantSpec(dtype, dtype == "int16")
        scale, zero = scale_and_zero_point(x.min(), x.max(), spec)
        assert np.abs(dequantize(quantize(x, scale, zero, spec), scale, zero) - x).max() <= 0.51 * scale


def seen(*parts):
    statistics = Statistics()
    for part in parts:
        statistics.update(np.asarray(part, np.float32))
    return statistics


@given(st.lists(hnp.arrays(np.float32, st.integers(0, 9), elements=st.floats(-1e9, 1e9, width=32)), max_size=6))
def test_statistics_do_not_depend_on_the_batches(parts):
    a, b = seen(*parts), seen(np.concatenate([*parts[::-1], np.zeros(0, np.float32)]))
    assert (a.low, a.high) == (b.low, b.high)
    nonzero = np.concatenate([*parts, np.zeros(0, np.float32)])
    assert a.counts.sum() == nonzero.size
    if nonzero.any():
        assert a.width == b.width
        np.testing.assert_array_equal(a.counts, b.counts)


def test_statistics_take_constant_memory_and_count_right():
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    statistics = seen(*np.array_split(values, 7))
    edges = (np.arange(len(statistics.counts) + 1) - len(statistics.counts) // 2) * statistics.width
    np.testing.assert_array_equal(statistics.counts, np.histogram(values, edges)[0])


def test_percentile_drops_outliers_and_minmax_keeps_them():
    values = np.concatenate([np.random.default_rng(0).uniform(-1, 3, 100_000), [1000.0]])
    statistics = seen(values)
    assert propose_range(statistics, observing("minmax")) == (values.min().astype(np.float32), 1000)
    low, high = propose_range(statistics, observing("percentile"))
    assert -1.1 < low < -0.9
    assert 2.9 < high < 3.2


def test_entropy_clips_a_thin_tail_and_keeps_the_bulk():
    bulk = np.random.default_rng(0).standard_normal(200_000)
    low, high = propose_range(seen(np.concatenate([bulk, [-30.0, 30.0]])), observing("entropy"))
    assert -10 < low < -3
    assert 3 < high < 10


def test_moving_average_forgets():
    statistics = seen([0.0, 100.0], *[[0.0, 1.0]] * 60)
    _, high = propose_range(statistics, observing("moving-average"))
    assert 1 < high < 1.3
    assert propose_range(seen([-1.0, 3.0]), observing("moving-average")) == (-1, 3)


@pytest.mark.parametrize("spec", SPECS[:3], ids=str)
def test_mse_finds_the_best_share_of_the_range(spec):
    values = np.random.default_rng(0).standard_t(3, size=50_000).astype(np.float32)

    def error(low, high):
        scale, zero = scale_and_zero_point(low, high, spec)
        return np.mean((dequantize(quantize(values, scale, zero, spec), scale, zero) - values) ** 2)

    found = error(*propose_range(seen(values), spec))
    searched = min(error(share * values.min(), share * values.max()) for share in np.linspace(0.1, 1, 200))
    assert found < 1.01 * searched
    assert found < 0.95 * error(values.min(), values.max())


@pytest.mark.parametrize("observer", get_args(Observer))
@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-2.0], [0.0, 1e-30]])
def test_degenerate_tensors_have_finite_ranges(observer, values):
    low, high = propose_range(seen(values), observing(observer))
    assert np.isfinite([low, high]).all()
    assert low <= high


def test_non_finite_values_are_noticed():
    assert not seen([1.0], [np.nan], [2.0]).finite
    assert not seen([np.inf], [2.0]).finite
    assert not seen().seen
    assert seen([np.nan]).seen
