"""Programs of several operators: residency, allocation, every operator of the vector unit, in both roundings."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import LoweringError
from graphopt.targets.integer import reference
from graphopt.targets.npu.check import check
from graphopt.targets.npu.codegen import compile_program, pack_nibbles
from graphopt.targets.npu.isa import LOAD_CONSTANTS, Exec, Requant, Store, queue_of
from graphopt.targets.npu.layer import Geometry, Layer, Requantise
from graphopt.targets.npu.machine import Machine, load_machine
from graphopt.targets.npu.place import Item, first_fit, place
from graphopt.targets.npu.program import (
    Contract,
    Op,
    Pair,
    Program,
    Quantum,
    Table,
    Tensor,
    View,
    Window,
    inputs_of,
    whole,
)
from graphopt.targets.npu.simulator import execute
from graphopt.targets.npu.timing import schedule, time_stream
from graphopt.targets.npu.weights import least_bytes

EDGE, GEMMINI = load_machine("edge"), load_machine("gemmini-16")
# So small that little stays in it, and all is cut.
TINY = GEMMINI.model_copy(update={"name": "tiny", "scratchpad_bytes": 4096, "accumulator_bytes": 512})
BYTE = Quantum(False, 7, 0, 255)
SIGNED = Quantum(True, -9, -120, 127)


def layer(name: str, x: Tensor, oc: int, kernel: int, stride: int, rng: np.random.Generator) -> tuple[Layer, Tensor]:
    n, c, h, w = x.shape
    oh, ow = (h + 2 * (kernel // 2) - kernel) // stride + 1, (w + 2 * (kernel // 2) - kernel) // stride + 1
    groups = c if oc == 0 else 1
    pad = (kernel // 2, kernel // 2)
    g = Geometry(
        n, groups, 1 if oc == 0 else c, oc or 1, h, w, oh, ow, kernel, kernel, stride=(stride, stride), pad=pad
    )
    channels = groups * g.oc
    terms = g.cin * kernel * kernel
    made = Layer(
        name, "Conv", g, rng.integers(-128, 128, (channels, terms)).astype(np.int8),
        rng.integers(-999, 999, channels).astype(np.int32), False, BYTE.zero, 0,
        Requantise(rng.uniform(1, 2, channels).astype(np.float32) / (70 * terms**0.5), False, BYTE.zero, 0, 255),
    )  # fmt: skip
    return made, Tensor(name, (n, channels, oh, ow))


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Chains and branches over uint8 tensors with zero point 7."""
    rng = np.random.default_rng(draw(st.integers(0, 99999)))
    n, c = draw(st.integers(1, 2)), draw(st.integers(1, 6))
    x = Tensor("x", (n, c, draw(st.integers(2, 9)), draw(st.integers(2, 9))))
    tensors, ops = [x], list[Op]()
    for number in range(draw(st.integers(1, 7))):
        source = draw(st.sampled_from(tensors))
        name, (_, channels, h, w) = f"t{number}", source.shape
        kind = draw(
            st.sampled_from(["conv", "depthwise", "pair", "spread", "table", "max", "mean", "concat", "resize"])
        )
        out = Tensor(name, source.shape)
        if kind in ("conv", "depthwise"):
            oc = 0 if kind == "depthwise" else draw(st.integers(1, 9))
            made, out = layer(name, source, oc, draw(st.sampled_from([1, 3])), draw(st.integers(1, 2)), rng)
            ops.append(Contract(made, whole(source), whole(out)))
        elif kind in ("pair", "spread"):
            same = [t for t in tensors if t.shape == ((n, channels, 1, 1) if kind == "spread" else source.shape)]
            if not same:
                continue
            b, op = draw(st.sampled_from(same)), draw(st.sampled_from(["Add", "Mul"]))
            scales = np.float32(0.7), np.float32(0.04 if op == "Mul" else 0.45)
            ops.append(Pair(name, op, whole(source), whole(b), whole(out), BYTE, BYTE, BYTE, *scales))
        elif kind == "table":
            ops.append(Table(name, "Sigmoid", whole(source), whole(out), rng.integers(0, 256, 256).astype(np.uint8)))
        elif kind == "max":
            ops.append(
                Window(name, "MaxPool", whole(source), whole(out), (3, 3), (1, 1), (1, 1), BYTE, BYTE, maximum=True)
            )
        elif kind == "mean":
            out = Tensor(name, (n, channels, 1, 1))
            ops.append(
                Window(
                    name, "Mean", whole(source), whole(out), (h, w), (1, 1), (0, 0), BYTE, BYTE, False, np.float32(1.3)
                )
            )
        elif kind == "concat":
            parts = [t for t in tensors if (t.shape[0], *t.shape[2:]) == (n, h, w)]
            chosen = [draw(st.sampled_from(parts)) for _ in range(2)]
            out = Tensor(name, (n, sum(t.shape[1] for t in chosen), h, w))
            first = 0
            for part in chosen:
                table = rng.integers(0, 256, 256).astype(np.uint8)
                ops.append(Table(name, "Concat", whole(part), View(out, part.shape, first), table))
                first += part.shape[1]
        else:
            out = Tensor(name, (n, channels, 2 * h, 3 * w))
            identity = np.arange(256, dtype=np.uint8)
            ops.append(Table(name, "Resize", whole(source), whole(out), identity, (2, 3)))
        tensors.append(out)
    if not ops:
        ops.append(Table("t", "Sigmoid", whole(x), whole(Tensor("t", x.shape)), np.arange(256, dtype=np.uint8)[::-1]))
        tensors.append(ops[0].output.tensor)
    read = {view.tensor for op in ops for view in inputs_of(op)}
    kept = {t for t in tensors[1:] if t not in read or draw(st.integers(0, 5)) == 0}
    return Program("program", tuple(ops), (x,), tuple(t for t in tensors if t in kept))


