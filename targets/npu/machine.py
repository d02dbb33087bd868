"""The machine as data: what a hardware description says, read from TOML and checked."""

from __future__ import annotations

import hashlib
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from graphopt.errors import UsageError

Positive = Annotated[int, pydantic.Field(gt=0)]
Dataflow = Literal["weight-stationary", "output-stationary", "input-stationary"]
Space = Literal["activations", "constants"]
HERE = Path(__file__).parent


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class DotProduct(_Part):
    """An array of dot products: one step makes a block of outputs from `depth` input channels.

    `ublocks`: the (height, width) an output block may have; one of height 1 serves outputs of height 1 only.
    `channels`: output channels of a block. `lanes`: input channels one output takes per cycle.
    `part_kernel`: (kernel elements, channels) a step may take instead of `depth` channels of one element.
    """

    kind: Literal["dot-product"]
    ublocks: tuple[tuple[Positive, Positive], ...] = pydantic.Field(min_length=1)
    channels: Positive
    depth: Positive
    lanes: Positive
    part_kernel: tuple[Positive, Positive]
    weights_per_cycle: Positive

    @pydantic.model_validator(mode="after")
    def _steps_take_equally_long(self) -> DotProduct:
        if self.depth % self.lanes or self.part_kernel[0] * self.part_kernel[1] != self.depth:
            raise ValueError("depth must be a multiple of lanes and the product of part_kernel")
        return self

    @property
    def macs_per_cycle(self) -> int:
        """Peak multiply-accumulates per cycle."""
        return max(height * width for height, width in self.ublocks) * self.channels * self.lanes


class Systolic(_Part):
    """A systolic array of `rows` x `columns` multipliers.

    `dataflows`: what may stay in place; an array with several takes the quickest for each window.
    """

    kind: Literal["systolic"]
    dataflows: tuple[Dataflow, ...] = pydantic.Field(min_length=1)
    rows: Positive
    columns: Positive

    @property
    def macs_per_cycle(self) -> int:
        """Peak multiply-accumulates per cycle."""
        return self.rows * self.columns


class Vector(_Part):
    """The unit that requantises: accumulators in, 8-bit values out."""

    elements_per_cycle: Positive


class Dma(_Part):
    """What moves bytes between memories and scratchpad."""

    fill_bytes_per_cycle: Positive


class Decoder(_Part):
    """Decodes weights between memory and scratchpad; the code is that of `graphopt.targets.npu.weights`."""

    weights_per_cycle: Positive


class Event(_Part):
    """What one event costs, and where the figure is from."""

    pj: Annotated[float, pydantic.Field(ge=0)]
    source: Annotated[str, pydantic.Field(min_length=1)]


class Energy(_Part):
    """Energy per event: a multiply-accumulate, a byte that enters or leaves scratchpad or accumulators, an element
    that the vector unit makes, and a byte that moves between the NPU and each memory outside, by its name."""

    mac: Event
    scratchpad: Event
    accumulator: Event
    vector: Event
    memory: dict[str, Event]


class Memory(_Part):
    """A memory outside the scratchpad with one port of `bytes_per_cycle`, used in bursts of `burst_bytes`."""

    name: str
    holds: tuple[Space, ...] = pydantic.Field(min_length=1)
    bytes_per_cycle: Annotated[float, pydantic.Field(gt=0)]
    burst_bytes: Positive
    latency_cycles: Annotated[int, pydantic.Field(ge=0)]


