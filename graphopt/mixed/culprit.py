"""Which node it is that a target fails with, where the error doesn't say.

TVM names nodes when it imports a model, and seldom when it compiles one. The first nodes of the model, in order, are
compiled instead of all, and their number halved like in a search by bisection: the smallest number that fails ends with
the culprit. That takes ``log2(nodes)`` compilations, most of them of few nodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import onnx_ir as ir

from graphopt.errors import LoweringError
from graphopt.mixed.partition import first

SECONDS = 60.0
"""How long a search may take; a compilation that has begun is finished."""


def culprit(model: ir.Model, lower: Callable[[ir.Model], object], seconds: float = SECONDS) -> ir.Node | None:
    """The last of the fewest first nodes of `model` that `lower` raises a `LoweringError` for.

    None if time runs out before one is found. `lower` is known to fail with all of them.
    """
    nodes = list(model.graph)
    works, fails = 0, len(nodes)
    until = time.monotonic() + seconds
    while fails - works > 1:
        if time.monotonic() > until:
            return None
        count = (works + fails) // 2
        try:
            lower(first(model, count))
        except LoweringError:
            fails = count
        else:
            works = count
    return nodes[fails - 1]
