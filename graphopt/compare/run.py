"""Running both models, a part of the values at a time, so that memory stays bounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.compare.pairing import Twin, inputs, outputs, passes_between, twins
from graphopt.compare.report import Comparison, NodeError, OutputError
from graphopt.compare.rescaled import OTHERWISE, rescaled
from graphopt.data import Feeds
from graphopt.errors import DataError
from graphopt.noise import Sums
from graphopt.oracle import Session
from graphopt.passes.correct.walk import segment
from graphopt.progress import track

Array = np.ndarray[Any, Any]
Runner = Callable[[Mapping[str, Array]], Mapping[str, Array]]

AT_ONCE = 1 << 28
"""Bytes of values that are held for comparison at one time."""
UNKNOWN = 1 << 24
"""Bytes that a value of unknown shape is taken for."""


def compare(
    a: ir.Model,
    b: ir.Model,
    feeds: Sequence[Feeds],
    *,
    threshold_db: float = 30.0,
    compiled: Runner | None = None,
    at_once: int = AT_ONCE,
) -> Comparison:
    """Run `a` and `b`, both in normal form, on each of `feeds` (the inputs of `a`) in onnxruntime, and compare every
    value that both have (`twins`), but for those that a pass gave other numbers on purpose (`rescaled`).

    Values are taken a chunk at a time, at most `at_once` bytes of them, and each chunk runs the graphs anew up to its
    last value. `compiled` runs what was compiled from `b`; its outputs are compared too.

    Raises:
        ModelError: the models don't take the same inputs or give the same outputs, or onnxruntime refuses one.
        DataError: the feeds don't fit, or there are none.
    """
    if not feeds:
        raise DataError("there is nothing to run the models on: the data is empty.")
    for batch in feeds:
        for value in a.graph.inputs:
            if value.name not in batch:
                raise DataError(
                    f"the data lacks the model's input {value.name!r}; it has {', '.join(batch) or 'nothing'}."
                )
    renamed, results = inputs(a, b), outputs(a, b)
    pairs, left = twins(a, b)
    nodes = _compare_all(a, b, pairs, feeds, renamed, left, at_once)
    moved = rescaled(pairs, nodes)
    if moved:
        left |= {_computes(twin): OTHERWISE for twin in pairs if twin.new in moved}
        others = [twin for twin in pairs if twin.new not in moved]
        nodes = _compare_all(a, b, others, feeds, renamed, left, at_once)
    return Comparison(
        list(nodes.values()), _outputs(a, b, feeds, renamed, results, compiled), left, len(feeds), threshold_db
    )


def _compare_all(
    a: ir.Model,
    b: ir.Model,
    pairs: Sequence[Twin],
    feeds: Sequence[Feeds],
    renamed: Mapping[str, str],
    left: dict[str, str],
    at_once: int,
) -> dict[ir.Value, NodeError]:
    """The error of each of `pairs` that can be compared."""
    chunks = list(_chunks(pairs, _open_dims(a, feeds[0]), at_once))
    sums: dict[ir.Value, tuple[Sums, Sums]] = {}
    for chunk in track(chunks, "Comparing values") if len(chunks) > 1 else chunks:
        _compare_chunk(a, b, chunk, pairs, feeds, renamed, sums, left)
    known = {twin.new for twin in pairs if twin.firm}
    return {twin.new: _node(twin, *sums[twin.new], known) for twin in pairs if twin.new in sums}


def _node(twin: Twin, accumulated: Sums, alone: Sums, known: set[ir.Value]) -> NodeError:
    producer = twin.new.producer()
    assert producer is not None
    return NodeError(
        node=_computes(twin),
        op=producer.op_type,
        before=twin.before,
        value=str(twin.new.name),
        accumulated=accumulated.error(),
        alone=alone.error(),
        passes=passes_between(twin, known),
    )


def _computes(twin: Twin) -> str:
    producer = twin.new.producer()
    return str(twin.new.name if producer is None else producer.name)


def _open_dims(model: ir.Model, feeds: Feeds) -> dict[str, int]:
    """The sizes that `feeds` give to the symbolic dimensions of the inputs."""
    return {
        str(dim.value): size
        for value in model.graph.inputs
        for dim, size in zip(value.shape or (), feeds[str(value.name)].shape, strict=False)
        if not isinstance(dim, int)
    }


def _chunks(pairs: Sequence[Twin], sizes: Mapping[str, int], at_once: int) -> Iterator[list[Twin]]:
    """Runs of `pairs`, one at least, whose values take at most `at_once` bytes: in both models and in isolation."""
    chunk: list[Twin] = []
    total = 0
    for twin in pairs:
        size = 3 * _bytes(twin.old, sizes)
        if chunk and total + size > at_once:
            yield chunk
            chunk, total = [], 0
        chunk.append(twin)
        total += size
    if chunk:
        yield chunk


def _bytes(value: ir.Value, sizes: Mapping[str, int]) -> int:
    if value.shape is None or value.dtype is None:
        return UNKNOWN
    dims = [dim if isinstance(dim, int) else sizes.get(str(dim.value), 1) for dim in value.shape]
    return math.ceil(math.prod(dims) * value.dtype.bitwidth / 8)


def _compare_chunk(
    a: ir.Model,
    b: ir.Model,
    chunk: Sequence[Twin],
    pairs: Sequence[Twin],
    feeds: Sequence[Feeds],
    renamed: Mapping[str, str],
    sums: dict[ir.Value, tuple[Sums, Sums]],
    left: dict[str, str],
) -> None:
    """Add what `chunk` is off by to `sums`; what can't be compared after all goes to `left`."""
    names = [str(twin.new.name) for twin in chunk]
    origin = {**renamed, **{str(twin.new.name): str(twin.old.name) for twin in pairs}}
    part = segment(b, [str(twin.new.name) for twin in pairs if twin.firm], names)
    reads, computed = [str(v.name) for v in part.graph.inputs], [str(v.name) for v in part.graph.outputs]
    wanted = dict.fromkeys([*(str(twin.old.name) for twin in chunk), *(origin[name] for name in reads)])
    exact = _Part(a, [name for name in wanted if name not in feeds[0]])
    whole, cut = _Part(b, names), Session(part)
    for batch in feeds:
        want = {**batch, **exact.run(batch)}
        got = whole.run({new: batch[old] for new, old in renamed.items()})
        own = cut.run({name: want[origin[name]] for name in reads})
        for twin, name, output in zip(chunk, names, computed, strict=True):
            expected = want[str(twin.old.name)]
            if expected.shape != got[name].shape or expected.dtype.kind not in "fiub":
                left[_computes(twin)] = f"shape {list(expected.shape)} became {list(got[name].shape)}"
                sums.pop(twin.new, None)
                continue
            both = sums.setdefault(twin.new, (Sums(), Sums()))
            both[0].add(expected, got[name])
            both[1].add(expected, own[output])