def evaluate(program: Program, x: np.ndarray) -> list[np.ndarray]:
    """Every operator by its definition, with float32 rounding."""
    values = {program.inputs[0]: x}
    for op in program.ops:
        tensor = op.output.tensor
        sources = [values[view.tensor].astype(np.int32) for view in inputs_of(op)]
        if isinstance(op, Contract):
            g, out = op.layer.geometry, op.layer.requantise
            weight = op.layer.weights.reshape(g.groups * g.oc, g.cin, g.kh, g.kw)
            pads = (g.pad[0], g.pad[1]) * 2
            acc = reference.convolution(
                sources[0], op.layer.input_zero, weight, op.layer.bias, g.stride, g.dilation, pads, g.groups
            )[:, :, : g.oh, : g.ow]
            y = reference.requantise(acc, out.multiplier[:, None, None], out.zero, out.low, out.high)
        elif isinstance(op, Pair):
            a, b = (reference.scaled(v, 7, s) for v, s in zip(sources, (op.a_scale, op.b_scale), strict=True))
            y = reference.total([np.broadcast_to(a + b if op.op == "Add" else a * b, a.shape)], 7, 0, 255)
        elif isinstance(op, Table):
            y = op.table[sources[0]].repeat(op.repeat[0], axis=2).repeat(op.repeat[1], axis=3)
        elif op.maximum:
            padded = np.pad(sources[0], ((0, 0), (0, 0), (1, 1), (1, 1)))
            y = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3)).max(axis=(4, 5))
        else:
            y = reference.average(
                values[op.input.tensor], 7, op.scale, (7, 0, 255), op.kernel, op.stride, (0, 0, 0, 0), False
            )
        whole_tensor = values.setdefault(tensor, np.zeros(tensor.shape, np.uint8))
        whole_tensor[:, op.output.first : op.output.first + y.shape[1]] = y
    return [values[tensor] for tensor in program.outputs]


@settings(max_examples=60, deadline=None)
@given(programs(), st.sampled_from([EDGE, GEMMINI, TINY]), st.integers(0, 999))
def test_any_program_equals_its_operators(program: Program, machine: Machine, seed: int) -> None:
    x = np.random.default_rng(seed).integers(0, 256, program.inputs[0].shape).astype(np.uint8)
    stream, constants = compile_program(program, machine)
    got = execute(stream, machine, constants, [x])
    for tensor, expected, found in zip(program.outputs, evaluate(program, x), got, strict=True):
        np.testing.assert_array_equal(found.reshape(tensor.shape), expected)


