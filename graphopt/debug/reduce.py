"""The smallest graph that still fails: nodes first, then shapes, then weights."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.debug.candidate import Candidate, carve, plain_weights
from graphopt.debug.checks import Check, Verdict
from graphopt.debug.ddmin import ddmin, window
from graphopt.debug.verdicts import Verdicts
from graphopt.errors import DataError, ModelError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]

SIZES = (1, 2, 3, 4, 8, 16, 32, 64, 128)
"""Sizes of inputs that are tried, the smallest first."""
SMALL = 1024
"""Bytes of an integer or boolean value that becomes a constant when it is cut off: a shape, an axis, a bound."""


@dataclasses.dataclass(frozen=True)
class Reduced:
    """`checks_run`: those of `checks` that `state` did not answer. `finished`: False when the time was up first. `how`:
    the failure, as the check calls it."""

    model: ir.Model
    nodes: int
    checks: int
    checks_run: int
    seconds: float
    finished: bool
    how: str
    message: str


class _TimeUpError(Exception):
    pass


def reduce(
    model: ir.Model,
    check: Check,
    *,
    seconds: float | None = None,
    state: Path | None = None,
    label: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> Reduced:
    """Shrink `model` to a small one that fails `check` in the same way; deterministic.

    Nodes: a window by halving, then `ddmin`; what cut nodes computed becomes an input (a small constant integer where
    it can be known). Then the outputs, the inputs' sizes, and the weights: those that don't matter become ones.

    Args:
        model: in normal form.
        check: calls it bad; see `graphopt.debug.checks`.
        seconds: stop after this time, and give the smallest found so far.
        state: a file of verdicts: a run with the same model and check goes on where the last one stopped.
        label: the check in words, by which `state` knows it.
        progress: called after every check with the phase, nodes and checks.

    Raises:
        UsageError: `model` does not fail, or `state` is of another model or check.
    """
    search = _Search(model, check, Verdicts(state, model, label), seconds, progress)
    finished = True
    try:
        search.run()
    except _TimeUpError:
        finished = False
    reduced = carve(model, search.best, search.known)
    assert reduced is not None
    return Reduced(
        reduced, len(search.best.nodes), search.checks, search.run_now, time.monotonic() - search.start,
        finished,
        search.failure.how, search.failure.message,
    )  # fmt: skip


class _Search:
    def __init__(
        self,
        model: ir.Model,
        check: Check,
        verdicts: Verdicts,
        seconds: float | None,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        self.model, self.check, self.verdicts = model, check, verdicts
        self.start, self.limit, self.progress = time.monotonic(), seconds, progress
        self.checks, self.run_now, self.phase = 0, 0, "nodes"
        self.known: Mapping[str, Array] = {}
        self.best = Candidate(tuple(range(len(model.graph))), tuple(str(v.name) for v in model.graph.outputs))
        self.failure = self.judge(self.best)
        if not self.failure.bad:
            why = self.failure.message if self.failure.bad is None else ""
            raise UsageError(f"the model passes the check, so there is nothing to reduce{why and f' ({why})'}.")

    def judge(self, candidate: Candidate) -> Verdict:
        """The check's verdict, or what it was in an earlier run."""
        key = candidate.key()
        verdict = self.verdicts.get(key)
        if verdict is None:
            if self.limit is not None and time.monotonic() - self.start > self.limit and self.run_now:
                raise _TimeUpError
            built = carve(self.model, candidate, self.known)
            verdict = Verdict(None) if built is None else self.check(built)
            self.run_now += 1
            self.verdicts.put(key, verdict)
        self.checks += 1
        if self.progress is not None:
            self.progress(self.phase, len(self.best.nodes), self.checks)
        return verdict

    def fails(self, candidate: Candidate) -> bool:
        """It fails in the same way; then it is the best one."""
        verdict = self.judge(candidate)
        same = bool(verdict.bad) and verdict.how == self.failure.how
        if same:
            self.best, self.failure = candidate, verdict
        return same

    def run(self) -> None:
        """All phases; nodes again once the others have made more of them needless."""
        self.known = _integers(self.model)
        self.nodes(first=True)
        self.outputs()
        self.nodes(first=False)
        self.phase = "shapes"
        self.shapes()
        self.phase = "weights"
        self.weights()

    def nodes(self, first: bool) -> None:
        """A window by halving, then delta debugging."""
        outputs = None if first else self.best.outputs

        def fails(nodes: list[int]) -> bool:
            return self.fails(dataclasses.replace(self.best, nodes=tuple(nodes), outputs=outputs))

        items = list(self.best.nodes)
        ddmin(window(items, fails) if first else items, fails)

    def outputs(self) -> None:
        """As few as show it."""
        built = carve(self.model, self.best, self.known)
        assert built is not None
        names = [str(v.name) for v in built.graph.outputs]
        ddmin(names, lambda some: self.fails(dataclasses.replace(self.best, outputs=tuple(some))))

    def shapes(self) -> None:
        """Every size of the inputs as small as it goes: all axes that share one together, then each by itself."""
        built = carve(self.model, self.best, self.known)
        assert built is not None
        axes = [(str(v.name), k, d) for v in built.graph.inputs for k, d in enumerate(v.shape or ())]
        together: dict[str, list[tuple[str, int]]] = {}
        for name, axis, dim in axes:
            together.setdefault(str(dim), []).append((name, axis))
        groups = list(together.values())
        groups += [[one] for group in groups if len(group) > 1 for one in group]
        now = {(name, axis): dim for name, axis, dim in axes}
        for group in groups:
            size = next((s for s in SIZES if s < _size(now[group[0]]) and self._resize(group, s)), None)
            if size is not None:
                now.update(dict.fromkeys(group, size))

    def _resize(self, group: list[tuple[str, int]], size: int) -> bool:
        others = [(n, k, s) for n, k, s in self.best.sizes if (n, k) not in group]
        sizes = tuple(sorted([*others, *((n, k, size) for n, k in group)]))
        return self.fails(dataclasses.replace(self.best, sizes=sizes))

    def weights(self) -> None:
        """As many as can be become ones."""
        built = carve(self.model, self.best, self.known)
        assert built is not None
        names = plain_weights(built)

        def fails(kept: list[str]) -> bool:
            ones = tuple(name for name in names if name not in kept)
            return self.fails(dataclasses.replace(self.best, ones=ones))

        if names and not fails([]):
            ddmin(names, fails)


def _size(dim: int | ir.SymbolicDim) -> float:
    return dim if isinstance(dim, int) else float("inf")


def _integers(model: ir.Model) -> dict[str, Array]:
    """Small integer and boolean values, as they are on random inputs; empty when the model does not run."""
    from graphopt import oracle
    from graphopt.data.random import random_feeds

    wanted = [
        str(v.name)
        for node in model.graph
        for v in node.outputs
        if v.name and v.dtype is not None and (v.dtype.is_integer() or v.dtype.name == "BOOL")
    ]
    try:
        found = oracle.run(model, random_feeds(model), wanted) if wanted else {}
    except (ModelError, DataError):
        return {}
    return {name: array for name, array in found.items() if array.nbytes <= SMALL}
