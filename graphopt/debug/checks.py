"""Is this model good or bad? A command, a condition on a number, or what a pass declares to keep."""

from __future__ import annotations

import dataclasses
import operator
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.base import Context, Pass
from graphopt.errors import DataError, GraphoptError, ModelError, PassError, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.models.base import Evaluation

    Array = np.ndarray[Any, Any]
    Feeds = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`bad`: None when the model can't be judged. `how`: the way it fails, equal for the same failure."""

    bad: bool | None
    how: str = ""
    message: str = ""


Check = Callable[["ir.Model"], Verdict]
GOOD = Verdict(False)
UNTESTABLE = 125
"""A command's exit code for a model it can't judge, as for git bisect."""


def command(text: str, timeout: float = 600.0) -> Check:
    """A shell command with ``{model}``, the path of the model as ONNX: exit code 0 is good, `UNTESTABLE` says nothing,
    any other is bad; codes that differ are different failures. Longer than `timeout` seconds says nothing.

    Raises:
        UsageError: no ``{model}``; when it is called: there is no such command.
    """
    if "{model}" not in text:
        raise UsageError(f"the check {text!r} has no {{model}}, the place of the model's path.")

    def check(model: ir.Model) -> Verdict:
        from graphopt.graph import save

        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            path = save(model, Path(folder) / "model.onnx")
            line = text.replace("{model}", shlex.quote(str(path)))
            try:
                done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=timeout)
            except subprocess.TimeoutExpired:
                return Verdict(None, message=f"the check took longer than {timeout:.0f} s")
        if done.returncode in (126, 127):
            raise UsageError(f"the check can't be run: {_last(done.stderr) or line}.")
        if done.returncode in (0, UNTESTABLE):
            return GOOD if done.returncode == 0 else Verdict(None, message=_last(done.stderr))
        return Verdict(True, f"exit code {done.returncode}", _last(done.stderr) or f"exit code {done.returncode}")

    return check


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else ""


_CONDITION = re.compile(r"\s*([a-z_]\w*)\s*(<=|>=|<|>)\s*([0-9.eE+-]+)\s*\Z")
_HOLDS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def condition(text: str, original: ir.Model, feeds: Feeds, evaluation: Evaluation | None = None) -> Check:
    """``error<1e-3``, ``sqnr>40`` or ``accuracy>=0.97``: a model for which it holds is good.

    ``error`` is ``max|a-b| / max|a|`` and ``sqnr`` ``10·log10(Σa² / Σ(a-b)²)`` dB, of the worst output, a that of
    `original` on `feeds`. Any other name is the metric of `evaluation`. A model that does not run is bad.

    Raises:
        UsageError: not of this form, or a metric without labelled data.
    """
    parts = _CONDITION.match(text)
    try:
        name, holds, bound = parts[1], _HOLDS[parts[2]], float(parts[3])  # pyright: ignore[reportOptionalSubscript]
    except (TypeError, ValueError):
        raise UsageError(
            f"the check {text!r} is neither a command with {{model}} nor of the form error<1e-3."
        ) from None
    if name not in ("error", "sqnr") and (evaluation is None or evaluation.metric != name):
        has = f"the data measure {evaluation.metric!r}" if evaluation else "labelled data are needed: --model or --data"
        raise UsageError(f"the check {text!r} speaks of {name!r}: error and sqnr are known, and {has}.")

    def check(model: ir.Model) -> Verdict:
        from graphopt import oracle
        from graphopt.measure import evaluate

        try:
            if name in ("error", "sqnr"):
                value = _distance(name, wanted, oracle.run(model, feeds))
            else:
                assert evaluation is not None
                value = evaluate(oracle.Session(model).run, evaluation)
        except (ModelError, DataError) as error:
            return Verdict(True, "does not run", str(error))
        return GOOD if holds(value, bound) else Verdict(True, text, f"{name} is {value:.4g}, not {text.strip()}")

    from graphopt import oracle

    wanted = oracle.run(original, feeds) if name in ("error", "sqnr") else {}
    return check


def _distance(name: str, before: Feeds, after: Feeds) -> float:
    from graphopt.pipeline.verify import tensors, worst_error

    worst = 0.0
    given = tensors(after)
    for key, want in tensors(before).items():
        got = given.get(key)
        if got is None or not np.isfinite(worst_error(want, got, 0, 0)[0]):
            return np.inf if name == "error" else -np.inf
        a, b = want.astype(np.float64), got.astype(np.float64)
        if name == "error":
            ratio = float(np.abs(a - b).max(initial=0) / (np.abs(a).max(initial=0) or 1.0))
        else:
            ratio = float(np.square(a - b).sum() / (np.square(a).sum() or 1.0))
        worst = max(worst, ratio)
    if name == "error":
        return worst
    return float(-10 * np.log10(worst)) if worst else np.inf


def keeps(before: ir.Model, pass_: Pass, feeds: Feeds, outputs: Feeds | None = None) -> Check:
    """Valid, runs in onnxruntime, and its outputs are those of `before` as far as `pass_` declares.

    `outputs`: those of `before`, where they are known.

    Raises:
        DataError: `before` itself does not run on `feeds`; ModelError likewise.
    """
    from graphopt import oracle

    wanted = oracle.run(before, feeds) if outputs is None else outputs

    def check(model: ir.Model) -> Verdict:
        from graphopt.graph import check as valid
        from graphopt.graph import infer_shapes
        from graphopt.pipeline.verify import WAYS_OUT, check_preserved

        try:
            valid(model)
            infer_shapes(model)
        except ModelError as error:
            return Verdict(True, f"{pass_.name}: invalid", f"the graph is invalid: {error}")
        try:
            got = oracle.run(model, feeds)
        except (ModelError, DataError) as error:
            return Verdict(True, f"{pass_.name}: does not run", str(error))
        try:
            check_preserved(f"pass {pass_.name!r}", pass_.preserves, wanted, got)
        except PassError as error:
            return Verdict(True, f"{pass_.name}: numbers", str(error).removesuffix(WAYS_OUT))
        return GOOD

    return check


def pipeline_fails(passes: Sequence[Pass], context: Context | None = None) -> Check:
    """Bad is a model on which one of `passes` crashes or breaks what it declares, on random inputs.

    Passes that need calibration data get random ones, for they are to fit any graph; `context` gives the seed.
    """
    from graphopt.data import open_data
    from graphopt.data.random import random_feeds

    seed = context.seed if context else 0

    def check(model: ir.Model) -> Verdict:
        from graphopt import oracle
        from graphopt.pipeline import run

        try:
            feeds = random_feeds(model, seed)
            outputs = oracle.run(model, feeds)  # a model that does not run shows nothing about the passes
            data = open_data([random_feeds(model, seed + k) for k in range(2)], model)
        except GraphoptError as error:
            return Verdict(None, message=str(error))
        for pass_ in passes:
            try:
                result = run(model, [pass_], Context(data, seed))
            except GraphoptError as error:
                return Verdict(True, f"{pass_.name}: {_place(error)}", str(error))
            if not result.steps[0].changed:
                continue
            try:
                verdict = keeps(model, pass_, feeds, outputs)(result.model)
            except (ModelError, DataError) as error:
                return Verdict(None, message=str(error))
            if verdict.bad:
                return verdict
            model, outputs = result.model, None
        return GOOD

    return check


def _place(error: GraphoptError) -> str:
    """Where and as what a pass crashed, without the values in the message."""
    found = re.search(r"failed at (\S+:\d+: \w+)", str(error))
    return found[1] if found else type(error).__name__
