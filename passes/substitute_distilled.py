"""Distilled subgraph substitution: a region gives way to a smaller student that reproduces its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from graphopt.base import LOSSY, Context, Pass, Preserves, Report
from graphopt.data import Batches
from graphopt.errors import UsageError
from graphopt.graph import remove_unused
from graphopt.graph.cost import cost
from graphopt.passes.distil.depthwise import DepthwiseSeparable
from graphopt.passes.distil.graft import activations, graft, outputs_error, student_error
from graphopt.passes.distil.low_rank import LowRank
from graphopt.passes.distil.measured import Clock
from graphopt.passes.distil.merged import MergedLinear
from graphopt.passes.distil.region import Region, of_globs, of_nodes, of_values
from graphopt.passes.distil.search import candidates
from graphopt.passes.distil.student import Fitted, Student, UnsupportedError, to_model
from graphopt.passes.distil.trained import train

TRAINED = ("narrow", "small-kernel", "fewer-layers", "cheap-activations", "linear-attention")
"""Students fitted by their gradients; see `graphopt.passes.distil.builders`."""
STUDENTS: dict[str, type[Student]] = {s.name: s for s in (LowRank, DepthwiseSeparable, MergedLinear)}
AIM = 0.95
"""A student's size is chosen for this part of `max_error` on the tuning data; the rest is room for unseen data."""
TUNING = 1 / 3
"""The part of the calibration data not held out that chooses sizes instead of weights."""
TOGETHER = 4
"""Most regions whose activations are gathered in one reading of the data; bounds the memory for moments."""
SMALLEST_SHARE = 0.01
"""Regions with a smaller share of the model's MACs are not tried when the choice is automatic."""


class _Data(NamedTuple):
    fitting: Batches
    tuning: Batches
    held_out: Batches
    rest: Batches
    seed: int
    clock: Clock | None


class _Made(NamedTuple):
    """A student with what is said of it. `error` on the tuning data; None where it was trained."""

    model: ir.Model
    name: str
    size: Mapping[str, int]
    axis: int
    error: float | None


def _observe(model: ir.Model, trials: Sequence[tuple[Region, list[Student]]], data: _Data) -> None:
    """One reading of the data for all trials."""
    regions = [region for region, _ in trials]
    for part in ("fitting", "tuning") if trials else ():
        for pairs in activations(model, regions, getattr(data, part)):
            for (x, y), (_, students) in zip(pairs, trials, strict=True):
                for student in students:
                    getattr(student, part).add(student.rows(x, y))


