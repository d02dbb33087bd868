"""The Python API: its names and signatures are pinned, and each kind of model and pipeline is taken."""

import inspect
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt import oracle
from graphopt.errors import DataError, UsageError
from graphopt.graph import save
from graphopt.pipeline import make_pass, parse_pipeline, pass_names
from graphopt.pipeline.spec import Item
from graphopt.testing import from_text, op_types, random_feeds


def test_the_public_names_are_these():
    """Adding a name is a promise, and removing one breaks users: change this list with the CHANGELOG."""
    assert graphopt.__all__ == [
        "EXACT", "LOSSY", "Context", "Executable", "GraphoptError", "Pass", "Preserves", "Program", "Report", "Target",
        "compile", "export", "fine_tune", "load", "optimize", "tolerance",
    ]  # fmt: skip
    for name in graphopt.__all__:
        assert getattr(graphopt, name).__doc__ or name in ("EXACT", "LOSSY")
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        graphopt.optimise  # noqa: B018


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (graphopt.optimize, "model, pipeline='', *, calibration=None, seed=0, dims=None, verify=True"),
        (
            graphopt.compile,
            "model, target='llvm', pipeline='', *, calibration=None, seed=0, dims=None, verify=True, keep_source=False"
            ", fallback=True, values=None",
        ),
        (graphopt.load, "path, threads=None"),
        (graphopt.export, "artifact, folder, *, name='model'"),
        (graphopt.Executable.run, "self, inputs"),
        (graphopt.Executable.save, "self, path"),
        (graphopt.Executable.__call__, "self, *arrays"),
        (graphopt.Pass.apply, "self, model, context"),
        (graphopt.Target.build, "self, model, context"),
    ],
)
def test_the_public_signatures_are_these(function, parameters: str):
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == f"({parameters})"


def test_a_path_a_proto_and_a_model_give_the_same(small: ir.Model, tmp_path: Path):
    path = save(small, tmp_path / "m.onnx")
    given = (path, str(path), ir.to_proto(small), small)
    results = [oracle.run(graphopt.optimize(model, "fold-constants"), random_feeds(small))["y"] for model in given]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_compile_gives_what_load_gives(small: ir.Model, tmp_path: Path):
    feeds = random_feeds(small)
    want = oracle.run(small, feeds)["y"]
    program = graphopt.compile(small, target="llvm", pipeline="remove-unused")
    program.save(tmp_path / "m.gopt")
    loaded = graphopt.load(tmp_path / "m.gopt")
    assert type(program) is type(loaded) is graphopt.Executable
    for outputs in (program.run(feeds)["y"], loaded.run(feeds)["y"], program(feeds["x"]), loaded(feeds["x"])):
        np.testing.assert_allclose(outputs, want, rtol=1e-5, atol=1e-5)


def test_a_pipeline_of_passes_is_taken_and_one_of_names_is_not(small: ir.Model):
    assert op_types(graphopt.optimize(small, [make_pass(Item("remove-unused"))])) == ["Conv", "Relu", "Conv"]
    with pytest.raises(UsageError, match="not 'str'"):
        graphopt.optimize(small, ["remove-unused"])


def test_scalar_and_boolean_inputs_are_checked_with_random_values():
    model = from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[2,2] x, bool c) => (float[2,2] y) {
            d = Identity(x)
            y = If(c) <then_branch = t () => (float[2,2] a) { a = Relu(d) },
                       else_branch = e () => (float[2,2] b) { b = Neg(d) }>
        }
        """
    )
    assert {name: type(value) for name, value in random_feeds(model).items()} == {"x": np.ndarray, "c": np.ndarray}
    assert op_types(graphopt.optimize(model, "eliminate-identity")) == ["If"]


def test_sequences_are_compared_element_by_element():
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[2,2] x) => (seq(float[2,2]) s) { i = Identity(x)  s = SequenceConstruct(i, x) }
        """
    assert op_types(graphopt.optimize(from_text(text), "eliminate-identity")) == ["SequenceConstruct"]
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        g (seq(float[2,2]) s) => (float[2,2] y) { i = Constant<value_int=0>()  y = SequenceAt(s, i) }
        """
    with pytest.raises(DataError, match=r"input 's': it is not a tensor.*--no-verify"):
        graphopt.optimize(from_text(text), "remove-unused")
    assert op_types(graphopt.optimize(from_text(text), "remove-unused", verify=False)) == ["Constant", "SequenceAt"]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A distribution as pip would leave it: a module, and metadata with entry points."""

    def install(module: str, entry: str) -> None:
        (tmp_path / "their_passes.py").write_text(module)
        about = tmp_path / "their_passes-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-passes\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[graphopt.passes]\n{entry}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "their_passes", raising=False)

    return install


THEIRS = '''
from typing import ClassVar
from pydantic.dataclasses import dataclass
import graphopt

@dataclass(frozen=True)
class Theirs(graphopt.Pass):
    """Does nothing, from another package."""
    name: ClassVar[str] = "their-pass"
    preserves: ClassVar[graphopt.Preserves] = graphopt.EXACT
    level: int = 1

    def apply(self, model, context):
        report = graphopt.Report()
        report.facts["level"] = self.level
        return report
'''


def test_passes_of_installed_packages_are_found(installed, graphopt):
    installed(THEIRS, "their-pass = their_passes:Theirs")
    assert "their-pass" in pass_names()
    (theirs,) = parse_pipeline("their-pass{level=3}")
    assert theirs.level == 3
    assert "Does nothing, from another package." in graphopt("passes").out


def test_an_entry_point_that_gives_no_pass_is_named(installed):
    installed("Theirs = 3", "their-pass = their_passes:Theirs")
    with pytest.raises(UsageError, match="the entry point their_passes:Theirs of their-passes does not give a pass"):
        parse_pipeline("their-pass")


def test_an_entry_point_that_does_not_load_is_named_and_spoils_nothing_else(installed, graphopt):
    installed("import nothing_of_this_name", "their-pass = their_passes:Theirs")
    with pytest.raises(UsageError, match=r"the entry point their_passes:Theirs .*failed to load"):
        parse_pipeline("their-pass")
    assert parse_pipeline("remove-unused")
    listed = graphopt("passes")
    assert listed.code == 0
    assert "fold-batch-norm" in listed.out
    assert "their-pass" in listed.err
