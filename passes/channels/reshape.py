"""How indices along the axes of a tensor become indices along the axes of its reshaped self."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from graphopt.passes.channels.axes import Axes, Dims, Ids

Sizes = Sequence["int | str"]


def reshaped(axes: Axes, dims: Dims, before: Sizes, after: Sizes, why: str) -> Dims:
    """The ids of the axes of a tensor of shape `before` after it took the shape `after`.

    Axes that merge (``[C, H, W] -> [C*H*W]``) repeat each id: a channel is H * W columns. An axis that splits
    (``[heads * size] -> [heads, size]``) goes by its outer part, the rest tied; where the axis is the second one of
    an image (``[N, groups * c, H, W]``, as channel shuffles do) by its inner part. What else there is stays fixed.
    """
    found: Dims = [None] * len(after)
    for old, new in _blocks(before, after):
        _reshape_block(axes, dims, before, after, old, new, found, why)
    return found


def _reshape_block(
    axes: Axes, dims: Dims, before: Sizes, after: Sizes, old: list[int], new: list[int], found: Dims, why: str
) -> None:
    carried = [i for i in old if dims[i] is not None]
    alike = _product(before, old) is not None and _product(before, old) == _product(after, new)
    if not alike or not carried or (len(old) > 1 and len(new) > 1):
        for i in carried:
            axes.fix(dims[i], why)
        return
    if len(old) == len(new) == 1:
        found[new[0]] = dims[old[0]]
        return
    if len(new) == 1:
        for i in carried[1:]:
            axes.fix(dims[i], why)
        shape = [int(before[i]) for i in old]
        found[new[0]] = _spread(dims[carried[0]], old.index(carried[0]), shape)
        return
    inner = old[0] == 1 and len(before) >= 4
    place = new[-1] if inner else new[0]
    rows = _array(dims[old[0]]).reshape([int(after[i]) for i in new])
    rows = np.moveaxis(rows, -1 if inner else 0, 0).reshape(int(after[place]), -1)
    for other in rows.T[1:]:
        axes.tie(rows[:, 0], other, why)
    found[place] = rows[:, 0]


def _spread(ids: Ids, place: int, shape: list[int]) -> Ids:
    aligned = _array(ids).reshape([-1 if i == place else 1 for i in range(len(shape))])
    return np.broadcast_to(aligned, shape).reshape(-1)


def _array(ids: Ids) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    assert ids is not None
    return ids


def _blocks(before: Sizes, after: Sizes) -> Iterator[tuple[list[int], list[int]]]:
    """Runs of axes, ones left out, that hold the same elements before and after; the shortest that there are.

    Symbolic axes match their like at the same end; what lies between two that do not is one run.
    """
    old = [i for i, n in enumerate(before) if n != 1]
    new = [i for i, n in enumerate(after) if n != 1]
    head: list[tuple[list[int], list[int]]] = []
    while old and new and isinstance(before[old[0]], str) and isinstance(after[new[0]], str):
        head.append(([old.pop(0)], [new.pop(0)]))
    yield from head
    while old or new:
        a, b = [old.pop(0)] if old else [], [new.pop(0)] if new else []
        while (size := _product(before, a)) != (other := _product(after, b)):
            if size is None or other is None:
                a, b, old, new = a + old, b + new, [], []
                break
            if size < other and old:
                a.append(old.pop(0))
            elif size > other and new:
                b.append(new.pop(0))
            else:
                a, b, old, new = a + old, b + new, [], []
                break
        yield a, b


def _product(sizes: Sizes, chosen: list[int]) -> int | None:
    numbers = [sizes[i] for i in chosen]
    return math.prod(n for n in numbers if isinstance(n, int)) if all(isinstance(n, int) for n in numbers) else None
