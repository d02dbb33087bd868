"""An order of a graph's nodes that depends on its structure alone, not on how a tool listed them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import onnx_ir as ir

from graphopt.graph.edit import subgraphs
from graphopt.graph.views import reads


def canonical_order(graph: ir.Graph) -> list[ir.Node]:
    """All nodes, depth first from the outputs back, of a node's operands the one with the longest way behind it first.

    So a chain stays together, and operands that were swapped come in the same order. Nodes in subgraphs stand
    before the node that holds them; nodes that lead to no output come last.
    """
    depth: dict[ir.Node, int] = {}
    producers: dict[ir.Node, list[ir.Node]] = {}
    for node in graph:
        some = [p for value in reads(node) if (p := value.producer()) is not None and p in depth]
        depth[node] = 1 + max((depth[p] for p in some), default=0)
        producers[node] = sorted(dict.fromkeys(some), key=lambda p: -depth[p])
    order: dict[ir.Node, None] = {}
    ends = [p for value in graph.outputs if (p := value.producer()) is not None]
    for end in [*ends, *graph]:
        stack = [(end, iter(producers.get(end, ())))] if end not in order else []
        while stack:
            node, rest = stack[-1]
            inner = next((p for p in rest if p not in order), None)
            if inner is not None:
                stack.append((inner, iter(producers[inner])))
                continue
            stack.pop()
            if node not in order:
                order.update(dict.fromkeys(n for sub in subgraphs(node) for n in canonical_order(sub)))
                order[node] = None
    return list(order)


def longest_rising(numbers: Sequence[int]) -> list[int]:
    """Indices of a longest strictly rising subsequence of `numbers` (Fredman 1975)."""
    tails: list[int] = []
    ends: list[int] = []
    previous: list[int] = []
    for index, number in enumerate(numbers):
        place = bisect_left(tails, number)
        previous.append(ends[place - 1] if place else -1)
        tails[place : place + 1] = [number]
        ends[place : place + 1] = [index]
    found: list[int] = []
    at = ends[-1] if ends else -1
    while at >= 0:
        found.append(at)
        at = previous[at]
    return found[::-1]
