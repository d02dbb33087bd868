"""The functional simulator: instructions on a scratchpad and accumulators made of bytes, in the order of their times.

What a word reads it reads at the cycle it starts, what it writes is there at the cycle it has finished (see `timing`):
a word that does not wait for what it needs computes with what lay there before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from graphopt.errors import ArtifactError
from graphopt.targets.npu.machine import Machine
from graphopt.targets.npu.stream import Stream
from graphopt.targets.npu.timing import schedule
from graphopt.targets.npu.units import Core

Array = np.ndarray[Any, Any]


def run_stream(stream: Stream, machine: Machine, spaces: Sequence[Array]) -> None:
    """Execute `stream`. `spaces`: uint8 arrays for `CONSTANTS` and `ACTIVATIONS`; the latter holds the inputs at
    `stream.inputs`, and afterwards the outputs at `stream.outputs`.

    Raises:
        ArtifactError: the stream is for another machine, a space has another size than it was made for, an
            instruction touches bytes outside a memory, or words wait for tokens that never come.
    """
    if stream.machine != machine.digest():
        raise ArtifactError(
            f"the command stream of {stream.node!r} was made for another machine than {machine.name!r}: compile the "
            "model for this machine."
        )
    if tuple(space.nbytes for space in spaces) != stream.sizes:
        raise ArtifactError(
            f"the command stream of {stream.node!r} is for spaces of {stream.sizes} bytes, not "
            f"{tuple(space.nbytes for space in spaces)}."
        )
    core, words = Core(machine, spaces), stream.instructions
    pending: dict[int, tuple[Array, Array]] = {}
    number = 0
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # numbers that no compiler made may be anything
            for number, ends in events(stream, machine):
                if ends:
                    target, values = pending.pop(number)
                    core.commit(words[number], target, values)
                else:
                    pending[number] = core.start(words[number])
    except (ValueError, TypeError, IndexError) as error:  # numpy's: a view does not fit its buffer
        raise ArtifactError(
            f"instruction {number} of the command stream of {stream.node!r} touches bytes outside a memory: "
            f"{words[number]} ({error})."
        ) from error


def execute(stream: Stream, machine: Machine, constants: Array, inputs: Sequence[Array]) -> list[Array]:
    """The outputs of `stream` as bytes, for `inputs` of any type. Raises `ArtifactError` as `run_stream` does."""
    activations = np.full(stream.sizes[1], 0x5A, np.uint8)
    for place, array in zip(stream.inputs, inputs, strict=True):
        activations[place.offset : place.offset + place.size] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    run_stream(stream, machine, (constants, activations))
    return [activations[place.offset : place.offset + place.size] for place in stream.outputs]


@lru_cache(maxsize=256)
def events(stream: Stream, machine: Machine) -> list[tuple[int, bool]]:
    """Starts and ends of the words in the order of time; of one cycle, ends first."""
    plan = schedule(stream, machine)
    keys = [
        key
        for number, (start, finish) in enumerate(zip(plan.start, plan.finish, strict=True))
        if finish > start  # all but fences and the end
        for key in ((start, 1, number), (finish, 0, number))
    ]
    return [(number, kind == 0) for _, kind, number in sorted(keys)]
