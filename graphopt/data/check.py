"""Does a batch fit the model's inputs?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from graphopt.data.batches import Feeds
from graphopt.errors import DataError


def checked(feeds: Any, inputs: Sequence[ir.Value], label: str, *, any_batch: bool) -> Feeds:
    """`feeds` if it fits `inputs` in names, dtypes, ranks and fixed dimensions; else raises `DataError`.

    `any_batch`: the leading dimension may be any, because samples are regrouped afterwards. `label` goes
    before the message.
    """
    if not isinstance(feeds, Mapping):
        raise DataError(f"{label}a calibration batch must be {{input name: array}}, not a {type(feeds).__name__}.")
    given = {str(name): np.asarray(array) for name, array in cast("Mapping[str, Any]", feeds).items()}
    wanted = [str(v.name) for v in inputs]
    if set(given) != set(wanted):
        raise DataError(
            f"{label}the model's inputs are {', '.join(wanted)}, but the data has {', '.join(given) or 'none'}."
        )
    symbols: dict[str, int] = {}
    for value in inputs:
        array = given[str(value.name)]
        if value.dtype is not None and array.dtype != value.dtype.numpy():
            raise DataError(f"{label}input {value.name!r} needs {value.dtype.numpy()}, but the data is {array.dtype}.")
        if value.shape is not None and not _fits(array.shape, value.shape, symbols, any_batch=any_batch):
            raise DataError(
                f"{label}input {value.name!r} needs shape {value.shape}, but the data has shape {list(array.shape)}."
            )
    return given


def _fits(got: tuple[int, ...], shape: ir.Shape, symbols: dict[str, int], *, any_batch: bool) -> bool:
    if len(got) != shape.rank():
        return False
    for axis, (size, dim) in enumerate(zip(got, shape, strict=True)):
        if axis == 0 and any_batch:
            continue
        if isinstance(dim, int):
            if size != dim:
                return False
        elif dim.value is not None and symbols.setdefault(str(dim.value), size) != size:
            return False
    return True
