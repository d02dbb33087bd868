"""The container of a command stream, and its text form.

Layout, little-endian: magic ``GNPU``, u16 version, u16 length of the node's name, u32 number of words, u32 sizes of
the three DRAM spaces, SHA-256 digest of the machine, the name in UTF-8, the words, CRC-32 of all before it.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from functools import lru_cache

from graphopt.errors import ArtifactError
from graphopt.targets.npu.isa import KINDS, WORD, End, Instruction, decode, encode

MAGIC = b"GNPU"
VERSION = 1
HEADER = struct.Struct("<4sHHI3I32s")
BY_MNEMONIC = {kind.MNEMONIC: kind for kind in KINDS.values()}


@dataclasses.dataclass(frozen=True)
class Stream:
    """The program of one node for one machine. `sizes`: bytes of the constants, input and output spaces."""

    node: str
    machine: bytes
    sizes: tuple[int, int, int]
    instructions: tuple[Instruction, ...]


def pack(stream: Stream) -> bytes:
    """The stream as bytes."""
    name = stream.node.encode()[:65535]
    head = HEADER.pack(MAGIC, VERSION, len(name), len(stream.instructions), *stream.sizes, stream.machine)
    body = head + name + b"".join(map(encode, stream.instructions))
    return body + struct.pack("<I", zlib.crc32(body))


@lru_cache(maxsize=1024)
def unpack(data: bytes) -> Stream:
    """Read what `pack` wrote.

    Raises:
        ArtifactError: not a stream, of another version, cut short, or a bit was flipped.
    """
    if len(data) < HEADER.size + 4 or data[:4] != MAGIC:
        raise ArtifactError("this is not an NPU command stream: its magic bytes are missing. Compile the model again.")
    _, version, name_size, count, *sizes, machine = HEADER.unpack_from(data)
    if version != VERSION:
        raise ArtifactError(f"the NPU command stream has version {version}, this graphopt reads {VERSION}.")
    start = HEADER.size + name_size
    if len(data) != start + WORD * count + 4 or zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise ArtifactError("the NPU command stream is damaged: its checksum does not fit. Compile the model again.")
    try:
        words = (data[at : at + WORD] for at in range(start, start + WORD * count, WORD))
        instructions = tuple(map(decode, words))
        node = data[HEADER.size : start].decode()
    except ValueError as error:
        raise ArtifactError(f"the NPU command stream holds a word that is no instruction: {error}.") from error
    if not instructions or not isinstance(instructions[-1], End):
        raise ArtifactError(f"the NPU command stream of {node!r} does not end with an end instruction.")
    return Stream(node, machine, (sizes[0], sizes[1], sizes[2]), instructions)


def disassemble(stream: Stream) -> str:
    """The stream as text: four header lines, then one instruction per line as ``mnemonic field=value ...``."""
    head = [
        f".node {stream.node}",
        f".machine {stream.machine.hex()}",
        f".sizes {' '.join(map(str, stream.sizes))}",
    ]
    lines = (
        " ".join([i.MNEMONIC, *(f"{key}={value}" for key, value in dataclasses.asdict(i).items())])
        for i in stream.instructions
    )
    return "\n".join([*head, *lines, ""])


def assemble(text: str) -> Stream:
    """The stream that `disassemble` wrote, or a person. Empty lines and ``#`` comments are skipped.

    Raises:
        ArtifactError: naming the line that is no instruction or lacks a field.
    """
    header: dict[str, str] = {}
    instructions: list[Instruction] = []
    for number, line in enumerate(text.splitlines(), 1):
        word, _, rest = line.strip().partition(" ")
        if not word or word.startswith("#"):
            continue
        if word.startswith("."):
            header[word] = rest
            continue
        try:
            pairs = (pair.split("=", 1) for pair in rest.split())
            instructions.append(BY_MNEMONIC[word](**{key: int(value, 0) for key, value in pairs}))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"line {number} of the NPU assembly is no instruction ({error}): {line!r}.") from error
    try:
        constants, source, result = map(int, header[".sizes"].split())
        return Stream(
            header[".node"], bytes.fromhex(header[".machine"]), (constants, source, result), tuple(instructions)
        )
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"the NPU assembly needs .node, .machine and .sizes: {error}.") from error
