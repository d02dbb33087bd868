"""Machines, containers, text form; what is damaged or wrong is refused or shows in the result."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt.targets.npu.machine
from graphopt.errors import ArtifactError, LoweringError, UsageError
from graphopt.targets.npu import runtime
from graphopt.targets.npu.check import check
from graphopt.targets.npu.codegen import compile_layer
from graphopt.targets.npu.isa import KINDS, WORD, End, Exec, Fill, Instruction, Load, Store, Vector, decode, encode
from graphopt.targets.npu.layer import Geometry, Layer, Requantise
from graphopt.targets.npu.machine import Machine, load_machine, presets
from graphopt.targets.npu.simulator import run_stream
from graphopt.targets.npu.stream import Stream, assemble, disassemble, pack, unpack

GEMMINI = load_machine("gemmini-16")
# Small enough that the layer below takes several tiles.
SMALL = GEMMINI.model_copy(update={"scratchpad_bytes": 4096, "accumulator_bytes": 1024})


def build(machine: Machine = SMALL) -> tuple[Stream, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    geometry = Geometry(1, 1, 5, 18, 11, 11, 6, 6, 3, 3, stride=(2, 2), pad=(1, 1))
    layer = Layer(
        name="conv",
        op="Conv",
        geometry=geometry,
        weights=rng.integers(-128, 128, (18, 45)).astype(np.int8),
        bias=rng.integers(-999, 999, 18).astype(np.int32),
        input_signed=True,
        input_zero=5,
        weight_zero=0,
        requantise=Requantise(np.full(18, 0.003, np.float32), signed=True, zero=-7, low=-128, high=127),
    )
    stream, constants = compile_layer(layer, machine)
    return stream, constants, rng.integers(0, 256, geometry.input_bytes).astype(np.uint8)


def execute(stream: Stream, constants: np.ndarray, x: np.ndarray, machine: Machine = SMALL) -> bytes:
    out = np.zeros(stream.sizes[2], np.uint8)
    run_stream(stream, machine, (constants, x, out))
    return out.tobytes()


def any_instruction() -> st.SearchStrategy[Instruction]:
    small = st.integers(0, 255)
    return st.one_of(*(st.builds(kind, **{f.name: small for f in dataclasses.fields(kind)}) for kind in KINDS.values()))


@given(any_instruction())
def test_words_round_trip(instruction: Instruction) -> None:
    word = encode(instruction)
    assert len(word) == WORD
    assert decode(word) == instruction


@settings(max_examples=40)
@given(st.lists(any_instruction(), max_size=6))
def test_container_and_text_round_trip(instructions: list[Instruction]) -> None:
    stream = Stream("a/node:0", SMALL.digest(), (1, 2, 3), (*instructions, End()))
    assert unpack(pack(stream)) == stream
    assert assemble(disassemble(stream)) == stream


def test_text_of_a_real_stream_runs_alike() -> None:
    stream, constants, x = build()
    assert execute(assemble(disassemble(stream)), constants, x) == execute(stream, constants, x)


@pytest.mark.parametrize("line", ["jump pad=3", "load space=1", "exec flags=x", "vector"])
def test_bad_assembly_names_the_line(line: str) -> None:
    with pytest.raises(ArtifactError, match="line 2"):
        assemble(f".node n\n{line}\n")


def test_every_flipped_byte_is_refused() -> None:
    data = pack(build()[0])
    for position in np.random.default_rng(1).integers(0, len(data), 200):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(position % 8)
        with pytest.raises(ArtifactError):
            unpack(bytes(damaged))
    for size in (0, 3, 60, len(data) - 1):
        with pytest.raises(ArtifactError):
            unpack(data[:size])


def test_a_stream_for_another_machine_or_size_is_refused() -> None:
    stream, constants, x = build()
    with pytest.raises(ArtifactError, match="another machine"):
        execute(stream, constants, x, GEMMINI)
    with pytest.raises(ArtifactError, match="bytes"):
        execute(stream, constants[:-1], x)


ADDRESSES = {
    Load: ("dram", "pad"),
    Store: ("dram", "pad"),
    Exec: ("input", "weights", "acc"),
    Vector: ("acc", "parameters", "pad"),
}


def test_any_wrong_address_is_caught_or_changes_the_result() -> None:
    """Every address field of every instruction, moved a little."""
    stream, constants, x = build()
    right = execute(stream, constants, x)
    silent: list[str] = []
    for number, instruction in enumerate(stream.instructions):
        for field in ADDRESSES.get(type(instruction), ()):
            moved = dataclasses.replace(instruction, **{field: getattr(instruction, field) + 4})
            if not _noticed(_with(stream, number, moved), constants, x, right):
                silent.append(f"{number}: {field} of {instruction}")
    assert not silent


def test_a_dropped_or_swapped_word_is_caught_or_changes_the_result() -> None:
    stream, constants, x = build()
    right = execute(stream, constants, x)
    words = stream.instructions
    for number, word in enumerate(words[:-1]):
        if isinstance(word, Fill):  # padding may lie there already, from a tile before
            wrong = _with(stream, number, dataclasses.replace(word, value=word.value ^ 64))
        else:
            wrong = dataclasses.replace(stream, instructions=words[:number] + words[number + 1 :])
        assert _noticed(wrong, constants, x, right), word
    for number, (first, second) in enumerate(itertools.pairwise(words)):
        if {type(first), type(second)} in ({Exec, Vector}, {Vector, Store}):  # these depend on each other
            swapped = _with(_with(stream, number, second), number + 1, first)
            assert _noticed(swapped, constants, x, right), (first, second)


def _with(stream: Stream, number: int, instruction: Instruction) -> Stream:
    words = list(stream.instructions)
    words[number] = instruction
    return dataclasses.replace(stream, instructions=tuple(words))


def _noticed(stream: Stream, constants: np.ndarray, x: np.ndarray, right: bytes) -> bool:
    try:
        check(stream, SMALL)
    except LoweringError:
        return True
    return execute(stream, constants, x) != right


def test_an_address_outside_a_memory_is_a_fault_when_run() -> None:
    stream, constants, x = build()
    number, load = next((n, i) for n, i in enumerate(stream.instructions) if isinstance(i, Load))
    outside = _with(stream, number, dataclasses.replace(load, pad=SMALL.scratchpad_bytes))
    with pytest.raises(LoweringError, match="scratchpad"):
        check(outside, SMALL)
    with pytest.raises(ArtifactError, match=f"instruction {number} "):
        execute(outside, constants, x)


def test_presets_load_and_say_what_they_are() -> None:
    assert {"edge", "gemmini-16"} <= set(presets())
    assert load_machine("edge").array.macs_per_cycle == 256
    assert load_machine("gemmini-16").array.macs_per_cycle == 256
    assert load_machine("edge").digest() != load_machine("gemmini-16").digest()


@pytest.mark.parametrize(
    ("old", "new", "culprit"),
    [
        ("clock_mhz", "clock mhz", "not a TOML"),
        ("clock_mhz = 1000", "", "clock_mhz: Field required"),
        ("scratchpad_bytes = 262144", "scratchpad_bytes = -16", "scratchpad_bytes"),
        ("rows = 16", "rows = 0", "array.systolic.rows"),
        ("columns = 16", "columns = 16\ncolour = 3", "colour"),
        ('"activations", "constants"', '"activations"', "must each be held by one memory"),
    ],
)
def test_a_wrong_description_names_the_key(old: str, new: str, culprit: str, tmp_path: Path) -> None:
    text = (Path(graphopt.targets.npu.machine.__file__).parent / "gemmini-16.toml").read_text()
    assert old in text
    path = tmp_path / "machine.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(UsageError, match=culprit):
        load_machine(str(path))


def test_an_unknown_machine_names_the_presets() -> None:
    with pytest.raises(UsageError, match="gemmini-16"):
        load_machine("tpu-9000")


def test_the_runtime_refuses_a_damaged_stream() -> None:
    stream, constants, x = build()
    machine, words = np.frombuffer(SMALL.to_json(), np.uint8).copy(), np.frombuffer(pack(stream), np.uint8).copy()
    out = np.zeros(stream.sizes[2], np.uint8)
    runtime.run(x, machine, words, constants, out)
    assert out.tobytes() == execute(stream, constants, x)
    words[200] ^= 1
    with pytest.raises(ArtifactError, match="checksum"):
        runtime.run(x, machine, words, constants, out)
