"""One run of an artifact in the order of its calls: the CPU's kernels as measured, and the NPU's streams."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import ArtifactError
from graphopt.measure.profile import BUILTIN, kernels, median
from graphopt.targets.npu.runtime import SYMBOL
from graphopt.targets.npu.stream import unpack

if TYPE_CHECKING:
    from graphopt.targets.npu.stream import Stream

RUNS = 5


@dataclasses.dataclass(frozen=True)
class Call:
    """A CPU kernel, or, with the number of its `stream`, the NPU. `ms`: measured, of a kernel; 0 of the NPU, whose
    time is simulated. `nodes`: of the source model."""

    name: str
    ms: float
    nodes: list[str]
    stream: int | None = None


def calls(path: Path, streams: Sequence[Stream], feeds: Mapping[str, Any] | None = None) -> list[Call]:
    """The calls of one run of the artifact at `path`, in order; kernels take their median over five runs on one thread.

    `feeds`: the inputs; without them random ones.

    Raises:
        ArtifactError: the artifact can't be run here, or calls a stream that is none of `streams`.
        DataError: the inputs don't fit.
    """
    from graphopt import artifact
    from graphopt.measure.artifact import artifact_feeds

    runs: list[list[tuple[str, float, int | None]]] = []
    with artifact.load(path, threads=1) as program:
        arrays = artifact_feeds(program.graph("before"), None) if feeds is None else feeds
        program.run(arrays)
        for _ in range(RUNS):
            watch = _Watch(streams)
            program.instrument(watch.around)
            try:
                program.run(arrays)
            finally:
                program.instrument(None)
            runs.append(watch.seen)
        known = kernels(program.report)
    if any(stream == -1 for _, _, stream in runs[0]):
        raise ArtifactError(f"{path} calls a command stream that its npu/*.asm files do not hold: compile it again.")
    return [
        Call(
            name, 0.0 if stream is not None else 1e3 * median([run[at][1] for run in runs]),
            list(known.get(name, {}).get("nodes", [])), stream,
        )
        for at, (name, _, stream) in enumerate(runs[0])
    ]  # fmt: skip


class _Watch:
    """What a run called: name, seconds, and of the NPU the number of the stream (-1: an unknown one)."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.seen: list[tuple[str, float, int | None]] = []
        self._streams, self._start = list(streams), 0.0

    def around(self, function: Any, name: str, before: bool, result: Any, *arguments: Any) -> None:
        """TVM's instrument."""
        if before:
            self._start = time.perf_counter()
        elif not name.startswith(BUILTIN):
            elapsed, stream = time.perf_counter() - self._start, None
            if name == SYMBOL:
                words = unpack(np.from_dlpack(arguments[1]).tobytes())
                stream = self._streams.index(words) if words in self._streams else -1
            self.seen.append((name, elapsed, stream))
