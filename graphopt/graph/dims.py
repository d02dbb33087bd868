"""What is declared of a model's open dimensions; it goes with the model, also into its ONNX file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping

import onnx_ir as ir

from graphopt.errors import ModelError, UsageError
from graphopt.graph.shapes import bind_dims, check_known, open_dims
from graphopt.sizes import Given, Sizes, parse

DIMS = "graphopt.dims"
"""Metadata of the model: JSON, for each declared dimension the text of its sizes."""
MOST = 16
"""Programs of one artifact."""


def declare_dims(model: ir.Model, dims: Mapping[str, Given]) -> None:
    """Fix dimensions of the inputs that are given one size, and keep with the model which sizes others may have.

    ``{"N": 1}`` fixes N, ``{"N": (1, 64), "T": (16, 512, 16), "H": [1, 8, "*"]}`` declares; see `graphopt.sizes`.

    Raises:
        UsageError: sizes that can't be read, or more than `MOST` programs.
        ModelError: a name that no input has, or shapes that contradict a size.
    """
    said = {name: parse(name, given) for name, given in dims.items()}
    check_known(model, said)
    bind_dims(model, {name: size for name, size in said.items() if isinstance(size, int)})
    declared = declared_dims(model) | {name: size for name, size in said.items() if isinstance(size, Sizes)}
    if declared:
        model.metadata_props[DIMS] = json.dumps({name: str(sizes) for name, sizes in sorted(declared.items())})
    else:
        model.metadata_props.pop(DIMS, None)
    if (number := len(cases(declared))) > MOST:
        raise UsageError(f"the sizes listed make {number} programs, and at most {MOST} can be in an artifact.")


def declared_dims(model: ir.Model) -> dict[str, Sizes]:
    """The sizes that open dimensions of the inputs may have, where something was declared.

    Raises:
        ModelError: what the model carries about it can't be read.
    """
    text = model.metadata_props.get(DIMS)
    if text is None:
        return {}
    try:
        said: dict[str, str] = json.loads(text)
        found = {name: parse(name, str(sizes)) for name, sizes in said.items()}
    except (ValueError, AttributeError, RecursionError, UsageError) as error:
        raise ModelError(f"the model's metadata {DIMS!r} can't be read: {error}") from error
    known = open_dims(model)
    return {name: sizes for name, sizes in found.items() if isinstance(sizes, Sizes) and name in known}


def cases(declared: Mapping[str, Sizes]) -> list[dict[str, int]]:
    """The sizes that each program is made for, the most special first; the last one's is for all that is left."""
    choices = [[*((name, size) for size in sizes.listed), *[None] * sizes.rest] for name, sizes in declared.items()]
    return [dict(pair for pair in case if pair is not None) for case in itertools.product(*choices)]