@settings(max_examples=15, deadline=None)
@given(programs(), st.integers(0, 999))
def test_fixed31_is_within_a_step_of_float32_for_each_operator(program: Program, seed: int) -> None:
    first = dataclasses.replace(program, ops=program.ops[:1], outputs=(program.ops[0].output.tensor,))
    if program.ops[0].output.shape != program.ops[0].output.tensor.shape:
        return  # the first part of a Concat
    x = np.random.default_rng(seed).integers(0, 256, program.inputs[0].shape).astype(np.uint8)
    machine = GEMMINI.model_copy(update={"requantise": "fixed31"})
    stream, constants = compile_program(first, machine)
    (got,) = execute(stream, machine, constants, [x])
    (expected,) = evaluate(first, x)
    assert np.abs(got.reshape(expected.shape).astype(int) - expected).max() <= 1


def test_signed_operands() -> None:
    """int8 tensors: sum, product with one value per channel, mean, maximum whose border is the least value."""
    rng = np.random.default_rng(0)
    x, small = Tensor("x", (1, 3, 5, 4)), Tensor("small", (1, 3, 1, 1))
    a, b, c, d = (Tensor(name, s) for name, s in zip("abcd", (x.shape, x.shape, small.shape, x.shape), strict=True))
    one, two = np.float32(0.8), np.float32(0.03)
    ops: tuple[Op, ...] = (
        Pair("a", "Add", whole(x), whole(x), whole(a), SIGNED, SIGNED, SIGNED, one, np.float32(0.5)),
        Pair("b", "Mul", whole(x), whole(small), whole(b), SIGNED, SIGNED, SIGNED, one, two),
        Window("c", "Mean", whole(x), whole(c), (5, 4), (1, 1), (0, 0), SIGNED, SIGNED, False, one),
        Window("d", "MaxPool", whole(x), whole(d), (3, 3), (1, 1), (1, 1), SIGNED, SIGNED, True),
    )
    stream, constants = compile_program(Program("p", ops, (x, small), (a, b, c, d)), EDGE)
    values, scales = (rng.integers(-128, 128, t.shape).astype(np.int8) for t in (x, small))
    got = [o.view(np.int8) for o in execute(stream, EDGE, constants, [values, scales])]
    wide = values.astype(np.float32) + 9
    expected = [
        wide * one + wide * np.float32(0.5),
        (wide * one) * ((scales.astype(np.float32) + 9) * two),
        wide.sum(axis=(2, 3), keepdims=True) * one / np.float32(20),
    ]
    for found, steps in zip(got, expected, strict=False):
        y = np.clip(np.rint(steps) - 9, -120, 127).astype(np.int8)
        np.testing.assert_array_equal(found.reshape(y.shape), y)
    padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-128)
    most = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3)).max(axis=(4, 5))
    np.testing.assert_array_equal(got[3].reshape(most.shape), most)


def chain(count: int) -> Program:
    rng = np.random.default_rng(0)
    tensor = Tensor("x", (1, 16, 14, 14))
    tensors, ops = [tensor], list[Op]()
    for number in range(count):
        made, tensor = layer(f"c{number}", tensors[-1], 16, 3, 1, rng)
        ops.append(Contract(made, whole(tensors[-1]), whole(tensor)))
        tensors.append(tensor)
    return Program("chain", tuple(ops), (tensors[0],), (tensor,))


def test_what_fits_stays_in_the_scratchpad() -> None:
    """Activations of a chain cross the DRAM port at its ends only; the same with a small scratchpad does not."""
    program = chain(5)
    stream, _ = compile_program(program, EDGE)
    timing = time_stream(stream, EDGE)
    ends = program.inputs[0].bytes, program.outputs[0].bytes
    assert timing.read["activations"] < 3 * ends[0]  # windows overlap where the first layer is cut
    assert timing.written == ends[1]
    small = EDGE.model_copy(update={"scratchpad_bytes": 6144})
    assert time_stream(compile_program(program, small)[0], small).written > ends[1]


def test_weights_arrive_while_the_layer_before_is_computed() -> None:
    stream, _ = compile_program(chain(4), EDGE)
    plan, words = schedule(stream, EDGE), stream.instructions
    for before, span in zip(stream.spans, stream.spans[1:], strict=False):
        weights = next(n for n in range(span.first, len(words)) if queue_of(words[n]) == LOAD_CONSTANTS)
        last = max(n for n in range(before.first, span.first) if isinstance(words[n], Exec))
        assert plan.start[weights] < plan.finish[last]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=25))