@dataclass(frozen=True)
class SubstituteDistilled(Pass):
    """Replaces regions of the graph by smaller students fitted to reproduce their outputs on calibration data.

    inputs, outputs: names of the values that bound one region (both or neither).
    nodes: globs over node names; each connected group of matching nodes is a region.
    With neither, regions are chosen: those with most MACs that some student suits, until `regions` are replaced.
    student: one solved in closed form, "low-rank", "depthwise-separable", "merged-linear", or "auto" for that of them
        with fewest MACs; one trained by its gradients from the region's own weights, "narrow" (fewer channels, neurons,
        heads), "small-kernel", "fewer-layers", "cheap-activations", "linear-attention"; or ``file.py:function``, which
        takes the region as an `onnx_ir.Model` and returns the student, to be trained.
    epochs, lr: how long a student is trained, and the learning rate; see `fine-tune`.
    target: text such as ``llvm{threads=1}``: regions are chosen by their part of the time measured there, and a student
        is accepted only where the model is measured to be faster there.
    max_error: the largest relative L2 error of a region's output on calibration data that was held out of the fit:
        ``|student(x) - teacher(x)| / |teacher(x) - mean|``, each channel scaled to unit variance; 0 is the teacher,
        1 as bad as a constant.
    max_macs: the largest part of its region's MACs that a student may cost.
    held_out: the part of the calibration data that is held out.

    Distillation minimises ``L = L_teacher + lambda * sum_i |f_teacher(x_i) - f_student(x_i)|``. Here there are no
    labels, so the task loss L_teacher is absent, and the students are solved in closed form (or by alternating
    least squares), so the distance is the squared one: ``sum_i |f_teacher(x_i) - f_student(x_i)|^2``, with a small
    ridge toward the teacher's own weights, which every student starts from.

    A student takes its region's place only if it costs at most `max_macs` of its MACs and its held-out error is at
    most `max_error`; else the region stays as it is and the report has the numbers. Regions are fitted one after
    the other, each on the model as those before left it; the fact `output_errors` is what all of them together do
    to the model's outputs.
    """

    name: ClassVar[str] = "substitute-distilled"
    preserves: ClassVar[Preserves] = LOSSY

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    student: str = "auto"
    max_error: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    max_macs: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    regions: Annotated[int, Field(ge=1)] = 1
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    epochs: Annotated[int, Field(ge=1)] = 30
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    target: str = ""

    def __post_init__(self) -> None:
        if bool(self.inputs) != bool(self.outputs):
            raise UsageError("'substitute-distilled': inputs and outputs bound a region together; give both or none.")
        if self.inputs and self.nodes:
            raise UsageError("'substitute-distilled': give a region by inputs and outputs or by nodes, not by both.")
        if self.student == "cheap-activations" and not self.target:
            raise UsageError("'substitute-distilled': cheap-activations saves time, not MACs; say where: target=llvm.")
        known = ("auto", *STUDENTS, *TRAINED)
        if self.student not in known and ".py:" not in self.student:
            raise UsageError(
                f"'substitute-distilled' has no student {self.student!r}; it has {', '.join(known)}, "
                "and takes file.py:function for one of your own."
            )

    def apply(self, model: ir.Model, context: Context) -> Report:
        """Substitute in place.

        Facts: `macs` and `parameters` before and after; `output_errors`, ``|after - before| / |before|`` of each
        float output on the held-out data; `substitutions`, one for each region replaced: its nodes, boundary,
        student, size, MACs, parameters, errors.

        Raises:
            DataError: no calibration data, or too few to hold some out.
            UsageError: the region is unknown, not convex, or a value inside it is used outside.
            PassError: the region's values are not finite.
        """
        from graphopt.pipeline.registry import make_target

        rest, held_out = context.needs_calibration(self.name).split(self.held_out)
        clock = Clock(make_target(self.target), next(iter(held_out.pieces(1)))) if self.target else None
        data = _Data(*rest.split(TUNING), held_out, rest, context.seed, clock)
        report = Report()
        original, before = model.clone(), cost(model)
        done = self._run(model, self._choose(model, before.macs, data, report), data, report)
        if done:
            remove_unused(model)
            report.facts["output_errors"] = outputs_error(original, model, held_out)
        after = cost(model)
        report.facts["macs"] = {"before": before.macs, "after": after.macs}
        report.facts["parameters"] = {"before": before.parameters, "after": after.parameters}
        report.facts["substitutions"] = done
        return report

    @property
    def _automatic(self) -> bool:
        return not self.inputs and not self.nodes

    def _choose(self, model: ir.Model, macs: int, data: _Data, report: Report) -> Iterable[Region]:
        if self.inputs:
            return [of_values(model.graph, self.inputs, self.outputs)]
        if self.nodes:
            return of_globs(model.graph, self.nodes)
        found = candidates(model.graph)
        for region in found:
            if region.macs < SMALLEST_SHARE * macs:
                report.skip(region.title, f"has {region.macs} of the model's {macs} MACs, less than a hundredth")
        large = [region for region in found if region.macs >= SMALLEST_SHARE * macs]
        return large if data.clock is None else data.clock.ranked(model, large)

    def _run(self, model: ir.Model, chosen: Iterable[Region], data: _Data, report: Report) -> list[dict[str, Any]]:
        """Try the regions in order. Several share a reading of the data as long as none of them is replaced."""
        done: list[dict[str, Any]] = []
        gone: set[ir.Node] = set()
        pending, together = list(chosen), 1
        while pending and not (self._automatic and len(done) == self.regions):
            taken, pending = pending[:together], pending[together:]
            together = min(2 * together, TOGETHER)
            trials = self._trials(model, taken, gone, report)
            _observe(model, [trial for trial in trials if trial[1]], data)
            for index, (region, students) in enumerate(trials):
                facts = self._try(model, region, students, data, report)
                if facts:
                    done.append(facts)
                    gone.update(region.nodes)
                    pending = [later for later, _ in trials[index + 1 :]] + pending  # what they see has changed
                    together = 1
                    break
        return done

    def _trials(
        self, model: ir.Model, regions: Iterable[Region], gone: set[ir.Node], report: Report
    ) -> list[tuple[Region, list[Student]]]:
        """The regions as they are in the model by now, with the students that suit them."""
        found: list[tuple[Region, list[Student]]] = []
        for region in regions:
            if not gone.isdisjoint(region.nodes):
                report.skip(region.title, "overlaps a region that was replaced")
                continue
            current = of_nodes(model.graph, region.nodes)  # its input may be a student's output by now
            students = self._students(model, current, report)
            if students is not None:
                found.append((current, students))
        return found

    def _try(
        self, model: ir.Model, region: Region, students: list[Student], data: _Data, report: Report
    ) -> dict[str, Any] | None:
        """Fit, judge, and graft or leave; what was done, or None."""
        made = self._made(model, region, students, data, report)
        if made is None:
            return None
        what = " ".join([made.name, *(f"{key} {value}" for key, value in made.size.items())])
        price, macs = cost(made.model), region.macs
        if price.macs > self.max_macs * macs and self.student != "cheap-activations":
            report.skip(region.title, f"{what} has {price.macs} MACs, too many beside the teacher's {macs}")
            return None
        pairs = (pair for (pair,) in activations(model, [region], data.held_out))
        error = student_error(made.model, made.axis, pairs)
        tuning = "" if made.error is None else f" (tuning error {made.error:.4f})"
        if not error <= self.max_error:
            report.skip(
                region.title,
                f"rolled back: {what} would take {price.macs} MACs instead of {macs}, but its held-out error is "
                f"{error:.4f}, above max_error={self.max_error:g}{tuning}",
            )
            return None
        time = None if data.clock is None else data.clock.ratio(model, region, made.model)
        if time is not None and not time < 1:
            report.skip(
                region.title,
                f"rolled back: {what} has a held-out error of {error:.4f}, but the model would take {time:.2f} of its "
                f"time on {self.target}",
            )
            return None
        report.change(region.title, f"{what}: {macs} -> {price.macs} MACs, held-out error {error:.4f}")
        facts: dict[str, Any] = {
            "nodes": [node.name for node in region.nodes],
            "inputs": [value.name for value in region.inputs],
            "outputs": [value.name for value in region.outputs],
            "student": made.name,
            **made.size,
            "macs": {"before": macs, "after": price.macs},
            "parameters": {"before": region.parameters, "after": price.parameters},
            "tuning_error": made.error,
            "held_out_error": error,
            "time": time,
        }
        graft(model, region, made.model)
        if data.clock is not None:
            data.clock.changed()
        return facts

    def _made(
        self, model: ir.Model, region: Region, students: list[Student], data: _Data, report: Report
    ) -> _Made | None:
        """The student with fewest MACs of those that come close enough in closed form, or the one that is trained."""
        if not self._is_trained:
            built = [(to_model(model, region, one), one) for one in self._fit(students, region, report)]
            if not built:
                return None
            small, best = min(built, key=lambda pair: cost(pair[0]).macs)
            return _Made(small, best.student, best.size, best.axis, best.error)
        try:
            trained = train(model, region, self.student, data.rest, self.max_macs, self.epochs, self.lr, data.seed)
        except UnsupportedError as reason:
            report.skip(region.title, f"no student suits it ({self.student}: {reason})")
            return None
        shape = region.outputs[0].shape
        return _Made(trained, self.student, {}, 1 if shape is not None and shape.rank() > 3 else -1, None)

    @property
    def _is_trained(self) -> bool:
        return self.student in TRAINED or ".py:" in self.student

    def _students(self, model: ir.Model, region: Region, report: Report) -> list[Student] | None:
        """The solved students that suit the region, None if none does; guesses at stretches are not worth a line."""
        if len(region.inputs) != 1 or len(region.outputs) != 1:
            report.skip(
                region.title,
                f"it reads {len(region.inputs)} varying values and yields {len(region.outputs)}; "
                "a student reads one and yields one",
            )
            return None
        if self._is_trained:
            return []
        found: list[Student] = []
        reasons: list[str] = []
        for name in STUDENTS if self.student == "auto" else [self.student]:
            try:
                found.append(STUDENTS[name](model, region, self.max_macs))
            except UnsupportedError as reason:
                reasons.append(f"{name}: {reason}")
        if not found and (region.is_one_layer or not self._automatic):
            report.skip(region.title, f"no student suits it ({'; '.join(reasons)})")
        return found or None

    def _fit(self, students: Iterable[Student], region: Region, report: Report) -> list[Fitted]:
        fitted: list[Fitted] = []
        reasons: list[str] = []
        for student in students:
            try:
                fitted.append(student.fit(AIM * self.max_error))
            except UnsupportedError as reason:
                reasons.append(f"{student.name}: {reason}")
        if not fitted:
            report.skip(region.title, f"no student comes close enough ({'; '.join(reasons)})")
        return fitted
