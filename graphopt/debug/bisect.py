"""Which pass broke the model, and which of its changes: the first after which it is bad."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphopt.base import Context, Pass, Report
from graphopt.debug.changes import Change, Side
from graphopt.debug.checks import Check, Verdict, keeps
from graphopt.debug.hybrid import hybrid, joined_changes
from graphopt.errors import ModelError, PassError, UsageError
from graphopt.graph.listing import node_line
from graphopt.graph.shapes import infer_shapes

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Feeds = Mapping[str, np.ndarray[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Application:
    """The first change of a pass after which the model is bad.

    `number` of `total` changes, from inputs to outputs; `last` is greater than `number` where the ones between can't
    be told apart. `alone`: whether it is bad without the changes before it (None: can't be told). `old` and `new`: the
    nodes that went and came, as `graphopt.graph.listing` shows them. `says`: the pass's own words about them.
    """

    number: int
    last: int
    total: int
    alone: bool | None
    old: list[str]
    new: list[str]
    says: list[str]
    good: ir.Model = dataclasses.field(repr=False)
    bad: ir.Model = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Culprit:
    """The first bad pass. `position` counts from 1. `application`: None when the pass crashed, or can't be split."""

    pass_: Pass
    position: int
    total: int
    message: str
    application: Application | None
    checks: int
    before: ir.Model = dataclasses.field(repr=False)
    after: ir.Model | None = dataclasses.field(repr=False)


def bisect(
    model: ir.Model,
    passes: Sequence[Pass],
    feeds: Feeds,
    check: Check | None = None,
    context: Context | None = None,
) -> Culprit | None:
    """The first pass that makes `model` bad, and the first of its changes that does; None when none does.

    Without a `check`, each pass is judged by what it declares to preserve, on `feeds`, in onnxruntime. With one, the
    model must be good before the passes; the pass is found by halving, as the changes within it are: where badness
    comes and goes, the answer is one place where it comes.

    Raises:
        UsageError: `model` is bad as it is, or can't be judged.
    """
    counter = _Counter()
    found = (
        _by_promise(model, passes, feeds, context, counter)
        if check is None
        else _by_check(model, passes, counter.count(check), context)
    )
    if found is None:
        return None
    at, before, after, report, verdict, judge = found
    application = None
    if after is not None and judge is not None:
        application = _first_change(before, after, report, judge, verdict.how, passes[at], feeds)
    return Culprit(passes[at], at + 1, len(passes), verdict.message, application, counter.calls, before, after)


_Found = tuple[int, "ir.Model", "ir.Model | None", Report, Verdict, "Check | None"]


class _Counter:
    calls: int = 0

    def count(self, check: Check) -> Check:
        """`check`, counted."""

        def counted(model: ir.Model) -> Verdict:
            self.calls += 1
            return check(model)

        return counted


def _step(model: ir.Model, pass_: Pass, context: Context | None) -> tuple[ir.Model, Report]:
    from graphopt.pipeline import run

    result = run(model, [pass_], context)
    return result.model, result.steps[0].report


def _by_promise(
    model: ir.Model, passes: Sequence[Pass], feeds: Feeds, context: Context | None, counter: _Counter
) -> _Found | None:
    for at, pass_ in enumerate(passes):
        try:
            after, report = _step(model, pass_, context)
        except PassError as error:
            return at, model, None, Report(), Verdict(True, "crash", str(error)), None
        judge = counter.count(keeps(model, pass_, feeds))
        verdict = judge(after)
        if verdict.bad:
            return at, model, after, report, verdict, judge
        model = after
    return None


def _by_check(model: ir.Model, passes: Sequence[Pass], check: Check, context: Context | None) -> _Found | None:
    verdict = check(model)
    if verdict.bad is not False:
        what = "is bad" if verdict.bad else "can't be judged"
        raise UsageError(f"the model {what} before any pass has run: {verdict.message or 'see the check'}.")
    models, reports, crash = [model], [Report()], None
    for pass_ in passes:
        try:
            after, report = _step(models[-1], pass_, context)
        except PassError as error:
            crash = Verdict(True, "crash", str(error))
            break
        models.append(after)
        reports.append(report)
    verdicts: dict[int, Verdict] = {len(models) - 1: check(models[-1])}
    if not verdicts[len(models) - 1].bad:
        return None if crash is None else (len(models) - 1, models[-1], None, Report(), crash, None)
    low, high = _halve(len(models) - 1, lambda k: verdicts.setdefault(k, check(models[k])).bad)
    if high - low > 1:
        raise UsageError(f"the check says nothing of the models after passes {low + 1} to {high - 1}.")
    return high - 1, models[low], models[high], reports[high], verdicts[high], check


def _halve(size: int, bad: Callable[[int], bool | None]) -> tuple[int, int]:
    """Good at 0, bad at `size`: neighbours of which the first is good and the second bad.

    Where nothing can be said of those between, they are not neighbours.
    """
    low, high = 0, size
    unknown: set[int] = set()
    while True:
        open_ = sorted((k for k in range(low + 1, high) if k not in unknown), key=lambda k: abs(2 * k - low - high))
        if not open_:
            return low, high
        said = bad(open_[0])
        if said is None:
            unknown.add(open_[0])
        elif said:
            high = open_[0]
        else:
            low = open_[0]


def _first_change(
    before: ir.Model, after: ir.Model, report: Report, judge: Check, how: str, pass_: Pass, feeds: Feeds
) -> Application | None:
    with contextlib.suppress(ModelError):  # for those who read it
        infer_shapes(after)
    old, new = Side(before), Side(after)
    found = joined_changes(old, new, pass_.preserves, feeds)

    def bad(made: Sequence[Change]) -> bool | None:
        built = hybrid(old, new, made)
        verdict = Verdict(None) if built is None else judge(built)
        return None if verdict.bad and verdict.how != how else verdict.bad  # another failure is the mixture's own

    if not found or bad([]) is not False or bad(found) is not True:
        return None  # what it changed does not lie in the nodes: in functions, say
    low, high = _halve(len(found), lambda n: bad(found[:n]))
    culprit = found[high - 1]
    for change in found[low : high - 1]:
        culprit |= change
    good, broken = hybrid(old, new, found[:low]), hybrid(old, new, found[:high])
    assert good is not None
    assert broken is not None
    gone, come = [old.nodes[k] for k in culprit.old], [new.nodes[k] for k in culprit.new]
    names = {n for row in (*gone, *come) for n in (row.name, *row.outputs)}
    return Application(
        number=low + 1,
        last=high,
        total=len(found),
        alone=True if low == 0 else bad([culprit]),
        old=[f"[{row.name}] {node_line(row.node)}" for row in gone],
        new=[f"[{row.name}] {node_line(row.node)}" for row in come],
        says=[f"{c.node}: {c.action}" for c in report.changes if c.node in names],
        good=good,
        bad=broken,
    )