def test_addresses_by_live_ranges_never_overlap(drawn: list[tuple[int, int, int]]) -> None:
    items = [Item(size, first, first + length, (n, "")) for n, (size, first, length) in enumerate(drawn)]
    assert first_fit(items, float("inf")) is None
    for a in items:
        for b in items:
            if a is not b and a.first <= b.last and b.first <= a.last:
                assert a.address + a.size <= b.address or b.address + b.size <= a.address
    live = [sum(i.size for i in items if i.first <= at <= i.last) for at in range(15)]
    assert first_fit(items, max(live) - 1) is not None


@settings(max_examples=40, deadline=None)
@given(programs())
def test_no_program_beats_its_bounds(program: Program) -> None:
    """DRAM bytes are no fewer than inputs that are read, constants and outputs; cycles no fewer than any engine's."""
    stream, _ = compile_program(program, EDGE)
    timing = time_stream(stream, EDGE)
    assert timing.written >= sum(tensor.bytes for tensor in program.outputs)
    layers = [op.layer for op in program.ops if isinstance(op, Contract)]
    assert timing.macs == sum(layer.geometry.macs for layer in layers)
    assert timing.read["constants"] >= sum(least_bytes(layer.weights, layer.weight_zero) for layer in layers)
    assert timing.cycles >= max(timing.busy.values())
    assert timing.cycles >= timing.macs / EDGE.array.macs_per_cycle


@settings(max_examples=25, deadline=None)
@given(programs(), st.data())
def test_a_lost_token_of_any_program_is_caught(program: Program, data: st.DataObject) -> None:
    stream, _ = compile_program(program, TINY)
    places = [
        (number, field, queue)
        for number, word in enumerate(stream.instructions)
        for field in ("wait", "signal")
        for queue in range(5)
        if getattr(word, field) >> 3 * queue & 7
    ]
    number, field, queue = data.draw(st.sampled_from(places))
    words = list(stream.instructions)
    words[number] = dataclasses.replace(words[number], **{field: getattr(words[number], field) - (1 << 3 * queue)})
    with pytest.raises(LoweringError, match=r"deadlock|token|wait"):
        check(dataclasses.replace(stream, instructions=tuple(words)), TINY)


@pytest.mark.parametrize("kind", [Store, Requant])
def test_a_resident_tensor_moved_over_another_is_caught(kind: type) -> None:
    stream, _ = compile_program(chain(3), EDGE)
    number = max(n for n, word in enumerate(stream.instructions) if isinstance(word, kind))
    words = list(stream.instructions)
    words[number] = dataclasses.replace(words[number], pad=EDGE.scratchpad_bytes - 8)
    with pytest.raises(LoweringError, match="reaches byte"):
        check(dataclasses.replace(stream, instructions=tuple(words)), EDGE)


@pytest.mark.parametrize("count", [0, 1, 7, 8])
def test_four_bit_weights_take_half_the_bytes(count: int) -> None:
    values = np.arange(-4, -4 + count).astype(np.int8)
    packed = pack_nibbles(values)
    assert packed.nbytes == -(-count // 2)
    back = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[:count]
    np.testing.assert_array_equal((back ^ 8).astype(np.int8) - 8, values)


@pytest.mark.parametrize("shape", [(1, 5, 7, 3), (1, 16, 16, 1)])
def test_a_layer_of_four_bit_weights(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    _, cin, oc, kernel = shape
    x = Tensor("x", (1, cin, 9, 9))
    made, y = layer("y", x, oc, kernel, 1, rng)
    four = rng.integers(-8, 8, made.weights.shape).astype(np.int8)
    geometry = dataclasses.replace(made.geometry, weight_bits=4)
    wide = dataclasses.replace(made, weights=four)
    narrow = dataclasses.replace(wide, geometry=geometry)
    image = rng.integers(0, 256, x.shape).astype(np.uint8)
    results, sizes = [], []
    for one in (wide, narrow):
        stream, constants = compile_program(Program("p", (Contract(one, whole(x), whole(y)),), (x,), (y,)), GEMMINI)
        results.append(execute(stream, GEMMINI, constants, [image])[0].tobytes())
        sizes.append(time_stream(stream, GEMMINI).read["constants"])
    assert results[0] == results[1]
    assert sizes[1] < sizes[0] - four.size // 3


def test_placement_is_what_the_stream_uses() -> None:
    program = chain(3)
    placement = place(program, EDGE)
    assert len(placement.near) == 2
    assert all(0 <= address < EDGE.scratchpad_bytes for address in placement.near.values())
