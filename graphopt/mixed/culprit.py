"""Which node it is that a target fails with, where the error doesn't say.

TVM names nodes when it imports a model, and seldom when it compiles one. The first nodes of the model, in order, are
compiled instead of all: 1, 2, 4 and so on until they fail, then half way between; the smallest number that fails ends
with the culprit. That takes at most ``2 log2(nodes)`` compilations, most of them of few nodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import onnx_ir as ir

from graphopt.errors import LoweringError
from graphopt.mixed.partition import first

SECONDS = 60.0
"""How long a search may take. A compilation that by the pace of those before would not end in time is not begun."""


def culprit(model: ir.Model, lower: Callable[[ir.Model], object], seconds: float = SECONDS) -> ir.Node | None:
    """The last of the fewest first nodes of `model` that `lower` raises a `LoweringError` for.

    None if time runs out before one is found. `lower` is known to fail with all of them.
    """
    nodes = list(model.graph)
    works, fails = 0, len(nodes)
    until, pace = time.monotonic() + seconds, 0.0
    while fails - works > 1:
        count = min(max(2 * works, 1), (works + fails) // 2)
        began = time.monotonic()
        if began + pace * count > until:
            return None
        try:
            lower(first(model, count))
        except LoweringError:
            fails = count
            pace = max(pace, (time.monotonic() - began) / count)
        else:
            works = count
            pace = (time.monotonic() - began) / count
    return nodes[fails - 1]
