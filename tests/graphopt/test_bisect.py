"""Bisect finds the planted bug of each of five broken passes: the pass, and the one application of it that is wrong."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt.cli.bisect import _print
from graphopt.debug import bisect, condition, keeps
from graphopt.debug.bisect import Culprit
from graphopt.debug.changes import Side, changes
from graphopt.debug.hybrid import hybrid, joined_changes
from graphopt.errors import UsageError
from graphopt.graph import load, save
from graphopt.pipeline import load_plugin, parse_pipeline, run
from graphopt.testing import assert_equivalent, random_feeds

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("planted_nets", HERE / "planted_nets.py")
nets = importlib.util.module_from_spec(spec)
sys.modules["planted_nets"] = nets
spec.loader.exec_module(nets)
BUGS = list(nets.WHERE)


@pytest.fixture(autouse=True)
def planted() -> Path:
    load_plugin(HERE / "planted_bugs.py")
    return HERE / "planted_bugs.py"


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("bad", [0, 3, 6])
def test_the_planted_bug_is_found(bug: str, bad: int):
    model = nets.net(bug, blocks=7, bad=bad)
    passes = parse_pipeline(f"eliminate-identity,fold-constants,{bug},remove-unused")
    found = bisect(model, passes, random_feeds(model))
    assert (found.pass_.name, found.position) == (bug, 3)
    where = nets.WHERE[bug].format(k=bad)
    at = found.application
    assert at.number == at.last == bad + 1, at
    assert any(line.startswith(f"[{where}]") for line in at.old), at.old
    assert at.total >= 7
    assert at.alone


@pytest.mark.parametrize("bug", BUGS)
def test_good_and_bad_are_one_change_apart(bug: str):
    model = nets.net(bug, blocks=5, bad=2)
    (pass_,) = parse_pipeline(bug)
    feeds = random_feeds(model)
    at = bisect(model, [pass_], feeds).application
    judge = keeps(model, pass_, feeds)
    assert judge(at.good).bad is False
    assert judge(at.bad).bad is True


def test_a_condition_finds_it_too():
    model = nets.net("wrong-epsilon", blocks=5, bad=2)
    feeds = random_feeds(model)
    passes = parse_pipeline("eliminate-identity,wrong-epsilon,remove-unused")
    for text in ("error<1e-4", "sqnr>60"):
        found = bisect(model, passes, feeds, condition(text, model, feeds))
        assert (found.position, found.application.number) == (2, 3)
    assert bisect(model, passes, feeds, condition("error<1e9", model, feeds)) is None


def test_right_passes_are_acquitted():
    model = nets.net("dropped-bias", blocks=4, bad=9)
    assert bisect(model, parse_pipeline("dropped-bias,remove-unused"), random_feeds(model)) is None


def test_a_crash_is_the_pass():
    load_plugin(HERE / "broken_passes.py")
    model = nets.net("dropped-bias", blocks=2, bad=9)
    found = bisect(model, parse_pipeline("remove-unused,crash"), random_feeds(model))
    assert (found.position, found.application, found.after) == (2, None, None)
    assert "KeyError" in found.message


def test_a_model_that_is_bad_already():
    model = nets.net("dropped-bias", blocks=2, bad=9)
    feeds = random_feeds(model)
    with pytest.raises(UsageError, match="before any pass"):
        bisect(model, parse_pipeline("remove-unused"), feeds, condition("sqnr<10", model, feeds))


@pytest.mark.parametrize("pipeline", ["fold-batch-norm", "fold-constants", "eliminate-common-subexpressions"])
def test_any_part_of_a_right_pass_is_right(pipeline: str):
    """Folding moves what a Conv yields: such changes belong together, and then each can be made by itself."""
    from graphopt.models import get

    model = nets.net("wrong-epsilon", blocks=4, bad=2)
    if pipeline != "fold-batch-norm":
        model = load(get("digits").path())
    feeds = random_feeds(model)
    (pass_,) = parse_pipeline(pipeline)
    before, after = Side(model), Side(run(model, [pass_]).model)
    parts = joined_changes(before, after, pass_.preserves, feeds)
    for part in parts:
        assert_equivalent(model, hybrid(before, after, [part]), rtol=1e-4, feeds=feeds)
    assert_equivalent(after.model, hybrid(before, after, parts), rtol=0, feeds=feeds)
    assert_equivalent(model, hybrid(before, after, []), rtol=0, feeds=feeds)


def test_nothing_changed_is_no_change():
    model = nets.net("dropped-bias", blocks=2, bad=0)
    assert changes(Side(model), Side(model.clone())) == []


def test_the_command(tmp_path: Path, graphopt, planted: Path):
    path = save(nets.net("wrong-axis", blocks=4, bad=1), tmp_path / "m.onnx")
    arguments = ("bisect", path, "--plugin", planted, "-p", "remove-unused,wrong-axis")
    done = graphopt(*arguments, "-o", tmp_path / "found")
    assert done.code == 0, done.err
    assert "wrong-axis, pass 2 of 2, is the first bad one" in done.out
    assert "change 2 of its 4" in done.out
    assert "[second1]" in done.out
    assert (tmp_path / "found" / "good.onnx").exists()
    assert (tmp_path / "found" / "bad.onnx").exists()
    done = graphopt(*arguments, "--check", "error<1e-3", "--json")
    assert done.json["change"]["number"] == 2
    assert done.json["pass"] == "wrong-axis"


def test_a_command_as_check(tmp_path: Path, graphopt, planted: Path):
    model = nets.net("dropped-bias", blocks=3, bad=1)
    path = save(model, tmp_path / "m.onnx")
    script = tmp_path / "check.py"
    np.savez(tmp_path / "x.npz", **random_feeds(model))
    script.write_text(
        "import sys, numpy as np, onnxruntime as ort\n"
        "f = dict(np.load(sys.argv[2]))\n"
        "a, b = (ort.InferenceSession(p).run(None, f)[0] for p in (sys.argv[1], sys.argv[3]))\n"
        "sys.exit(int(abs(a - b).max() > 1e-4))\n"
    )
    check = f"{sys.executable} {script} {path} {tmp_path / 'x.npz'} {{model}}"
    done = graphopt("bisect", path, "--plugin", planted, "-p", "dropped-bias", "--check", check, "--json")
    assert done.code == 0, done.err
    assert done.json["change"]["number"] == 2


@pytest.mark.parametrize(
    ("check", "says"),
    [
        ("no-such-program-at-all {model}", "can't be run"),
        ("error 3", "neither a command"),
        ("accuracy>0.5", "labelled data"),
    ],
)
def test_checks_that_are_none(check: str, says: str, tmp_path: Path, graphopt):
    path = save(nets.net("dropped-bias", blocks=1, bad=9), tmp_path / "m.onnx")
    done = graphopt("bisect", path, "-p", "remove-unused", "--check", check)
    assert done.code == 2
    assert says in done.err


@pytest.mark.slow
def test_a_real_network():
    """MobileNetV2 with one epsilon that the pass overlooks: found among 52, and cut down to that one node."""
    import onnx_ir as ir

    from graphopt.debug import pipeline_fails, reduce
    from graphopt.models import get

    entry = get("mobilenet-v2")
    model = load(entry.path())
    norms = [node for node in model.graph if node.op_type == "BatchNormalization"]
    norms[30].attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.3)
    passes = parse_pipeline("fold-constants,wrong-epsilon,fold-constants")
    at = bisect(model, passes, entry.example(1)).application
    assert (at.number, at.total, at.alone) == (31, 52, True)
    assert at.old[0].startswith(f"[{norms[30].name}]")
    assert reduce(model, pipeline_fails(passes)).nodes == 1


def test_the_way_on_names_the_pass_with_its_options(plugin, small, capsys):
    """Without them `graphopt reduce` would run another pass than the one that failed."""
    (bad,) = parse_pipeline("scale-weights{factor=2}")
    _print(Culprit(bad, 1, 1, "it failed.", None, 1, small, None))
    assert "graphopt reduce -p 'scale-weights{factor=2.0}' finds" in capsys.readouterr().out
