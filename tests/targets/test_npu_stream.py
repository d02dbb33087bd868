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
from graphopt.targets.npu import runtime, simulator
from graphopt.targets.npu.asm import assemble, disassemble
from graphopt.targets.npu.check import check
from graphopt.targets.npu.codegen import compile_layer
from graphopt.targets.npu.isa import (
    FIELDS,
    OPCODES,
    VECTOR,
    WORD,
    End,
    Exec,
    Fence,
    Fill,
    Load,
    Requant,
    Store,
    Word,
    decode,
    encode,
    queue_of,
)
from graphopt.targets.npu.layer import Geometry, Layer, Requantise
from graphopt.targets.npu.machine import Machine, load_machine, presets
from graphopt.targets.npu.stream import Place, Span, Stream, pack, unpack

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
    return simulator.execute(stream, machine, constants, [x])[0].tobytes()


@st.composite
def any_word(draw: st.DrawFn) -> Word:
    kind = draw(st.sampled_from(list(OPCODES)))
    values = draw(st.lists(st.integers(0, 255), min_size=len(FIELDS[kind]), max_size=len(FIELDS[kind])))
    sync = [draw(st.integers(0, (1 << 15) - 1)) for _ in range(2)]
    return kind(*values, flags=draw(st.integers(0, 255)), wait=sync[0], signal=sync[1])


@given(any_word())
def test_words_round_trip(word: Word) -> None:
    encoded = encode(word)
    assert len(encoded) == WORD
    assert decode(encoded) == word


@settings(max_examples=40)
@given(st.lists(any_word(), min_size=1, max_size=6))
def test_container_and_text_round_trip(words: list[Word]) -> None:
    spans = (Span(0, "first node"), Span(len(words), "b/c:0"))
    stream = Stream("a/node:0", SMALL.digest(), (1, 2), (Place(0, 3),), (Place(4, 5),) * 2, spans, (*words, End()))
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
    Requant: ("acc", "parameters", "pad"),
}


def test_any_wrong_address_is_caught_or_changes_the_result() -> None:
    """Every address field of every instruction, moved a little."""
    stream, constants, x = build()
    right = execute(stream, constants, x)
    silent: list[str] = []
    for number, word in enumerate(stream.instructions):
        for field in ADDRESSES.get(type(word), ()):
            moved = dataclasses.replace(word, **{field: getattr(word, field) + 4})
            if not _noticed(_with(stream, number, moved), constants, x, right):
                silent.append(f"{number}: {field} of {word}")
    assert not silent


def test_a_dropped_token_is_caught() -> None:
    """Each token of each word, not taken or not given: another order than the tokens guarantee, a token left, or a
    deadlock. All by the static check alone."""
    stream, *_ = build()
    count = 0
    for number, word in enumerate(stream.instructions):
        for field, queue in itertools.product(("wait", "signal"), range(5)):
            if getattr(word, field) >> 3 * queue & 7:
                count += 1
                less = dataclasses.replace(word, **{field: getattr(word, field) - (1 << 3 * queue)})
                with pytest.raises(LoweringError, match=r"deadlock|token|wait"):
                    check(_with(stream, number, less), SMALL)
    assert count >= 64


def test_no_token_is_superfluous() -> None:
    """A pair of signal and wait taken away together leaves two words without order that need one."""
    stream, *_ = build()
    given: dict[tuple[int, int], list[int]] = {}
    pairs: list[tuple[int, int, int, int]] = []
    for number, word in enumerate(stream.instructions):
        queue = queue_of(word)
        if queue is None:
            continue
        for source in (q for q in range(5) if word.wait >> 3 * q & 7):
            pairs.append((given[source, queue].pop(0), number, source, queue))
        for target in (q for q in range(5) if word.signal >> 3 * q & 7):
            given.setdefault((queue, target), []).append(number)
    assert not any(given.values())
    for giver, taker, source, target in pairs:
        words = list(stream.instructions)
        words[giver] = dataclasses.replace(words[giver], signal=words[giver].signal - (1 << 3 * target))
        words[taker] = dataclasses.replace(words[taker], wait=words[taker].wait - (1 << 3 * source))
        with pytest.raises(LoweringError, match="does not wait"):
            check(dataclasses.replace(stream, instructions=tuple(words)), SMALL)


