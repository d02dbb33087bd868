"""Latency of the source model's nodes: what compiled kernels take, beside what onnxruntime takes for the same nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx

from graphopt.measure.ort_profile import ProfiledSession
from graphopt.measure.profile import Run, kernels, median, watch

if TYPE_CHECKING:
    from graphopt.artifact import Executable


@dataclasses.dataclass(frozen=True)
class NodeTime:
    """Source nodes that one of the two computes together: milliseconds of each (medians over runs).

    `ratio` is onnxruntime's time over ours, above 1 we are faster; None where one of them takes no time of its own.
    `kernels`: functions of the artifact that compute them.
    """

    nodes: list[str]
    ms: float
    onnxruntime_ms: float
    ratio: float | None
    kernels: list[str]


@dataclasses.dataclass(frozen=True)
class ByNode:
    """`rows` in the order of the source model. What belongs to no node is in `other_ms` and `onnxruntime_other_ms`:
    memory, layout changes, copies of inputs. `total_ms`: a whole run without the profiler.
    """

    rows: list[NodeTime]
    other_ms: float
    onnxruntime_other_ms: float
    total_ms: float
    threads: int


def profile_by_node(
    path: str | Path, *, threads: int = 1, feeds: str | Path | None = None, seconds: float = 3.0
) -> ByNode:
    """Profile the artifact at `path` and onnxruntime, with all its optimisations, on the model that it was made from.

    They take turns. Nodes that a kernel or an operator of onnxruntime computes together are one row: times can't be
    told apart within. Weights that the artifact was made without are random ones. What onnxruntime made of the model is
    matched with it as `graphopt diff` does.

    Raises:
        ArtifactError: the artifact can't be read or run here.
        DataError: the inputs don't fit.
        UsageError: so many threads can't be had, or it was not compiled for a CPU.
        ModelError: onnxruntime refuses the model.
    """
    from graphopt import artifact
    from graphopt.graph.absent import draw
    from graphopt.measure.artifact import artifact_feeds

    with artifact.load(path, threads=threads) as program:
        model = program.graph("before")
        draw(model)
        arrays = artifact_feeds(model, feeds)
        with ProfiledSession(model, threads) as session:
            runs, whole = watch(program, arrays, seconds, lambda: session.run(arrays))
            theirs = session.times()
        ours = by_call(program, runs)
    order = [str(node.name) for node in model.graph.all_nodes()]
    return _joined(order, ours, theirs, median(whole), threads)


Timed = Sequence[tuple[frozenset[str], float, str]]
"""Nodes, milliseconds and the name of what computes them."""


def by_call(program: Executable, runs: Sequence[Run]) -> Timed:
    """Source nodes, milliseconds and name of what `program` called in `runs`: of each call where that is known."""
    known = kernels(program.report)
    found: list[tuple[frozenset[str], float, str]] = []
    for name in runs[0].seconds:
        origin = known.get(name, {})
        calls = origin.get("calls", [])
        if calls and all(len(run.seconds[name]) == len(calls) for run in runs):
            for place, nodes in enumerate(calls):
                found.append((frozenset(nodes), 1e3 * median([run.seconds[name][place] for run in runs]), name))
        else:
            ms = 1e3 * median([sum(run.seconds[name]) for run in runs])
            found.append((frozenset(origin.get("nodes", ())), ms, name))
    return found


def _joined(order: Sequence[str], ours: Timed, theirs: Timed, total_ms: float, threads: int) -> ByNode:
    """Sets of nodes that overlap become one row."""
    place = {name: index for index, name in enumerate(order)}
    links: nx.Graph[str] = nx.Graph()
    for nodes, _, _ in [*ours, *theirs]:
        links.add_nodes_from(nodes)
        nx.add_path(links, sorted(nodes))
    home: dict[str, int] = {}
    parts = [sorted(part, key=lambda name: place.get(name, len(place))) for part in nx.connected_components(links)]
    for index, part in enumerate(parts):
        home.update(dict.fromkeys(part, index))
    mine, other = _sums(ours, home)
    yours, other_yours = _sums(theirs, home)
    named: dict[int, dict[str, None]] = {}
    for nodes, _, name in ours:
        if nodes:
            named.setdefault(home[min(nodes)], {})[name] = None
    rows = [
        NodeTime(
            part,
            mine.get(index, 0.0),
            yours.get(index, 0.0),
            yours[index] / mine[index] if mine.get(index) and yours.get(index) else None,
            list(named.get(index, ())),
        )
        for index, part in enumerate(parts)
    ]
    rows.sort(key=lambda row: min(place.get(name, len(place)) for name in row.nodes))
    return ByNode(rows, other, other_yours, total_ms, threads)


def _sums(times: Timed, home: Mapping[str, int]) -> tuple[dict[int, float], float]:
    sums: dict[int, float] = {}
    other = 0.0
    for nodes, ms, _ in times:
        if nodes:
            sums[home[min(nodes)]] = sums.get(home[min(nodes)], 0.0) + ms
        else:
            other += ms
    return sums, other
