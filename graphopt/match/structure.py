"""Matching by structure: names may all have changed."""

from __future__ import annotations

import functools
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.match.named import kind
from graphopt.match.order import canonical_order, longest_rising
from graphopt.match.traits import Looks, around, digests, family, histories, look, shapes

CELLS = 2 * 10**8
"""Pairs of nodes that one alignment weighs at most; a longer stretch is cut in two."""
FAMILY, LOOK, SHAPES, AROUND, VALUES, RESULT = 4, 2, 3, 2, 6, 2
"""What it counts that two nodes have the operator, the attributes, the shapes of constants, the nodes next to them,
the values of constants, and the type of the results in common.
"""


def by_structure(
    before: ir.Graph, after: ir.Graph, olds: list[ir.Node], news: list[ir.Node], pairs: dict[ir.Node, ir.Node]
) -> None:
    """Pair those of `olds` and `news` that are left, in three steps; the pairs known already hold.

    1. Nodes with the same past and future, up to the graph's ends or to nodes already matched.
    2. Between those, both graphs as sequences in canonical order, aligned so that the pairs have most in common
       (Needleman and Wunsch 1970, gaps for nothing): finds its way past nodes put in or left out everywhere.
    3. Nodes of the same operator in the same slot of a matched neighbour.
    """
    left, right = rest(olds, news, pairs)
    if not left or not right:
        return
    marks = {node: index for index, pair in enumerate(pairs.items()) for node in pair}
    looks = {node: look(node) for graph in (before, after) for node in graph.all_nodes()}
    ahead_old, back_old = histories(before, looks, marks)
    ahead_new, back_new = histories(after, looks, marks)
    back = {**back_old, **back_new}
    both: dict[ir.Node, Hashable] = {node: (label, back[node]) for node, label in {**ahead_old, **ahead_new}.items()}
    pairs.update(_alike(left, right, both, pairs))
    left, right = rest(olds, news, pairs)
    if not left or not right:
        return
    traits = _traits([before, after], looks, {*left, *right})
    for some, others in _stretches(canonical_order(before), canonical_order(after), {*left, *right}, pairs):
        pairs.update(_align(some, others, traits))
    _spread({*left} - {*pairs}, {*right} - {*pairs.values()}, pairs)


def rest(
    olds: Iterable[ir.Node], news: Iterable[ir.Node], pairs: dict[ir.Node, ir.Node]
) -> tuple[list[ir.Node], list[ir.Node]]:
    """What of both sides is not in a pair."""
    taken = set(pairs.values())
    return [n for n in olds if n not in pairs], [n for n in news if n not in taken]


def _alike(
    olds: list[ir.Node], news: list[ir.Node], labels: Mapping[ir.Node, Hashable], pairs: Mapping[ir.Node, ir.Node]
) -> dict[ir.Node, ir.Node]:
    """Nodes of equal label where both sides have as many of them; of these the one that reads what was matched to what
    the other reads, else the next. `olds` come after what they read.
    """
    right = Counter(labels[node] for node in news)
    even = {label for label, count in Counter(labels[node] for node in olds).items() if count == right[label]}
    waiting: dict[Hashable, deque[ir.Node]] = {}
    for new in news:
        for key in (labels[new], (labels[new], _producers(new))):
            waiting.setdefault(key, deque()).append(new)
    found: dict[ir.Node, ir.Node] = {}
    taken: set[ir.Node] = set()
    for old in (old for old in olds if labels[old] in even):
        read = tuple(p if p is None else found.get(p) or pairs.get(p) for p in _producers(old))
        for key in ((labels[old], read), labels[old]):
            queue = waiting.get(key, deque())
            while queue and queue[0] in taken:
                queue.popleft()
            if queue:
                found[old] = queue.popleft()
                taken.add(found[old])
                break
    return found


def _producers(node: ir.Node) -> tuple[ir.Node | None, ...]:
    return tuple(None if value is None else value.producer() for value in node.inputs)


def _stretches(
    olds: list[ir.Node], news: list[ir.Node], open_: set[ir.Node], pairs: dict[ir.Node, ir.Node]
) -> Iterator[tuple[list[ir.Node], list[ir.Node]]]:
    """What is open on both sides between one pair and the next, of the pairs that are in the same order in both."""
    place = {node: index for index, node in enumerate(news)}
    fixed = [(index, place[pairs[old]]) for index, old in enumerate(olds) if old in pairs and pairs[old] in place]
    rising = [fixed[i] for i in longest_rising([j for _, j in fixed])]
    i = j = 0
    for end, stop in [*rising, (len(olds), len(news))]:
        yield from _halves([n for n in olds[i:end] if n in open_], [n for n in news[j:stop] if n in open_])
        i, j = end + 1, stop + 1


