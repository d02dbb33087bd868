"""Reduce brings a failing model down to what the failure needs; deterministic, resumable, stopped by the clock."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.debug import pipeline_fails, reduce
from graphopt.debug.candidate import Candidate, carve
from graphopt.debug.checks import GOOD, Verdict
from graphopt.debug.ddmin import ddmin, window
from graphopt.errors import UsageError
from graphopt.graph import check as valid
from graphopt.graph import load, save, to_bytes
from graphopt.pipeline import load_plugin, parse_pipeline
from graphopt.testing import from_text, op_types

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("planted_nets", HERE / "planted_nets.py")
nets = importlib.util.module_from_spec(spec)
sys.modules["planted_nets"] = nets
spec.loader.exec_module(nets)
SMALLEST = {
    "wrong-axis": {"Transpose"},
    "dropped-bias": {"Conv", "Mul"},
    "shared-value": {"Conv", "Mul"},
    "wrong-epsilon": {"BatchNormalization"},
    "captured-name": {"Conv", "Add", "Mul"},
}


@pytest.fixture(autouse=True)
def planted() -> Path:
    load_plugin(HERE / "planted_bugs.py")
    return HERE / "planted_bugs.py"


@given(st.lists(st.integers(0, 99), min_size=1, unique=True), st.data())
def test_ddmin_gives_exactly_what_is_needed(items, data):
    needed = set(data.draw(st.lists(st.sampled_from(items), min_size=1, unique=True)))

    def fails(some):
        return needed <= set(some)

    assert ddmin(items, fails) == [x for x in items if x in needed]
    assert needed <= set(window(items, fails))
    kept = window(items, fails)
    assert {kept[0], kept[-1]} <= needed


@pytest.mark.parametrize("bug", list(nets.WHERE))
def test_each_planted_bug_comes_down_to_its_place(bug: str):
    model = nets.net(bug, blocks=4, bad=2, fillers=3)
    found = reduce(model, pipeline_fails(parse_pipeline(bug)))
    assert found.finished
    assert found.nodes <= 5, op_types(found.model)
    assert set(op_types(found.model)) >= SMALLEST[bug] - {"Mul"}
    valid(found.model)
    assert pipeline_fails(parse_pipeline(bug))(found.model).bad


def test_500_nodes_to_under_10_in_two_minutes():
    model = nets.net("wrong-epsilon", blocks=30, bad=28, fillers=7)
    assert len(model.graph) > 500
    start = time.monotonic()
    found = reduce(model, pipeline_fails(parse_pipeline("eliminate-identity,wrong-epsilon")))
    assert time.monotonic() - start < 120
    assert found.nodes < 10
    assert "norm28" in [node.name for node in found.model.graph]


def test_shapes_and_weights_become_plain():
    model = nets.net("wrong-axis", blocks=3, bad=1)
    found = reduce(model, pipeline_fails(parse_pipeline("wrong-axis")))
    (value,) = found.model.graph.inputs
    assert max(d for d in value.shape if isinstance(d, int)) <= 4
    model = nets.net("captured-name", blocks=3, bad=1)
    found = reduce(model, pipeline_fails(parse_pipeline("captured-name")))
    arrays = [v.const_value.numpy() for v in found.model.graph.initializers.values()]
    assert any((a == 1).all() for a in arrays)


def test_it_is_deterministic_and_goes_on(tmp_path: Path):
    model = nets.net("dropped-bias", blocks=4, bad=2, fillers=2)
    check = pipeline_fails(parse_pipeline("dropped-bias"))
    state, calls = tmp_path / "state.jsonl", -1000

    def breaking(some):
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt
        return check(some)

    whole = reduce(model, breaking)
    needed, calls = calls + 1000, 0
    with pytest.raises(KeyboardInterrupt):
        reduce(model, breaking, state=state, label="x")
    with state.open("a") as file:
        file.write('{"candidate": "half a li')
    calls = 100
    resumed = reduce(model, breaking, state=state, label="x")
    assert to_bytes(resumed.model) == to_bytes(whole.model)
    assert calls - 100 == needed - 11
    with pytest.raises(UsageError, match="not the state of this reduction"):
        reduce(model, check, state=state, label="another check")


def test_the_clock_stops_it_with_what_it_has():
    model = nets.net("dropped-bias", blocks=6, bad=2, fillers=6)
    check = pipeline_fails(parse_pipeline("dropped-bias"))

    def slow(some):
        time.sleep(0.1)
        return check(some)

    found = reduce(model, slow, seconds=0.5)
    assert not found.finished
    assert check(found.model).bad


def test_only_the_same_failure_counts():
    """Without Sigmoid the check fails in another way: the Sigmoid stays."""
    model = from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Sigmoid(a) c = Neg(b) d = Tanh(c) y = Abs(d) }
        """
    )

    def check(some):
        return Verdict(True, "right" if "Sigmoid" in op_types(some) and "Tanh" in op_types(some) else "other")

    assert op_types(reduce(model, check).model) == ["Sigmoid", "Neg", "Tanh"] or op_types(
        reduce(model, check).model
    ) == ["Sigmoid", "Tanh"]


