"""A static check of a stream, without data: bounds, order, deadlock, nothing read that nobody wrote.

The order is what the tokens alone guarantee, whatever the words take: a clock for each word says which words have
finished before it starts. It is worked out apart from `tokens`, from the words as they are encoded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.errors import LoweringError
from graphopt.targets.npu.isa import (
    QUEUES,
    RAW_OUTPUT,
    Add,
    Exec,
    Fill,
    Load,
    Lookup,
    Pool,
    Requant,
    Store,
    Unpack,
    Word,
    queue_of,
    tokens,
)
from graphopt.targets.npu.machine import Machine
from graphopt.targets.npu.stream import Stream
from graphopt.targets.npu.tokens import ENOUGH, History
from graphopt.targets.npu.touches import (
    ACCUMULATORS,
    DRAM_ACTIVATIONS,
    DRAM_CONSTANTS,
    MEMORIES,
    SCRATCHPAD,
    Touch,
    touches,
)

Array = np.ndarray[Any, Any]


def check(stream: Stream, machine: Machine) -> None:
    """Replay the stream on maps of which bytes hold a value.

    Raises:
        LoweringError: naming the word that leaves a memory, reads bytes nobody wrote, writes over an input, or does not
            wait for a word it conflicts with; or that words wait for each other, a token is left over, or an output
            byte is never written.
    """
    clocks = _clocks(stream)
    history = History()
    written = {
        SCRATCHPAD: np.zeros(machine.scratchpad_bytes, np.bool_),
        ACCUMULATORS: np.zeros(machine.accumulator_bytes, np.bool_),
        DRAM_CONSTANTS: np.ones(stream.sizes[0], np.bool_),
        DRAM_ACTIVATIONS: np.zeros(stream.sizes[1], np.bool_),
    }
    for place in stream.inputs:
        written[DRAM_ACTIVATIONS][place.offset : place.offset + place.size] = True
    numbers, totals = [0] * len(QUEUES), [0] * len(QUEUES)
    for queue in map(queue_of, stream.instructions):
        if queue is not None:
            totals[queue] += 1
    last = [(0,) * len(QUEUES)] * len(QUEUES)
    for at, word in enumerate(stream.instructions):
        queue = queue_of(word)
        if queue is None:
            continue
        touched = touches(word)
        fault = _bounds(word, touched, written) or _order(touched, queue, clocks[at], history)
        if fault:
            raise LoweringError(f"the command stream of {stream.node!r} is wrong at word {at}, {word}: {fault}.")
        _mark(word, written)
        numbers[queue] += 1
        for touch in touched:
            history.add(touch, queue, numbers[queue])
        last[queue] = clocks[at]
        if at % ENOUGH == 0:
            waiting = [last[q] for q in range(len(QUEUES)) if numbers[q] < totals[q]]
            history.forget([min((clock[q] for clock in waiting), default=0) for q in range(len(QUEUES))])
    for place in stream.outputs:
        if not written[DRAM_ACTIVATIONS][place.offset : place.offset + place.size].all():
            raise LoweringError(f"the command stream of {stream.node!r} does not write every output byte.")


def _clocks(stream: Stream) -> list[tuple[int, ...]]:
    """For each word, how many words of each queue have finished before it starts, by the tokens alone."""
    words = stream.instructions
    before: list[tuple[int, ...]] = [()] * len(words)
    last = [(0,) * len(QUEUES) for _ in QUEUES]  # after the last word of each queue
    given: list[list[list[tuple[int, ...]]]] = [[[] for _ in QUEUES] for _ in QUEUES]  # [to][from]
    taken = [[0] * len(QUEUES) for _ in QUEUES]
    waiting: list[list[int]] = [[] for _ in QUEUES]

    def run() -> None:
        moved = True
        places = [0] * len(QUEUES)
        while moved:
            moved = False
            for queue, numbers in enumerate(waiting):
                while places[queue] < len(numbers) and step(queue, numbers[places[queue]]):
                    places[queue] += 1
                    moved = True
        stuck = [numbers[place] for place, numbers in zip(places, waiting, strict=True) if place < len(numbers)]
        if stuck:
            raise LoweringError(
                f"the command stream of {stream.node!r} is in deadlock: its words "
                f"{', '.join(map(str, stuck))} wait for tokens that never come."
            )

    def step(queue: int, number: int) -> bool:
        word, clock = words[number], last[queue]
        for source, count in enumerate(tokens(word.wait)):
            if taken[queue][source] + count > len(given[queue][source]):
                return False
        for source, count in enumerate(tokens(word.wait)):
            for _ in range(count):
                clock = tuple(map(max, clock, given[queue][source][taken[queue][source]]))
                taken[queue][source] += 1
        before[number] = clock
        last[queue] = after = (*clock[:queue], clock[queue] + 1, *clock[queue + 1 :])
        for target, count in enumerate(tokens(word.signal)):
            given[target][queue] += [after] * count
        return True

    for number, word in enumerate(words):
        queue = queue_of(word)
        if queue is not None:
            waiting[queue].append(number)
            continue
        run()
        waiting[:] = [[] for _ in QUEUES]
        last[:] = [tuple(last[q][q] for q in range(len(QUEUES)))] * len(QUEUES)
    run()
    if any(taken[a][b] != len(given[a][b]) for a in range(len(QUEUES)) for b in range(len(QUEUES))):
        raise LoweringError(f"the command stream of {stream.node!r} leaves a token that nobody takes.")
    return before


def _order(touched: list[Touch], queue: int, clock: tuple[int, ...], history: History) -> str | None:
    """Whether a word that uses the bytes `touched` may still run."""
    for touch in touched:
        for other, number in enumerate(history.conflicts(touch)):
            if other != queue and clock[other] < number:
                where = f"bytes {touch.start} to {touch.end} of the {MEMORIES[touch.memory]}"
                return f"it does not wait for word {number} of the {QUEUES[other]} queue, which uses {where} too"
    return None


def _bounds(word: Word, touched: list[Touch], written: dict[int, Array]) -> str | None:
    for touch in touched:
        name, valid = MEMORIES[touch.memory], written[touch.memory]
        if touch.end > valid.size:
            return f"it reaches byte {touch.end} of the {valid.size} of the {name}"
        if touch.memory == DRAM_CONSTANTS and touch.write:
            return "it writes constants"
        if touch.write or valid[touch.start : touch.end].all():
            continue
        if not isinstance(word, Store) or not _block(word, valid).all():  # a store may lie between bytes yet to come
            return f"it reads bytes of the {name} that nobody wrote"
    return None


def _block(i: Store, pad: Array) -> Array:
    """The bytes of the scratchpad that a store reads."""
    return np.ndarray((i.planes, i.rows, i.size), np.bool_, pad, i.pad, (i.plane_stride, i.row_stride, 1))


def _mark(i: Word, written: dict[int, Array]) -> None:
    """Note the bytes that `i` writes, byte by byte where they are strided."""
    pad = written[SCRATCHPAD]
    if isinstance(i, Store):
        strides = (i.dram_plane_stride, i.dram_row_stride, 1)
        np.ndarray((i.planes, i.rows, i.size), np.bool_, written[DRAM_ACTIVATIONS], i.dram, strides)[...] = True
    elif isinstance(i, Fill | Load):
        np.ndarray((i.planes, i.rows, i.size), np.bool_, pad, i.pad, (i.plane_stride, i.row_stride, 1))[...] = True
    elif isinstance(i, Unpack):
        pad[i.pad : i.pad + i.size] = True
    elif isinstance(i, Exec):
        written[ACCUMULATORS][i.acc : i.acc + 4 * i.groups * i.oc * i.oh * i.ow] = True
    elif isinstance(i, Requant):
        shape = (i.channels, i.rows, i.columns, 4 if i.flags & RAW_OUTPUT else 1)
        np.ndarray(shape, np.bool_, pad, i.pad, (i.channel_stride, i.row_stride, i.column_stride, 1))[...] = True
    elif isinstance(i, Lookup):
        strides = (i.plane_stride, i.row_stride, i.column_stride)
        np.ndarray((i.planes, i.rows, i.columns), np.bool_, pad, i.pad, strides)[...] = True
    elif isinstance(i, Add | Pool):
        rows, columns = (i.rows, i.columns) if isinstance(i, Add) else (i.oh, i.ow)
        np.ndarray((i.planes, rows, columns), np.bool_, pad, i.pad, (i.plane_stride, i.row_stride, 1))[...] = True
