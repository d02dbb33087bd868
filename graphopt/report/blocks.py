"""Blocks of nodes to collapse: by the folders of their names, as exporters write them."""

from __future__ import annotations

import re
from collections.abc import Sequence

SEPARATOR = re.compile(r"[/.]|::")
DEEPEST = 8
SMALLEST = 2


def folders(name: str) -> list[str]:
    """The folders of a name, outermost first: ``/layer1/0/Conv`` gives ``layer1``, ``layer1/0``.

    ``.`` and ``::`` separate like ``/``. A name that has none but ends in a number stands alone.
    """
    parts = [part for part in SEPARATOR.split(name) if part]
    return ["/".join(parts[: n + 1]) for n in range(min(len(parts) - 1, DEEPEST))]


def blocks(names: Sequence[str]) -> tuple[list[str], list[int], list[int]]:
    """Blocks with two members or more: their names, the parent of each (-1: none), and the innermost of each name.

    A block that holds the same as its parent is left out. A name that is itself a block's belongs to it
    (``conv2`` and ``conv2/pointwise``).
    """
    chains = [folders(name) for name in names]
    count: dict[str, int] = {}
    for chain in chains:
        for folder in chain:
            count[folder] = count.get(folder, 0) + 1
    own = ["/".join(part for part in SEPARATOR.split(name) if part) for name in names]
    for index, name in enumerate(own):
        if name in count:
            chains[index] = [*chains[index], name]
            for folder in chains[index][-1:]:
                count[folder] += 1
    titles: list[str] = []
    parents: list[int] = []
    known: dict[str, int] = {}
    members: list[int] = []
    for chain in chains:
        inside = -1
        for folder in chain:
            if count[folder] < SMALLEST or (inside >= 0 and count[folder] == count[titles[inside]]):
                continue
            if folder not in known:
                known[folder] = len(titles)
                titles.append(folder)
                parents.append(inside)
            inside = known[folder]
        members.append(inside)
    return titles, parents, members
