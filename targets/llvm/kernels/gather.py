"""Rows picked by number: ``y[o, i, :] = x[o, index[i], :]``, embeddings above all."""

from __future__ import annotations

import dataclasses

from tvm import tirx

from graphopt.targets.llvm.kernels.emit import Isa, function, i64, load, loop, named, runs, store

Size = int | str


@dataclasses.dataclass(frozen=True)
class Gather:
    """x of `dims` along `axis`; the index's dimensions and integer type. Strings are open dimensions."""

    dims: tuple[Size, ...]
    axis: int
    index: tuple[Size, ...]
    dtype: str

    @property
    def output(self) -> list[Size]:
        """The result's dimensions."""
        return [*self.dims[: self.axis], *self.index, *self.dims[self.axis + 1 :]]

    @property
    def inner(self) -> int:
        """Elements of a row, which must be known."""
        total = 1
        for size in self.dims[self.axis + 1 :]:
            assert isinstance(size, int)
            total *= size
        return total


def make(p: Gather, isa: Isa, parallel: bool, index_first: bool, name: str = "gather") -> tirx.PrimFunc:
    """``f(x, index, y)``, or ``f(index, x, y)``. Negative numbers count from the end; what is beyond takes the last."""
    with function(name) as (f, made):
        order = [("i", list(p.index), p.dtype), ("x", list(p.dims), "float32")]
        given = {key: f.argument(key, shape, dtype) for key, shape, dtype in (order if index_first else order[::-1])}
        y = f.argument("y", p.output)
        outer, rows, count = f.product(p.dims[: p.axis]), f.dim(p.dims[p.axis]), f.product(p.index)
        x, index = f.view(given["x"], [outer, rows, p.inner]), f.view(given["i"], [count])
        y = f.view(y, [outer, count, p.inner])
        with loop(outer) as o, loop(count, parallel=parallel) as i:
            number = named(tirx.Cast("int64", index[i]))
            row = tirx.Min(tirx.Select(number < 0, number + rows, number), rows - 1)
            row = named(tirx.Max(row, i64(0)))
            runs(p.inner, isa.lanes, lambda at, n: store(y, load(x, [o, row, at], n), [o, i, at], n))
    return made[0]
