"""Places the nodes of a directed graph in rows: longest-path rows, rows ordered by barycenters, then straightened.

The method of Sugiyama, Tagawa and Toda, "Methods for Visual Understanding of Hierarchical System Structures" (1981):

1. Each node's row is the longest path that leads to it; a node with few inputs then sinks towards its readers.
   An edge that closes a cycle is left out of account.
2. An edge over several rows becomes a chain of points, one a row. The longest edges, `CROWD` points a node and more,
   get none: they are drawn as they come, so that the work grows linearly.
3. Sweeps down and up order each row by the mean position of its neighbours.
4. Sweeps move each row to where its neighbours' mean is, at least a width apart: minimise ``sum w (x - wanted)^2``
   subject to ``x[i+1] - x[i] >= gap``, by pooling adjacent violators.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

NODE, POINT = 1.0, 0.25
"""Widths in a row of a node, and of a point of an edge that passes by; in widths of a node with its margin."""
SWEEPS, CROWD = 8, 4
"""Sweeps over the rows; points of passing edges per node at most."""
FIRM, STRAIGHT = 1e4, 8.0
"""How much more a node holds its place than a point, lest every residual edge push a tower aside; and a point between
points than one beside a node."""

Edge = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Layout:
    """`x` (in widths of a node) and `row` of each node, and for each edge the (x, row) it passes between its ends."""

    x: list[float]
    row: list[int]
    routes: list[list[tuple[float, int]]]


def place(count: int, edges: Sequence[Edge]) -> Layout:
    """Lay out nodes 0 to `count` - 1, whose order breaks ties; the same for the same graph.

    Linear in nodes and edges but for sorting within rows. Edges to oneself are allowed and have no route.
    """
    forward = _acyclic(count, edges)
    row = _rows(count, forward)
    graph = _Points(count, row, [(a, b) if row[a] <= row[b] else (b, a) for a, b in edges])
    graph.order()
    graph.straighten()
    x = graph.x
    low = min(x, default=0.0)
    return Layout(
        [v - low for v in x[:count]], row, [[(x[p] - low, graph.row[p]) for p in route] for route in graph.routes]
    )


def _acyclic(count: int, edges: Sequence[Edge]) -> list[Edge]:
    """The edges without those that close a cycle, in an order that keeps to the nodes' own."""
    after: list[list[int]] = [[] for _ in range(count)]
    waiting = [0] * count
    for a, b in edges:
        if a != b:
            after[a].append(b)
            waiting[b] += 1
    rank = [-1] * count
    done = first = 0
    ready = [n for n in range(count) if not waiting[n]]
    while done < count:
        if not ready:  # only cycles are left: enter the next one at its first node
            while rank[first] >= 0:
                first += 1
            ready = [first]
        for node in ready:  # grows while it is walked
            if rank[node] >= 0:
                continue
            rank[node] = done
            done += 1
            for reader in after[node]:
                waiting[reader] -= 1
                if not waiting[reader] and rank[reader] < 0:
                    ready.append(reader)
        ready = []
    kept = [(a, b) for a, b in edges if rank[a] < rank[b]]
    return sorted(kept, key=lambda edge: rank[edge[0]])


def _rows(count: int, edges: Sequence[Edge]) -> list[int]:
    """`edges` are in topological order of their first node."""
    row, ins, outs = [0] * count, [0] * count, [0] * count
    for a, b in edges:
        row[b] = max(row[b], row[a] + 1)
        ins[b] += 1
        outs[a] += 1
    room = [1 << 30] * count
    for a, b in reversed(edges):  # all edges that leave b come later than this one, so that b has sunk already
        if outs[b] > ins[b] and room[b] < 1 << 30:
            row[b] = max(row[b], room[b])
        room[a] = min(room[a], row[b] - 1)
    for node in range(count):
        if outs[node] > ins[node] and room[node] < 1 << 30:
            row[node] = max(row[node], room[node])
    return row


