"""Coded weights: the code is lossless, as short as it says, and runs in streams like plain weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import ArtifactError, LoweringError
from graphopt.targets.npu import simulator
from graphopt.targets.npu.check import check
from graphopt.targets.npu.codegen import compile_layer
from graphopt.targets.npu.cycles import unpack_cycles
from graphopt.targets.npu.isa import Unpack
from graphopt.targets.npu.layer import Geometry, Layer, Requantise
from graphopt.targets.npu.machine import Decoder, load_machine
from graphopt.targets.npu.stream import Stream
from graphopt.targets.npu.timing import time_stream
from graphopt.targets.npu.weights import decode, encode, least_bytes

GEMMINI = load_machine("gemmini-16").model_copy(update={"scratchpad_bytes": 4096, "accumulator_bytes": 1024})
DECODES = GEMMINI.model_copy(update={"decoder": Decoder(weights_per_cycle=8)})


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 700), st.floats(0, 60), st.integers(0, 255))
def test_what_is_coded_comes_back(seed: int, count: int, spread: float, centre: int) -> None:
    values = (np.rint(np.random.default_rng(seed).normal(0, spread, count)).astype(np.int64) + centre).astype(np.uint8)
    code = encode(values, centre)
    if code is None:
        return
    np.testing.assert_array_equal(decode(code, count), values)
    assert least_bytes(values, centre) <= code.size < count


@given(st.binary(min_size=3, max_size=300), st.integers(0, 255))
def test_any_bytes_come_back_where_they_shrink(data: bytes, centre: int) -> None:
    values = np.frombuffer(data, np.uint8)
    code = encode(values, centre)
    if code is not None:
        np.testing.assert_array_equal(decode(code, values.size), values)


@given(st.binary(min_size=2, max_size=80), st.integers(1, 200))
def test_what_is_no_code_is_refused_or_some_weights(data: bytes, count: int) -> None:
    try:
        found = decode(np.frombuffer(data, np.uint8), count)
    except ValueError:
        return
    assert found.shape == (count,)


def test_a_block_by_hand() -> None:
    """Differences 0, 1, -1, 2 are u = 0, 1, 2, 3: with k = 0 in unary 1, 01, 001, 0001."""
    values = np.tile(np.array([0, 1, 255, 0, 0, 0], np.uint8), 10)
    code = encode(values, 0)
    assert code is not None
    assert code[:2].tolist() == [0, 0]
    assert np.unpackbits(code[2:], bitorder="little")[:9].tolist() == [1, 0, 1, 0, 0, 1, 1, 1, 1]


def test_the_length_is_near_the_entropy() -> None:
    values = np.rint(np.random.default_rng(0).normal(0, 16, 100_000)).astype(np.int8).view(np.uint8)
    share = np.bincount(values) / values.size
    entropy = -(share[share > 0] * np.log2(share[share > 0])).sum()
    code = encode(values, 0)
    assert code is not None
    assert entropy < 8 * code.size / values.size < entropy + 0.2


def _layer(weight_zero: int) -> tuple[Layer, np.ndarray]:
    rng = np.random.default_rng(0)
    geometry = Geometry(1, 1, 15, 18, 11, 11, 6, 6, 3, 3, stride=(2, 2), pad=(1, 1))
    dtype = np.uint8 if weight_zero else np.int8
    layer = Layer(
        name="conv",
        op="Conv",
        geometry=geometry,
        weights=(rng.normal(0, 8, (18, 135)) + weight_zero).astype(dtype),
        bias=rng.integers(-999, 999, 18).astype(np.int32),
        input_signed=True,
        input_zero=5,
        weight_zero=weight_zero,
        requantise=Requantise(np.full(18, 0.003, np.float32), signed=True, zero=-7, low=-128, high=127),
    )
    return layer, rng.integers(0, 256, geometry.input_bytes).astype(np.uint8)


@pytest.mark.parametrize("weight_zero", [0, 131])
def test_a_decoder_changes_traffic_and_no_result(weight_zero: int) -> None:
    layer, x = _layer(weight_zero)
    results, read = [], []
    for machine in (GEMMINI, DECODES):
        stream, constants = compile_layer(layer, machine)
        results.append(simulator.execute(stream, machine, constants, [x])[0].tobytes())
        timing = time_stream(stream, machine)
        read.append(timing.read["constants"])
        assert any(isinstance(word, Unpack) for word in stream.instructions) == (machine is DECODES)
    assert results[0] == results[1]
    assert read[1] < 0.8 * read[0]


def test_a_slow_decoder_holds_the_port() -> None:
    edge = load_machine("edge")  # a byte per cycle in bursts of 128, 8 weights per cycle
    assert unpack_cycles(edge, 130, 200) == 256
    assert unpack_cycles(edge, 130, 2400) == 300


def test_mutated_unpack_words_are_caught_or_change_the_result() -> None:
    layer, x = _layer(0)
    stream, constants = compile_layer(layer, DECODES)
    right = simulator.execute(stream, DECODES, constants, [x])[0].tobytes()
    for number, word in enumerate(stream.instructions):
        if not isinstance(word, Unpack):
            continue
        for field, step in (("dram", 16), ("pad", 16), ("packed", -16), ("size", -8), ("size", 8)):
            moved = dataclasses.replace(word, **{field: getattr(word, field) + step})
            assert _noticed(_with(stream, number, moved), constants, x, right), (number, field)


def _with(stream: Stream, number: int, word: Unpack) -> Stream:
    words = stream.instructions
    return dataclasses.replace(stream, instructions=(*words[:number], word, *words[number + 1 :]))


def _noticed(stream: Stream, constants: np.ndarray, x: np.ndarray, right: bytes) -> bool:
    try:
        check(stream, DECODES)
        return simulator.execute(stream, DECODES, constants, [x])[0].tobytes() != right
    except (LoweringError, ArtifactError):
        return True
