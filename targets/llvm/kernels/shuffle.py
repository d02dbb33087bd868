"""Channel shuffle, channels-last: channel ``i * each + j`` of `groups` x `each` goes to ``j * groups + i``.

(X. Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", 2018.)
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from graphopt.targets.llvm.kernels.emit import function, loop, store


def make(rows: Sequence[int | str], groups: int, each: int, parallel: bool, name: str) -> tirx.PrimFunc:
    """``f(x, y)``: both [*rows, groups * each]."""
    with function(name) as (f, made):
        shape = [*rows, groups * each]
        x, y = f.argument("x", shape), f.argument("y", shape)
        x, y = f.matrix(x, shape), f.matrix(y, shape)
        with loop(f.product(rows), parallel=parallel) as row, loop(each) as j:
            for i in range(groups):
                store(y, x[row, i * each + j], [row, j * groups + i], 1)
    return made[0]