def _halves(olds: list[ir.Node], news: list[ir.Node]) -> Iterator[tuple[list[ir.Node], list[ir.Node]]]:
    if len(olds) * len(news) <= CELLS:
        if olds and news:
            yield olds, news
        return
    a, b = len(olds) // 2, len(news) // 2
    yield from _halves(olds[:a], news[:b])
    yield from _halves(olds[a:], news[b:])


Column = np.ndarray[Any, Any]
Traits = Mapping[ir.Node, tuple[int, ...]]


def _traits(graphs: Iterable[ir.Graph], looks: Looks, wanted: set[ir.Node]) -> Traits:
    """For each node a number for each trait, equal for equal ones; -1 where a node has nothing to compare."""
    numbers: dict[Hashable, int] = {}

    def number(trait: Hashable) -> int:
        return -1 if trait is None else numbers.setdefault(trait, len(numbers))

    found: dict[ir.Node, tuple[int, ...]] = {}
    for graph in graphs:
        near = around(graph, looks)
        for node in (node for node in near if node in wanted):
            traits = (family(node), looks[node], shapes(node) or None, near[node], digests(node), _result(node))
            found[node] = tuple(number(trait and (index, trait)) for index, trait in enumerate(traits))
    return found


def _result(node: ir.Node) -> Hashable:
    return tuple((str(value.dtype), str(value.shape)) for value in node.outputs)


def _align(olds: list[ir.Node], news: list[ir.Node], traits: Traits) -> dict[ir.Node, ir.Node]:
    """The pairs of an alignment of greatest score; only nodes of one family are paired."""
    columns = np.array([traits[node] for node in news], np.int64).T

    @functools.lru_cache(maxsize=64)
    def scored(own: tuple[int, ...]) -> Column:
        return _score(own, columns)

    best = np.zeros(len(news) + 1, np.int32)
    taken: list[Column] = []
    passed: list[Column] = []
    for old in olds:
        score = scored(traits[old])
        diagonal = best[:-1] + score
        row = np.maximum.accumulate(np.maximum(diagonal, best[1:]))
        taken.append(np.packbits((row == diagonal) & (score > 0)))
        passed.append(np.packbits(row == best[1:]))
        best[1:] = row
    pairs: dict[ir.Node, ir.Node] = {}
    i, j = len(olds) - 1, len(news) - 1
    while i >= 0 and j >= 0:
        if _bit(taken[i], j):
            pairs[olds[i]] = news[j]
            i, j = i - 1, j - 1
        elif _bit(passed[i], j):
            i -= 1
        else:
            j -= 1
    return pairs


def _score(own: tuple[int, ...], columns: Column) -> Column:
    score = np.zeros(columns.shape[1], np.int32)
    for worth, trait, column in zip((FAMILY, LOOK, SHAPES, AROUND, VALUES, RESULT), own, columns, strict=True):
        if trait >= 0:
            score += worth * (column == trait)
    score[columns[0] != own[0]] = -1
    return score


def _bit(packed: Column, index: int) -> bool:
    return bool(packed[index >> 3] >> (7 - (index & 7)) & 1)


def _spread(olds: set[ir.Node], news: set[ir.Node], pairs: dict[ir.Node, ir.Node]) -> None:
    """Pair neighbours of pairs as long as there are any."""
    work = list(pairs.items())
    while work and olds and news:
        for old, new in _neighbours(*work.pop()):
            if old in olds and new in news and kind(old) == kind(new):
                pairs[old] = new
                olds.discard(old)
                news.discard(new)
                work.append((old, new))


def _neighbours(old: ir.Node, new: ir.Node) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Producers in the same slot, and consumers that are the only ones of their operator."""
    for a, b in zip(old.inputs, new.inputs, strict=False):
        some, other = (None if value is None else value.producer() for value in (a, b))
        if some is not None and other is not None:
            yield some, other
    for a, b in zip(old.outputs, new.outputs, strict=False):
        left, right = _single(a.consumers()), _single(b.consumers())
        yield from ((left[key], right[key]) for key in left if key in right)


def _single(nodes: Iterable[ir.Node], key: Callable[[ir.Node], Hashable] = kind) -> dict[Hashable, ir.Node]:
    found: dict[Hashable, list[ir.Node]] = {}
    for node in dict.fromkeys(nodes):
        found.setdefault(key(node), []).append(node)
    return {name: some[0] for name, some in found.items() if len(some) == 1}