class _Part:
    """The part of a model that computes some of its values; `run` takes the inputs of the whole."""

    def __init__(self, model: ir.Model, names: Sequence[str]) -> None:
        part = segment(model, [], names)
        self._reads = [str(v.name) for v in part.graph.inputs]
        self._session = Session(part) if names else None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self._session is None:
            return {}
        return self._session.run({name: feeds[name] for name in self._reads})


def _outputs(
    a: ir.Model,
    b: ir.Model,
    feeds: Sequence[Feeds],
    renamed: Mapping[str, str],
    results: Mapping[str, str],
    compiled: Runner | None,
) -> list[OutputError]:
    first, second = Session(a), Session(b)
    sums = {name: (Sums(), Sums()) for name in results}
    for batch in feeds:
        entries = {new: batch[old] for new, old in renamed.items()}
        want, got = first.run(batch), second.run(entries)
        built = None if compiled is None else compiled(entries)
        for new, old in results.items():
            if want[old].dtype.kind not in "fiub" or want[old].shape != got[new].shape:
                sums.pop(new, None)
                continue
            sums[new][0].add(want[old], got[new])
            if built is not None:
                sums[new][1].add(want[old], np.asarray(built[new]))
    return [
        OutputError(name, graph.error(), None if compiled is None else other.error())
        for name, (graph, other) in sums.items()
    ]