class Machine(_Part):
    """A simulated NPU. `clock_mhz` turns cycles into time; sizes are in bytes. With a `decoder`, weights lie in memory
    compressed."""

    name: Annotated[str, pydantic.Field(min_length=1)]
    summary: str = ""
    clock_mhz: Annotated[float, pydantic.Field(gt=0)]
    scratchpad_bytes: Annotated[int, pydantic.Field(ge=1024, le=1 << 30, multiple_of=16)]
    accumulator_bytes: Annotated[int, pydantic.Field(ge=256, le=1 << 30, multiple_of=16)]
    requantise: Literal["float32", "fixed31"]
    array: Annotated[DotProduct | Systolic, pydantic.Field(discriminator="kind")]
    vector: Vector
    dma: Dma
    decoder: Decoder | None = None
    memories: tuple[Memory, ...]
    energy: Energy

    @pydantic.model_validator(mode="after")
    def _every_space_is_held_once(self) -> Machine:
        held = sorted(space for memory in self.memories for space in memory.holds)
        if held != ["activations", "constants"]:
            raise ValueError(f"activations and constants must each be held by one memory; the memories hold {held}")
        if len({memory.name for memory in self.memories}) != len(self.memories):
            raise ValueError("two memories have the same name")
        if set(self.energy.memory) != {memory.name for memory in self.memories}:
            raise ValueError(f"energy.memory needs one entry for each memory, and has {sorted(self.energy.memory)}")
        return self

    def __hash__(self) -> int:
        return hash((self.name, self.scratchpad_bytes, self.accumulator_bytes))

    def memory(self, space: Space) -> Memory:
        """The memory that holds `space`."""
        return next(memory for memory in self.memories if space in memory.holds)

    def to_json(self) -> bytes:
        """All figures in canonical form: what the digest is taken of, and what an artifact carries."""
        return self.model_dump_json().encode()

    def digest(self) -> bytes:
        """SHA-256 of `to_json`: a command stream names the machine it was made for by it."""
        return hashlib.sha256(self.to_json()).digest()


class BareArray(_Part):
    """A systolic array alone, without memories: enough to count cycles as SCALE-Sim does, not to run anything."""

    name: Annotated[str, pydantic.Field(min_length=1)]
    summary: str = ""
    clock_mhz: Annotated[float, pydantic.Field(gt=0)]
    array: Systolic
    energy: Energy

    @pydantic.model_validator(mode="after")
    def _one_memory(self) -> BareArray:
        if len(self.energy.memory) != 1:
            raise ValueError("energy.memory of a bare array has one entry, for all bytes it must move")
        return self


def presets() -> list[str]:
    """Names of the machines that come with graphopt, the bare arrays included."""
    return sorted(path.stem for path in HERE.glob("*.toml"))


def runnable() -> list[str]:
    """Names of the presets that a model can be compiled for."""
    return [name for name in presets() if isinstance(load_description(name), Machine)]


def load_machine(which: str) -> Machine:
    """The machine called `which`, or the one described in the TOML file at that path.

    Raises:
        UsageError: as `load_description`; or it is a bare array, which runs nothing.
    """
    described = load_description(which)
    if isinstance(described, BareArray):
        raise UsageError(
            f"{described.name!r} is a bare array: graphopt npu estimate counts its cycles, but it has no memories to "
            "run a model from. Add scratchpad, accumulators, vector, dma and memories to its description, or take "
            "another machine (graphopt npu machines)."
        )
    return described


def load_description(which: str) -> Machine | BareArray:
    """The preset called `which`, or the description in the TOML file at that path; without memories a bare array.

    Raises:
        UsageError: no such preset or file; not TOML; a key missing, unknown or out of range.
    """
    path = HERE / f"{which}.toml" if which in presets() else Path(which)
    if not path.is_file():
        raise UsageError(
            f"{which!r} is neither a machine nor a file: give one of {', '.join(presets())}, "
            "or the path of a hardware description (TOML)."
        )
    try:
        described = tomllib.loads(path.read_text(encoding="utf-8"))
        bare = not {"memories", "scratchpad_bytes", "accumulator_bytes", "vector", "dma"} & set(described)
        return (BareArray if bare else Machine).model_validate(described)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a TOML file: {error}.") from error
    except pydantic.ValidationError as error:
        what = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'machine'}: {e['msg']}" for e in error.errors())
        raise UsageError(f"{path} is not a hardware description: {what}.") from error


@lru_cache(maxsize=8)
def from_json(text: bytes) -> Machine:
    """The machine that `Machine.to_json` wrote."""
    return Machine.model_validate_json(text)