def test_without_its_tokens_a_stream_computes_something_else() -> None:
    """The simulator's semaphores are what keeps the order: they are not decoration."""
    stream, constants, x = build()
    bare = tuple(dataclasses.replace(word, wait=0, signal=0) for word in stream.instructions)
    assert execute(dataclasses.replace(stream, instructions=bare), constants, x) != execute(stream, constants, x)


def test_a_deadlock_is_named() -> None:
    stream, constants, x = build()
    first = next(n for n, word in enumerate(stream.instructions) if isinstance(word, Exec))
    stuck = dataclasses.replace(stream.instructions[first], wait=7 << 3 * VECTOR)
    with pytest.raises(ArtifactError, match="deadlock"):
        execute(_with(stream, first, stuck), constants, x)


def test_a_fence_orders_what_tokens_do_not() -> None:
    """With a fence behind every word no token is needed, and the result is the same."""
    stream, constants, x = build()
    bare = (dataclasses.replace(word, wait=0, signal=0) for word in stream.instructions[:-1])
    words = (*(w for word in bare for w in (word, Fence())), End())
    fenced = dataclasses.replace(stream, instructions=words)
    check(fenced, SMALL)
    assert execute(fenced, constants, x) == execute(stream, constants, x)


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
    for number, (first, second) in enumerate(itertools.pairwise(words[:-1])):
        swapped = _with(_with(stream, number, second), number + 1, first)
        if queue_of(first) == queue_of(second) and type(first) is type(second) and not isinstance(first, Fill):
            continue  # may be in either order
        try:
            check(swapped, SMALL)
        except LoweringError:
            continue
        # what the check lets pass is right: words of two queues that do not depend on each other
        assert queue_of(first) != queue_of(second) or execute(swapped, constants, x) == right, (first, second)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_damage_is_caught_or_changes_the_result(data: st.DataObject) -> None:
    """Any field of any word, or its tokens, or two words swapped: noticed, or the result is right all the same and the
    check holds, so that it was no damage."""
    stream, constants, x = build()
    right = execute(stream, constants, x)
    number = data.draw(st.integers(0, len(stream.instructions) - 2))
    word = stream.instructions[number]
    field = data.draw(st.sampled_from(["wait", "signal", *FIELDS[type(word)]]))
    value = data.draw(st.integers(0, 255))
    if value == getattr(word, field):
        return
    damaged = _with(stream, number, dataclasses.replace(word, **{field: value}))
    if _noticed(damaged, constants, x, right):
        return
    assert field in HARMLESS.get(type(word), ()), (number, field, word)


HARMLESS = {  # fields that may hold other values where there is one row, one plane, or no value at the bound
    Load: ("planes", "dram_plane_stride", "dram_row_stride", "plane_stride", "row_stride", "rows"),
    Store: ("planes", "dram_plane_stride", "dram_row_stride", "plane_stride", "row_stride"),
    Fill: ("value", "planes", "rows", "size", "plane_stride", "row_stride", "pad"),
    Exec: ("groups", "column_stride", "row_stride", "channel_stride", "kernel_row_stride", "kernel_column_stride"),
    Requant: ("low", "high", "row_stride"),
}


def _with(stream: Stream, number: int, instruction: Word) -> Stream:
    words = list(stream.instructions)
    words[number] = instruction
    return dataclasses.replace(stream, instructions=tuple(words))


def _noticed(stream: Stream, constants: np.ndarray, x: np.ndarray, right: bytes) -> bool:
    try:
        check(stream, SMALL)
    except LoweringError:
        return True
    try:
        return execute(stream, constants, x) != right
    except ArtifactError:
        return True


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
    out = np.zeros(stream.outputs[0].size, np.uint8)
    runtime.run(machine, words, constants, x, out)
    assert out.tobytes() == execute(stream, constants, x)
    words[200] ^= 1
    with pytest.raises(ArtifactError, match="checksum"):
        runtime.run(machine, words, constants, x, out)
