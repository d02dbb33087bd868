"""The text form of a command stream: header lines, then ``mnemonic field=value ... [wait=...] [signal=...]``.

``wait=exec+store*2`` takes a token of the array's queue and two of the store queue. A line ``.node NAME`` says that
what follows computes that source node. Empty lines and ``#`` comments are skipped.
"""

from __future__ import annotations

from graphopt.errors import ArtifactError
from graphopt.targets.npu.isa import FIELDS, KINDS, QUEUES, TOKENS, Word, tokens
from graphopt.targets.npu.stream import Place, Span, Stream

BY_MNEMONIC = {kind.MNEMONIC: kind for kind in KINDS.values()}


def disassemble(stream: Stream) -> str:
    """The stream as text; `assemble` reads it back."""
    lines = [
        f".stream {stream.node}",
        f".machine {stream.machine.hex()}",
        f".sizes {stream.sizes[0]} {stream.sizes[1]}",
        *(f".input {place.offset} {place.size}" for place in stream.inputs),
        *(f".output {place.offset} {place.size}" for place in stream.outputs),
    ]
    starts = {span.first: span.node for span in stream.spans}
    for number, word in enumerate(stream.instructions):
        if number in starts:
            lines.append(f".node {starts[number]}")
        lines.append(line(word))
    return "\n".join([*lines, ""])


def line(word: Word) -> str:
    """One instruction as text."""
    parts = [word.MNEMONIC]
    if word.flags:
        parts.append(f"flags={word.flags:#x}")
    parts += [f"{name}={getattr(word, name)}" for name in FIELDS[type(word)]]
    parts += [f"{what}={_counts(bits)}" for what, bits in (("wait", word.wait), ("signal", word.signal)) if bits]
    return " ".join(parts)


def assemble(text: str) -> Stream:
    """The stream that `disassemble` wrote, or a person.

    Raises:
        ArtifactError: naming the line that is no instruction or lacks a field.
    """
    header: dict[str, str] = {}
    places: dict[str, list[Place]] = {".input": [], ".output": []}
    spans: list[Span] = []
    words: list[Word] = []
    for number, full in enumerate(text.splitlines(), 1):
        word, _, rest = full.strip().partition(" ")
        try:
            if word in places:
                offset, size = map(int, rest.split())
                places[word].append(Place(offset, size))
            elif word == ".node":
                spans.append(Span(len(words), rest))
            elif word.startswith("."):
                header[word] = rest
            elif word and not word.startswith("#"):
                words.append(_word(word, rest))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"line {number} of the NPU assembly is no instruction ({error}): {full!r}.") from error
    try:
        constants, activations = map(int, header[".sizes"].split())
        machine = bytes.fromhex(header[".machine"])
        inputs, outputs = tuple(places[".input"]), tuple(places[".output"])
        return Stream(header[".stream"], machine, (constants, activations), inputs, outputs, tuple(spans), tuple(words))
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"the NPU assembly needs .stream, .machine and .sizes: {error}.") from error


def _word(mnemonic: str, rest: str) -> Word:
    pairs = dict(pair.split("=", 1) for pair in rest.split())
    sync = {what: _bits(pairs.pop(what)) for what in ("wait", "signal") if what in pairs}
    return BY_MNEMONIC[mnemonic](**{key: int(value, 0) for key, value in pairs.items()}, **sync)


def _counts(bits: int) -> str:
    return "+".join(
        QUEUES[queue] + (f"*{count}" if count > 1 else "") for queue, count in enumerate(tokens(bits)) if count
    )


def _bits(text: str) -> int:
    bits = 0
    for part in text.split("+"):
        queue, _, count = part.partition("*")
        given = int(count or 1)
        if not 1 <= given <= TOKENS:
            raise ValueError(f"a word has 1 to {TOKENS} tokens of a queue, not {given}")
        bits |= given << 3 * QUEUES.index(queue)
    return bits
