"""What watches a pipeline: structure, numbers, dumps, memory, the crash reproducer. None lives inside a pass."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.base import Pass
from graphopt.errors import DataError, GraphoptError, ModelError, PassError, UsageError
from graphopt.pipeline.driver import Step
from graphopt.pipeline.spec import format_list

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]


class Quiet:
    """An observer that does nothing: the base of those below."""

    def before(self, model: ir.Model, remaining: Sequence[Pass]) -> None:
        """See `Observer`."""

    def after(self, model: ir.Model, step: Step) -> None:
        """See `Observer`."""

    def failed(self, error: GraphoptError) -> None:
        """See `Observer`."""


class VerifyStructure(Quiet):
    """After each changed pass: valid ONNX, in order, owned, named, shapes that agree, the same signature."""

    def before(self, model: ir.Model, remaining: Sequence[Pass]) -> None:
        """Remember the signature."""
        self._signature = _signature(model)

    def after(self, model: ir.Model, step: Step) -> None:
        """Raise `PassError` naming the pass and the first thing wrong."""
        if not step.changed:
            return
        from graphopt.graph import check, infer_shapes
        from graphopt.graph.skeleton import skeleton_proto

        skeleton = skeleton_proto(model)
        try:
            check(model, skeleton)
            infer_shapes(model, skeleton)
        except ModelError as error:
            raise PassError(f"pass {step.pass_.name!r} left an invalid graph: {error}") from error
        if _signature(model) != self._signature:
            raise PassError(
                f"pass {step.pass_.name!r} changed the model's signature from {self._signature} to {_signature(model)}."
            )


def _signature(model: ir.Model) -> list[tuple[str | None, str]]:
    return [(v.name, str(v.dtype)) for v in (*model.graph.inputs, *model.graph.outputs)]


class VerifyNumbers(Quiet):
    """After each changed pass: onnxruntime's outputs before and after, judged by what the pass declares.

    The relative error goes to ``step.facts["relative_error"]``.
    """

    def __init__(self, feeds: Mapping[str, Array]) -> None:
        self.feeds = dict(feeds)
        self._outputs: dict[str, Array] | None = None

    def before(self, model: ir.Model, remaining: Sequence[Pass]) -> None:
        """Run the model once; later passes are compared with the pass before."""
        from graphopt import oracle

        if self._outputs is not None:
            return
        try:
            self._outputs = oracle.run(model, self.feeds)
        except (ModelError, DataError) as error:
            raise uncheckable(error) from error

    def after(self, model: ir.Model, step: Step) -> None:
        """Raise `PassError` when an output moved further than declared, or no longer runs."""
        if not step.changed:
            return
        from graphopt import oracle
        from graphopt.pipeline.verify import check_preserved

        assert self._outputs is not None
        who = f"pass {step.pass_.name!r}"
        try:
            outputs = oracle.run(model, self.feeds)
        except (ModelError, DataError) as error:
            raise PassError(f"{who} left a graph that onnxruntime does not run: {error}") from error
        step.facts["relative_error"] = check_preserved(who, step.pass_.preserves, self._outputs, outputs)
        self._outputs = outputs


def uncheckable(error: GraphoptError) -> GraphoptError:
    """`error`, which kept onnxruntime from running the model as it was given, with the ways out."""
    return type(error)(
        "the passes can't be checked, because onnxruntime does not run the model as it was given: "
        f"{str(error).rstrip('.')}. Give inputs that fit with --calibration, or sizes of open dimensions with "
        "--dim NAME=SIZE; or go without the check: --no-verify."
    )


class MeasureMemory(Quiet):
    """The process's peak resident set after each pass, in bytes, to ``step.facts["peak_rss_bytes"]``."""

    def after(self, model: ir.Model, step: Step) -> None:
        """Read the peak (Linux: KiB, macOS: bytes)."""
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step.facts["peak_rss_bytes"] = peak if sys.platform == "darwin" else peak * 1024


class MeasureSize(Quiet):
    """Nodes, parameters, weight bytes and multiply-accumulates after each pass, to ``step.facts["totals"]``."""

    def after(self, model: ir.Model, step: Step) -> None:
        """Count from shapes; a pass that changed nothing leaves what was."""
        from graphopt.graph.cost import totals

        if step.changed:
            step.facts["totals"] = totals(model)


class DumpEach(Quiet):
    """Saves the first graph as ``00-input.onnx`` and the graph after each changed pass as ``NN-pass-name.onnx``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._count = folder, 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"can't make the folder {folder}: {error.strerror or error}.") from error

    def before(self, model: ir.Model, remaining: Sequence[Pass]) -> None:
        """Save the input of the first pass."""
        if self._count == 0:
            self._save(model, "input")
        self._count += 1

    def after(self, model: ir.Model, step: Step) -> None:
        """Save the result of a pass that changed something."""
        if step.changed:
            self._save(model, step.pass_.name)

    def _save(self, model: ir.Model, name: str) -> None:
        from graphopt.graph import save

        save(model, self.folder / f"{self._count:02}-{name}.onnx")


@dataclasses.dataclass
class PrintEach(Quiet):
    """Writes the graph's listing after each changed pass."""

    write: Callable[[str], object]

    def after(self, model: ir.Model, step: Step) -> None:
        """Print the graph."""
        if step.changed:
            from graphopt.graph.listing import listing

            self.write(f"// after {step.pass_.name}\n{listing(model)}")


class Reproducer(Quiet):
    """On failure: the graph the failing pass was given and the pipeline from it on, in one folder.

    ``graphopt opt FOLDER/model.onnx -p "$(cat FOLDER/pipeline.txt)"`` fails the same way.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._model: ir.Model | None = None
        self._remaining: Sequence[Pass] = ()

    def before(self, model: ir.Model, remaining: Sequence[Pass]) -> None:
        """Keep a copy (tensors are shared) of what the pass is given."""
        self._model, self._remaining = model.clone(), remaining

    def failed(self, error: GraphoptError) -> None:
        """Write model, pipeline and error."""
        from graphopt.graph import save
        from graphopt.pipeline.registry import spec_of

        if self._model is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        save(self._model, self.folder / "model.onnx")
        (self.folder / "pipeline.txt").write_text(format_list([spec_of(p) for p in self._remaining]) + "\n")
        (self.folder / "error.txt").write_text(f"{error}\n")