def test_a_good_model_is_refused():
    model = nets.net("dropped-bias", blocks=1, bad=9)
    with pytest.raises(UsageError, match="passes the check"):
        reduce(model, lambda some: GOOD)


def test_shape_values_that_are_cut_off_become_constants():
    """Reshape by a computed shape: when what computes it goes, its value stays."""
    import numpy as np

    model = from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[2,3,4] x, int64[1] minus) => (float[a,b] y) {
            s = Shape<start=0, end=1>(x)
            t = Concat<axis=0>(s, minus)
            r = Reshape(x, t)
            y = Sigmoid(r)
        }
        """,
        minus=np.array([-1]),
    )
    small = reduce(model, lambda some: Verdict("Reshape" in op_types(some) or None, "x")).model
    assert op_types(small) == ["Reshape"]
    assert small.graph.initializers["t"].const_value.numpy().tolist() == [2, -1]


def test_parts_with_subgraphs_are_models():
    from hypothesis import HealthCheck, settings

    from graphopt.testing import graphs

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(model=graphs(max_steps=6), data=st.data())
    def parts(model, data):
        places = sorted(data.draw(st.sets(st.integers(0, len(model.graph) - 1), min_size=1)))
        part = carve(model, Candidate(tuple(places)), {})
        assert part is None or valid(part) is None

    parts()


def test_the_command(tmp_path: Path, graphopt, planted: Path):
    path = save(nets.net("wrong-axis", blocks=4, bad=1, fillers=2), tmp_path / "m.onnx")
    out = tmp_path / "small.onnx"
    done = graphopt("reduce", path, "--plugin", planted, "-p", "wrong-axis", "-o", out, "--json")
    assert done.code == 0, done.err
    assert done.json["nodes"] == ["first1", "second1"]
    assert op_types(load(out)) == ["Transpose", "Transpose"]
    done = graphopt("reduce", path, "-o", out)
    assert done.code == 2
    assert "--check" in done.err


def test_a_command_as_check(tmp_path: Path, graphopt):
    path = save(nets.net("wrong-axis", blocks=2, bad=1), tmp_path / "m.onnx")
    check = "grep -q LeakyRelu {model} && exit 3 || exit 0"
    out, state = tmp_path / "small.onnx", tmp_path / "state.jsonl"
    done = graphopt("reduce", path, "--check", check, "-o", out, "--state", state)
    assert done.code == 0, done.err
    assert op_types(load(out)) == ["LeakyRelu"]
    assert len(state.read_text().splitlines()) > 3
    assert json.loads(state.read_text().splitlines()[0])["check"] == check
    again = graphopt("reduce", path, "--check", check, "-o", out, "--state", state, "--time-limit", 0.1)
    assert again.code == 0, again.err
    assert op_types(load(out)) == ["LeakyRelu"]


def test_a_branch_that_goes_lets_go_of_what_it_read():
    """Found by fuzzing: the If of a part that is cut off still read the value before it."""
    model = from_text(
        '''<ir_version: 8, opset_import: ["": 17]> g (float[N,4] x, bool flag) => (float[N,4] y) {
        a = Relu(x)
        i = If(flag) <then_branch = t () => (float[N,4] b) { b = Neg(a) },
                     else_branch = e () => (float[N,4] c) { c = Abs(a) }>
        s = Sigmoid(i)
        y = Tanh(s)
        }'''
    )  # fmt: skip
    small = carve(model, Candidate((2,), ("s",)), {})
    assert op_types(small) == ["Sigmoid"]
