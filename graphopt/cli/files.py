"""Files that commands take either as ONNX or as an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def open_graph(path: Path, *, sketched: bool = False, runs: bool = False) -> ir.Model:
    """The model of an ONNX file, only to look at when `sketched`, or the optimised graph inside an artifact.

    Raises:
        ArtifactError: the model has to run, by `runs`, and the artifact was made without its source.
    """
    if path.suffix != ".gopt":
        from graphopt.graph import load, sketch

        return (sketch if sketched else load)(path)
    from graphopt.artifact import read

    opened = read(path)
    return opened.graph_with_weights("after") if runs else opened.graph("after")
