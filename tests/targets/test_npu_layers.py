"""The stream that runs on the byte scratchpad computes the layer, bit for bit."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.targets.npu.codegen import compile_layer
from graphopt.targets.npu.layer import Geometry, Layer, Requantise
from graphopt.targets.npu.machine import Machine, load_machine
from graphopt.targets.npu.numerics import pack_parameters, requantise
from graphopt.targets.npu.simulator import execute

EDGE, GEMMINI = load_machine("edge"), load_machine("gemmini-16")
# So small that layers of a few hundred bytes are cut along every axis.
TINY = EDGE.model_copy(update={"name": "tiny", "scratchpad_bytes": 1536, "accumulator_bytes": 256})


def make_layer(
    geometry: Geometry, seed: int, *, signed: bool = True, input_zero: int = 0, weight_zero: int = 0
) -> Layer:
    rng = np.random.default_rng(seed)
    channels = geometry.groups * geometry.oc
    terms = geometry.cin * geometry.kh * geometry.kw
    low, high = (-128, 127) if signed else (0, 255)
    return Layer(
        name="layer",
        op="Conv",
        geometry=geometry,
        weights=rng.integers(-128, 128, (channels, terms), np.int8),
        bias=rng.integers(-5000, 5000, channels, np.int32),
        input_signed=signed,
        input_zero=input_zero,
        weight_zero=weight_zero,
        requantise=Requantise(
            multiplier=(rng.uniform(0.5, 2, channels) / (60 * terms**0.5)).astype(np.float32),
            signed=signed,
            zero=int(rng.integers(low, high)),
            low=low + 3,
            high=high - 5,
            raw=geometry.output_size == 4,
        ),
    )


def make_input(layer: Layer, seed: int) -> np.ndarray:
    g = layer.geometry
    low, high = (-128, 128) if layer.input_signed else (0, 256)
    dtype = np.int8 if layer.input_signed else np.uint8
    shape = (g.iw, g.cin) if g.channels_last else (g.batch, g.groups * g.cin, g.ih, g.iw)
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def reference(layer: Layer, x: np.ndarray, mode: str) -> np.ndarray:
    """The layer by nested loops over the definition, in int64, one output position at a time."""
    g = layer.geometry
    if g.channels_last:
        x = x.T[None, :, None, :]
    w = layer.weights.astype(np.int64).reshape(g.groups * g.oc, g.cin, g.kh, g.kw) - layer.weight_zero
    out = np.zeros((g.batch, g.groups * g.oc, g.oh, g.ow), np.int64)
    for y in range(g.oh):
        for z in range(g.ow):
            for i in range(g.kh):
                for j in range(g.kw):
                    row = y * g.stride[0] + i * g.dilation[0] - g.pad[0]
                    column = z * g.stride[1] + j * g.dilation[1] - g.pad[1]
                    if not (0 <= row < g.ih and 0 <= column < g.iw):
                        continue
                    pixel = x[:, :, row, column].astype(np.int64) - layer.input_zero
                    for group in range(g.groups):
                        inputs, outputs = (
                            slice(group * g.cin, (group + 1) * g.cin),
                            slice(group * g.oc, (group + 1) * g.oc),
                        )
                        out[:, outputs, y, z] += pixel[:, inputs] @ w[outputs, :, i, j].T
    total = (out + layer.bias[:, None, None]).astype(np.int32)
    out_of = layer.requantise
    if out_of.raw:
        return total[0, :, 0, :].T if g.channels_last else total
    scale = out_of.multiplier[:, None, None]
    if mode == "float32":
        rounded = np.rint(total.astype(np.float32) * scale).astype(np.int64)
    else:
        rounded = np.vectorize(_half_up)(total, np.broadcast_to(scale, total.shape))
    y = np.clip(rounded + out_of.zero, out_of.low, out_of.high).astype(output_type(layer))
    return y[0, :, 0, :].T if g.channels_last else y


def _half_up(value: int, scale: float) -> int:
    """value * scale rounded to nearest, halves up; a float32 scale is a 24-bit integer times a power of two: exact."""
    return (2 * Fraction(int(value)) * Fraction(float(scale)) + 1) // 2


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    groups = draw(st.sampled_from([1, 1, 2, 3, 7]))
    cin, oc = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    if groups > 1 and draw(st.booleans()):
        cin = oc = 1
    kh, kw = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    pads = [draw(st.integers(0, 3)) for _ in range(4)]
    ih, iw = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    oh = (ih + pads[0] + pads[2] - (kh - 1) * dilation[0] - 1) // stride[0] + 1
    ow = (iw + pads[1] + pads[3] - (kw - 1) * dilation[1] - 1) // stride[1] + 1
    if oh < 1 or ow < 1:
        kh = kw = 1
        oh, ow = (ih - 1) // stride[0] + 1, (iw - 1) // stride[1] + 1
        pads = [0, 0, 0, 0]
    batch, size = draw(st.integers(1, 2)), draw(st.sampled_from([1, 1, 4]))
    return Geometry(
        batch, groups, cin, oc, ih, iw, oh, ow, kh, kw, stride, dilation, (pads[0], pads[1]), output_size=size
    )


@st.composite
def products(draw: st.DrawFn) -> Geometry:
    m, k, n = draw(st.integers(1, 40)), draw(st.integers(1, 90)), draw(st.integers(1, 40))
    return Geometry(1, 1, k, n, 1, m, 1, m, channels_last=True)


def output_type(layer: Layer) -> type[np.generic]:
    if layer.requantise.raw:
        return np.int32
    return np.int8 if layer.requantise.signed else np.uint8


def run(layer: Layer, machine: Machine, x: np.ndarray) -> np.ndarray:
    stream, constants = compile_layer(layer, machine)
    (out,) = execute(stream, machine, constants, [x])
    g = layer.geometry
    shape = (g.ow, g.oc) if g.channels_last else (g.batch, g.groups * g.oc, g.oh, g.ow)
    return out.view(output_type(layer)).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(st.one_of(geometries(), products()), st.integers(0, 9999), st.booleans(), st.sampled_from([EDGE, GEMMINI]))
def test_any_layer_equals_the_definition(geometry: Geometry, seed: int, signed: bool, machine: Machine) -> None:
    zero = int(np.random.default_rng(seed).integers(-128, 128)) + (0 if signed else 128)
    layer = make_layer(geometry, seed, signed=signed, input_zero=zero, weight_zero=seed % 5 - 2)
    x = make_input(layer, seed + 1)
    np.testing.assert_array_equal(run(layer, machine, x), reference(layer, x, machine.requantise))


@settings(max_examples=30, deadline=None)
@given(st.one_of(geometries(), products()), st.integers(0, 9999))
def test_tiles_do_not_change_the_result(geometry: Geometry, seed: int) -> None:
    layer = make_layer(geometry, seed, input_zero=3)
    x = make_input(layer, seed + 1)
    np.testing.assert_array_equal(run(layer, TINY, x), run(layer, EDGE, x))


@pytest.mark.parametrize("k", [1023, 1024, 1025, 4099])
def test_extreme_values_stay_exact_over_long_sums(k: int) -> None:
    geometry = Geometry(1, 1, k, 2, 1, 3, 1, 3, channels_last=True)
    layer = make_layer(geometry, 0, input_zero=127)
    layer.weights[:] = -128
    x = np.full((3, k), -128, np.int8)
    np.testing.assert_array_equal(run(layer, GEMMINI, x), reference(layer, x, "float32"))


@pytest.mark.parametrize("mode", ["float32", "fixed31"])
def test_halves_and_saturation(mode: str) -> None:
    """acc * 0.5 for acc = -3..3: halves to even, or up; and far beyond the range."""
    machine = GEMMINI.model_copy(update={"requantise": mode})
    geometry = Geometry(1, 1, 1, 1, 1, 9, 1, 9, channels_last=True)
    layer = make_layer(geometry, 0)
    layer.weights[:], layer.bias[:] = 1, 0
    unit = np.full(1, 0.5, np.float32)
    layer = dataclasses.replace(layer, requantise=Requantise(unit, signed=True, zero=0, low=-128, high=127))
    x = np.array([-3, -2, -1, 0, 1, 2, 3, 127, -128], np.int8)[:, None]
    expected = {"float32": [-2, -1, 0, 0, 0, 1, 2, 64, -64], "fixed31": [-1, -1, 0, 0, 1, 1, 2, 64, -64]}[mode]
    assert run(layer, machine, x).ravel().tolist() == expected
    unit[:] = 1e4
    assert run(layer, machine, x).ravel().tolist() == [-128, -128, -128, 0, 127, 127, 127, 127, -128]


@given(st.integers(0, 9999), st.floats(1e-9, 0.9), st.integers(-128, 127))
def test_the_two_roundings_differ_by_one_at_most(seed: int, multiplier: float, zero: int) -> None:
    rng = np.random.default_rng(seed)
    scale = np.full(4, multiplier, np.float32)
    acc = rng.integers(-(2**31), 2**31, (4, 50)) // 10 ** rng.integers(0, 9, (4, 50))
    values = [
        requantise(acc.astype(np.int32), pack_parameters(np.zeros(4, np.int32), scale, mode), mode, zero, -128, 127)
        for mode in ("float32", "fixed31")
    ]
    assert np.abs(values[0] - values[1]).max() <= 1


@pytest.mark.parametrize("multiplier", [0.0, -0.5, np.inf, np.nan, 2.0**30])
def test_a_multiplier_no_shift_can_express_is_refused(multiplier: float) -> None:
    with pytest.raises(ValueError, match="multiplier"):
        pack_parameters(np.zeros(1, np.int32), np.array([multiplier], np.float32), "fixed31")
