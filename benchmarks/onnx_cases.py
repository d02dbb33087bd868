"""The cases of ONNX's backend suite: models with inputs and the outputs that ONNX expects of them."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

SUITES = ("node", "simple", "pytorch-converted", "pytorch-operator")
SLACK = {"float16": 1e-3, "bfloat16": 8e-3}
"""Rounding that is allowed for, relative to the largest magnitude; 1e-6 in wider types, one step in narrower ones."""

PARAMETERS = {
    **dict.fromkeys(("Reduce", "Reshape", "Split", "CumSum", "CumProd", "TopK", "OneHot", "AffineGrid"), (1,)),
    **dict.fromkeys(("Expand", "Tile", "Squeeze", "Unsqueeze", "CenterCropPad", "Trilu", "SplitToSequence"), (1,)),
    **dict.fromkeys(("ConstantOfShape", "BlackmanWindow", "HannWindow", "HammingWindow"), (0,)),
    **dict.fromkeys(("Resize", "Upsample", "Range", "MelWeightMatrix", "Slice"), (1, 2, 3, 4)),
    "Range": (0, 1, 2),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "Pad": (1, 3),
    "Col2Im": (1, 2),
    "DFT": (1, 2),
    "STFT": (1, 3),
    "NonMaxSuppression": (2, 3, 4),
    "MaxUnpool": (2,),
    "Dropout": (1, 2),
}
"""Operators -> inputs that say how to compute rather than on what."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One case. Inputs and outputs are arrays, lists of arrays (sequences) or None (empty optionals)."""

    name: str
    suite: str
    model: onnx.ModelProto
    feeds: list[list[Any]]
    expected: list[list[Any]]
    rtol: float
    atol: float

    @property
    def ops(self) -> list[str]:
        """The operators of the main graph, each once."""
        return sorted({node.op_type for node in self.model.graph.node})


@functools.cache
def load(suites: Iterable[str] = SUITES) -> dict[str, Case]:
    """All cases of `suites` by name, as the installed onnx package generates or ships them."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = [(suite, case) for suite in suites for case in load_model_tests(kind=suite)]
    return {case.name: _case(suite, case) for suite, case in found}


def _case(suite: str, case: Any) -> Case:
    if case.model is not None:
        model, data = case.model, case.data_sets
    else:
        folder = Path(case.model_dir)
        model = onnx.load(folder / "model.onnx")
        data = [_data_set(place, model) for place in sorted(folder.glob("test_data_set_*"))]
    feeds = [[_plain(item) for item in inputs] for inputs, _ in data]
    expected = [[_plain(item) for item in outputs] for _, outputs in data]
    return Case(case.name, suite, model, feeds, expected, case.rtol, case.atol)


def _data_set(folder: Path, model: onnx.ModelProto) -> tuple[list[Any], list[Any]]:
    given = {initializer.name for initializer in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in given]
    return _read(folder, "input", inputs), _read(folder, "output", model.graph.output)


def _read(folder: Path, what: str, values: Iterable[onnx.ValueInfoProto]) -> list[Any]:
    return [_item(folder / f"{what}_{k}.pb", value.type) for k, value in enumerate(values)]


def _item(path: Path, kind: onnx.TypeProto) -> Any:
    data = path.read_bytes()
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def _plain(item: Any) -> Any:
    if isinstance(item, onnx.TensorProto):
        return numpy_helper.to_array(item)
    return [_plain(part) for part in item] if isinstance(item, list) else item if item is None else np.asarray(item)


def parameters(case: Case) -> list[str]:
    """The inputs that say how to compute rather than on what: axes, sizes, repeats (see `PARAMETERS`).

    Those of an operator written out as its definition are those that the operator itself has.
    """
    plain = load().get(case.name.partition("_expanded")[0], case) if "_expanded" in case.name else case
    found = {n.input[k] for c in (plain, case) for n in c.model.graph.node for k in _positions(n.op_type, len(n.input))}
    inputs = [value.name for value in case.model.graph.input]
    return [name for name in inputs if name in found] if len(case.feeds) == 1 else []


def _positions(operator: str, inputs: int) -> list[int]:
    wanted = PARAMETERS.get("Reduce" if operator.startswith("Reduce") else operator, ())
    return [k for k in wanted if k < inputs]


def difference(expected: Any, got: Any, rtol: float, atol: float) -> str | None:
    """Why `got` is not `expected`, None where it is: type, shape, and values within the suite's tolerance."""
    if expected is None or got is None:
        return None if expected is got else "an optional is empty on one side only"
    if isinstance(expected, list):
        if not isinstance(got, list) or len(got) != len(expected):
            return f"a sequence of {len(expected)} expected"
        found = (difference(e, g, rtol, atol) for e, g in zip(expected, got, strict=True))
        return next(filter(None, found), None)
    got = np.asarray(got)
    if expected.dtype.kind in "OSU":
        same = got.shape == expected.shape and list(map(_text, got.flat)) == list(map(_text, expected.flat))
        return None if same else "other strings"
    if (got.dtype, got.shape) != (expected.dtype, expected.shape):
        return f"{got.dtype}{list(got.shape)} where {expected.dtype}{list(expected.shape)} is expected"
    if expected.dtype.kind in "biu":
        wrong = int(np.sum(expected != got))
        return f"{wrong} of {expected.size} values differ" if wrong else None
    return _distance(expected, got, rtol, atol)


def _text(item: Any) -> str:
    return item.decode() if isinstance(item, bytes) else str(item)


def _distance(expected: np.ndarray, got: np.ndarray, rtol: float, atol: float) -> str | None:
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    e, g = expected.astype(wide), got.astype(wide)
    finite = np.isfinite(e)
    if not np.array_equal(e[~finite], g[~finite], equal_nan=True):
        return "infinities or NaNs differ"
    largest = float(np.abs(e[finite]).max(initial=0))
    slack = SLACK.get(expected.dtype.name, 1e-6 if expected.dtype.itemsize >= 4 else 0)
    with np.errstate(invalid="ignore"):
        apart = np.abs(e - g)[finite] - (atol + rtol * np.abs(e[finite]) + slack * largest)
    worst = float(np.nan_to_num(apart, nan=np.inf).max(initial=-1))
    return f"off by up to {worst:.3g} more than tolerated" if worst > 0 else None
