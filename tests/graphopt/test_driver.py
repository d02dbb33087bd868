"""The driver and its observers: a pass that breaks something is caught, named, and can be reproduced."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.base import EXACT, LOSSY, Preserves, tolerance
from graphopt.errors import PassError
from graphopt.graph import load, sources
from graphopt.graph.digest import digest
from graphopt.pipeline import parse_pipeline, run
from graphopt.pipeline.observers import (
    DumpEach,
    MeasureMemory,
    PrintEach,
    Reproducer,
    VerifyNumbers,
    VerifyStructure,
)
from graphopt.pipeline.verify import check_preserved
from graphopt.testing import assert_equivalent, from_text, op_types, random_feeds

pytestmark = pytest.mark.usefixtures("plugin")


def test_the_input_model_is_left_as_it_was(small: ir.Model):
    weights = small.graph.initializers["w1"].const_value.numpy().copy()
    run(small, parse_pipeline("scale-weights{factor=2},relu-to-max"))
    assert op_types(small) == ["Conv", "Relu", "Conv"]
    np.testing.assert_array_equal(small.graph.initializers["w1"].const_value.numpy(), weights)


def test_passes_run_in_order_and_report(small: ir.Model):
    result = run(small, parse_pipeline("relu-to-max,boast"))
    assert op_types(result.model) == ["Conv", "Max", "Conv"]
    assert [s.changed for s in result.steps] == [True, False], "a pass that only claims changes made none"
    assert_equivalent(small, result.model, rtol=0)


def test_a_crash_in_a_pass_is_an_error_that_names_pass_file_and_line(small: ir.Model):
    with pytest.raises(PassError, match=r"pass 'crash' failed at broken_passes.py:\d+: KeyError"):
        run(small, parse_pipeline("crash"))


def test_verify_structure_catches_an_invalid_graph(small: ir.Model):
    with pytest.raises(PassError, match="pass 'drop-input' left an invalid graph"):
        run(small, parse_pipeline("drop-input"), observers=[VerifyStructure()])


def test_verify_structure_catches_a_changed_signature(small: ir.Model):
    with pytest.raises(PassError, match="changed the model's signature"):
        run(small, parse_pipeline("rename-output"), observers=[VerifyStructure()])


def test_verify_numbers_catches_a_pass_that_is_not_what_it_declares(small: ir.Model):
    check = VerifyNumbers(random_feeds(small))
    with pytest.raises(PassError, match="'scale-weights' declares exact and moved output 'y'"):
        run(small, parse_pipeline("relu-to-max,scale-weights{factor=1.001}"), observers=[check])


def test_verify_numbers_records_the_error(small: ir.Model):
    result = run(small, parse_pipeline("relu-to-max"), observers=[VerifyNumbers(random_feeds(small)), MeasureMemory()])
    assert result.steps[0].facts["relative_error"] == 0.0
    assert result.steps[0].facts["peak_rss_bytes"] > 1 << 20


def test_reproducer_folder_fails_the_same_way(small: ir.Model, tmp_path: Path):
    with pytest.raises(PassError) as first:
        run(small, parse_pipeline("relu-to-max,crash,boast"), observers=[Reproducer(tmp_path / "r")])
    text = (tmp_path / "r" / "pipeline.txt").read_text()
    assert text == "crash,boast\n"
    model = load(tmp_path / "r" / "model.onnx")
    assert op_types(model) == ["Conv", "Max", "Conv"], "the graph the failing pass was given"
    with pytest.raises(PassError) as second:
        run(model, parse_pipeline(text))
    assert str(first.value) == str(second.value) == (tmp_path / "r" / "error.txt").read_text().strip()


def test_the_reproducer_keeps_the_graph_from_before_the_pass_touched_it(small: ir.Model, tmp_path: Path):
    """The pass has edited the graph when its numbers turn out wrong."""
    observers = [Reproducer(tmp_path / "r"), VerifyNumbers(random_feeds(small))]
    with pytest.raises(PassError, match="scale-weights"):
        run(small, parse_pipeline("scale-weights{factor=2}"), observers=observers)
    assert digest(load(tmp_path / "r" / "model.onnx")) == digest(small)


def test_dump_each_saves_input_and_changed_passes(small: ir.Model, tmp_path: Path):
    run(small, parse_pipeline("boast,relu-to-max,scale-weights"), observers=[DumpEach(tmp_path)])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "00-input.onnx",
        "02-relu-to-max.onnx",
        "03-scale-weights.onnx",
    ]


def test_print_each_prints_changed_graphs_only(small: ir.Model):
    printed: list[str] = []
    run(small, parse_pipeline("boast,relu-to-max"), observers=[PrintEach(printed.append)])
    assert len(printed) == 1
    assert printed[0].startswith("// after relu-to-max\n")
    assert "= Max(" in printed[0]


def test_provenance_follows_replaced_nodes_and_survives_saving(small: ir.Model, tmp_path: Path):
    from graphopt.graph import save

    relu = small.graph[1].name
    result = run(small, parse_pipeline("relu-to-max"))
    save(result.model, tmp_path / "m.onnx")
    after = load(tmp_path / "m.onnx")
    assert sources(after.graph[1]) == [relu]
    assert all(sources(node) for node in after.graph)


A = {"y": np.array([1.0, -4.0], np.float32)}


@pytest.mark.parametrize(
    ("preserves", "got", "passes"),
    [
        (EXACT, [1.0, -4.0], True),
        (EXACT, [1.0, -4.0000005], False),
        (tolerance(1e-3), [1.0, -4.003], True),
        (tolerance(1e-3), [1.0, -4.005], False),
        (tolerance(0, 0.1), [1.09, -4.0], True),
        (LOSSY, [9.0, 9.0], True),
        (LOSSY, [np.nan, 1.0], False),
        (LOSSY, [1.0, -4.0, 0.0], False),
    ],
)
def test_check_preserved_judges_by_what_is_declared(preserves: Preserves, got: list[float], passes: bool):
    after = {"y": np.array(got, np.float32)}
    if passes:
        assert check_preserved("it", preserves, A, after) is not None
    else:
        with pytest.raises(PassError):
            check_preserved("it", preserves, A, after)


def test_equal_nans_and_infinities_are_equal():
    odd = {"y": np.array([np.nan, np.inf, 1.0], np.float32)}
    assert check_preserved("it", EXACT, odd, {"y": odd["y"].copy()}) == 0.0


def test_nodes_a_pass_made_or_merged_carry_its_name(small: ir.Model):
    import json

    result = run(small, parse_pipeline("relu-to-max"))
    passes = [json.loads(node.metadata_props.get("graphopt.passes", "[]")) for node in result.model.graph]
    assert passes == [[], ["relu-to-max"], []]


def test_large_integers_are_compared_exactly():
    """2**60 and 2**60 + 1 are the same float64."""
    before, after = ({"y": np.array([2**60 + k])} for k in (0, 1))
    assert check_preserved("a pass", EXACT, before, before) == 0.0
    with pytest.raises(PassError, match="moved output 'y' by 1 "):
        check_preserved("a pass", EXACT, before, after)


def test_outputs_keep_the_names_of_their_dimensions():
    """What yields an output may know less of its sizes than the output declares."""
    model = from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[batch,4] x, int64[2] shape) => (float[batch,2] y) {
            a = Reshape(x, shape)
            y = Identity(a)
        }
        """
    )
    result = run(model, parse_pipeline("fold-constants"), observers=[VerifyStructure()]).model
    assert op_types(result) == ["Reshape"]
    assert str(result.graph.outputs[0].shape) == "[batch,2]"
