"""Runs cases of ONNX's backend suite, one a line of standard input, and prints a line of JSON for each.

A process of its own, so that a crash, a hang or a huge allocation costs one case. See `coverage.py`.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

os.environ["ALLOW_RELEASED_ONNX_OPSET_ONLY"] = "0"

import resource

import onnx
import onnx_cases
from onnx_cases import Case, difference, parameters

import graphopt
from graphopt.errors import GraphoptError
from graphopt.oracle import lift_limits
from graphopt.ort import Session

MEMORY = 6 << 30


def run(case: Case) -> dict[str, Any]:
    """How onnxruntime fares; graphopt alone; the same with its parameters given; with onnxruntime for the rest."""
    row: dict[str, Any] = {"name": case.name, "suite": case.suite, "ops": case.ops}
    row["onnxruntime"] = _outcome(case, lambda: _onnxruntime(case.model))
    row["alone"] = row["given"] = row["fallback"] = _outcome(case, lambda: _compiled(case, fallback=False))
    if row["alone"][0] != "passes":
        row["fallback"] = _outcome(case, lambda: _compiled(case, fallback=True))
        given = parameters(case)
        if given:
            row["given"] = _outcome(case, lambda: _compiled(case, fallback=False, given=given))
    return row


def _onnxruntime(model: onnx.ModelProto) -> Any:
    session = Session(lift_limits(model).SerializeToString())
    return lambda feeds: list(  # pyright: ignore[reportUnknownLambdaType]
        session.run(dict(zip(_inputs(model), feeds, strict=True))).values()
    )


def _inputs(model: onnx.ModelProto) -> list[str]:
    given = {initializer.name for initializer in model.graph.initializer}
    return [value.name for value in model.graph.input if value.name not in given]


def _compiled(case: Case, *, fallback: bool, given: Sequence[str] = ()) -> Any:
    inputs = _inputs(case.model)
    values = {name: array for name, array in zip(inputs, case.feeds[0], strict=True) if name in given}
    program = graphopt.compile(case.model, "llvm{threads=1}", verify=False, fallback=fallback, values=values)

    def call(feeds: list[Any]) -> list[Any]:
        named = {name: value for name, value in zip(inputs, feeds, strict=True) if name not in values}
        return list(program.run(named).values())

    return call


def _outcome(case: Case, prepare: Any) -> tuple[str, str]:
    try:
        call = prepare()
        for feeds, expected in zip(case.feeds, case.expected, strict=True):
            got = call(feeds)
            if len(got) != len(expected):
                return "wrong", f"{len(got)} outputs where {len(expected)} are expected"
            for index, (e, g) in enumerate(zip(expected, got, strict=True)):
                reason = difference(e, g, case.rtol, case.atol)
                if reason:
                    return "wrong", f"output {index}: {reason}"
    except GraphoptError as error:
        return "refused", f"{type(error).__name__}: {error}"
    except Exception as error:  # whatever it is, it is this case's result
        return "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return "passes", ""


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    cases = onnx_cases.load()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no result
    for line in sys.stdin:
        print(json.dumps(run(cases[line.strip()])), file=out, flush=True)


if __name__ == "__main__":
    main()