class _Points:
    """Nodes and points of edges in rows: what the sweeps work on. Points come after the nodes."""

    def __init__(self, count: int, row: list[int], edges: list[Edge]) -> None:
        self.row = list(row)
        self.routes: list[list[int]] = [[] for _ in edges]
        self.width = [NODE] * count
        self.above: list[list[int]] = [[] for _ in range(count)]
        self.below: list[list[int]] = [[] for _ in range(count)]
        spare = CROWD * count + 200
        for index in sorted(range(len(edges)), key=lambda index: row[edges[index][1]] - row[edges[index][0]]):
            a, b = edges[index]
            span = row[b] - row[a]
            if span == 0 or span - 1 > spare:
                continue
            spare -= span - 1
            self.routes[index] = [self._point(r) for r in range(row[a] + 1, row[b])]
            chain = [a, *self.routes[index], b]
            for upper, lower in pairwise(chain):
                self.below[upper].append(lower)
                self.above[lower].append(upper)
        self.rows: list[list[int]] = [[] for _ in range(max(self.row, default=-1) + 1)]
        self.count = count
        for node in self._walk():
            self.rows[self.row[node]].append(node)
        self.x = [0.0] * len(self.row)

    def _point(self, row: int) -> int:
        self.row.append(row)
        self.width.append(POINT)
        self.above.append([])
        self.below.append([])
        return len(self.row) - 1

    def _walk(self) -> list[int]:
        """Depth first from the top: what hangs together stands together to begin with."""
        seen = [False] * len(self.row)
        found: list[int] = []
        for start in sorted(range(self.count), key=lambda n: (self.row[n], n)):
            stack = [start]
            while stack:
                node = stack.pop()
                if not seen[node]:
                    seen[node] = True
                    found.append(node)
                    stack.extend(reversed(self.below[node]))
        return found

    def order(self) -> None:
        place = [0.0] * len(self.row)
        for row in self.rows:
            self._number(row, place)
        for sweep in range(SWEEPS):
            down = sweep % 2 == 0
            near = self.above if down else self.below
            for row in self.rows if down else reversed(self.rows):
                if len(row) > 1:
                    wanted = {n: sum(place[m] for m in near[n]) / len(near[n]) if near[n] else place[n] for n in row}
                    row.sort(key=wanted.__getitem__)
                    self._number(row, place)

    def _number(self, row: list[int], place: list[float]) -> None:
        """Positions about 0, so that rows of different lengths compare."""
        for index, node in enumerate(row):
            place[node] = index - (len(row) - 1) / 2

    def straighten(self) -> None:
        x = self.x
        for row in self.rows:
            at = -sum(self.width[n] for n in row) / 2
            for node in row:
                x[node] = at + self.width[node] / 2
                at += self.width[node]
        for sweep in range(SWEEPS):
            down = sweep % 2 == 0
            first, second = (self.above, self.below) if down else (self.below, self.above)
            for row in self.rows if down else reversed(self.rows):
                self._settle(row, first, second, sweep)

    def _settle(self, row: list[int], first: list[list[int]], second: list[list[int]], sweep: int) -> None:
        x, wanted, weight = self.x, list[float](), list[float]()
        for node in row:
            near = first[node] if sweep < SWEEPS - 2 else [*first[node], *second[node]]
            point = node >= self.count
            alike = [m for m in near if (m >= self.count) == point]
            wanted.append(sum(x[m] for m in alike or near) / len(alike or near) if near else x[node])
            weight.append((STRAIGHT if alike else 1.0) if point else FIRM * len(alike) + 1.0)
        gaps = [0.0]
        for left, right in pairwise(row):
            gaps.append(gaps[-1] + (self.width[left] + self.width[right]) / 2)
        for node, at, gap in zip(row, _pool(wanted, weight, gaps), gaps, strict=True):
            x[node] = at + gap


def _pool(wanted: list[float], weight: list[float], gaps: list[float]) -> list[float]:
    """Non-decreasing values nearest to ``wanted - gaps`` in weighted least squares (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for target, mass, gap in zip(wanted, weight, gaps, strict=True):
        mean, length = target - gap, 1
        while blocks and blocks[-1][0] > mean:
            other, heavy, more = blocks.pop()
            mean = (mean * mass + other * heavy) / (mass + heavy)
            mass, length = mass + heavy, length + more
        blocks.append((mean, mass, length))
    return [mean for mean, _, length in blocks for _ in range(length)]
