"""The container of a command stream: a program of one or more nodes for one machine.

Layout, little-endian: magic ``GNPU``, u16 version, u32 bytes of the header, u32 number of words, SHA-256 digest of the
machine, the header as JSON in UTF-8, the words, CRC-32 of all before it. The header has the sizes of the two DRAM
spaces, where in `ACTIVATIONS` inputs and outputs lie, and which words came from which source node.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from functools import lru_cache
from typing import NamedTuple

from graphopt.errors import ArtifactError
from graphopt.targets.npu.isa import WORD, End, Instruction, decode, encode

MAGIC = b"GNPU"
VERSION = 3
HEADER = struct.Struct("<4sHII32s")


class Place(NamedTuple):
    """Bytes of `ACTIVATIONS` that hold an input or an output."""

    offset: int
    size: int


class Span(NamedTuple):
    """Words from `first` on, up to the next span, compute the source node `node`."""

    first: int
    node: str


@dataclasses.dataclass(frozen=True)
class Stream:
    """A program. `sizes`: bytes of the `CONSTANTS` and `ACTIVATIONS` spaces."""

    node: str
    machine: bytes
    sizes: tuple[int, int]
    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    spans: tuple[Span, ...]
    instructions: tuple[Instruction, ...]

    def __hash__(self) -> int:
        return hash((self.node, self.sizes, len(self.instructions)))


def pack(stream: Stream) -> bytes:
    """The stream as bytes."""
    head = json.dumps([stream.node, stream.sizes, stream.inputs, stream.outputs, stream.spans]).encode()
    words = b"".join(map(encode, stream.instructions))
    body = HEADER.pack(MAGIC, VERSION, len(head), len(stream.instructions), stream.machine) + head + words
    return body + struct.pack("<I", zlib.crc32(body))


@lru_cache(maxsize=64)
def unpack(data: bytes) -> Stream:
    """Read what `pack` wrote.

    Raises:
        ArtifactError: not a stream, of another version, cut short, or a bit was flipped.
    """
    if len(data) < HEADER.size + 4 or data[:4] != MAGIC:
        raise ArtifactError("this is not an NPU command stream: its magic bytes are missing. Compile the model again.")
    _, version, head_size, count, machine = HEADER.unpack_from(data)
    if version != VERSION:
        raise ArtifactError(f"the NPU command stream has version {version}, this graphopt reads {VERSION}.")
    start = HEADER.size + head_size
    if len(data) != start + WORD * count + 4 or zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise ArtifactError("the NPU command stream is damaged: its checksum does not fit. Compile the model again.")
    try:
        words = (data[at : at + WORD] for at in range(start, start + WORD * count, WORD))
        instructions = tuple(map(decode, words))
        node, sizes, inputs, outputs, spans = json.loads(data[HEADER.size : start])
        stream = Stream(
            str(node),
            machine,
            (int(sizes[0]), int(sizes[1])),
            tuple(Place(int(at), int(size)) for at, size in inputs),
            tuple(Place(int(at), int(size)) for at, size in outputs),
            tuple(Span(int(first), str(name)) for first, name in spans),
            instructions,
        )
    except (ValueError, TypeError, IndexError, struct.error) as error:
        raise ArtifactError(f"the NPU command stream holds something that is no instruction: {error}.") from error
    if not instructions or not isinstance(instructions[-1], End):
        raise ArtifactError(f"the NPU command stream of {stream.node!r} does not end with an end instruction.")
    return stream
