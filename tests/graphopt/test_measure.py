import gc
import importlib.util
import json
import sys
import time

import numpy as np
import pytest

import graphopt
from graphopt.errors import DataError, ModelError, UsageError
from graphopt.measure import bench, evaluate
from graphopt.models.base import Evaluation, accuracy


def sleeper(milliseconds, calls=None, name=""):
    def run(feeds):
        if calls is not None:
            calls.append(name)
        time.sleep(milliseconds / 1e3)
        return feeds

    return run


def test_ratio_is_the_baselines_time_over_the_runners():
    """The sleeps are long beside what a busy machine adds to them."""
    rows = bench({"slow": sleeper(60), "fast": sleeper(20)}, {}, baseline="slow", seconds=0.8)
    slow, fast = rows
    assert (slow.name, slow.ratio) == ("slow", 1.0)
    assert 2.0 < fast.ratio < 3.2
    assert 60.0 < slow.median_ms < 120.0
    assert fast.p10_ms <= fast.median_ms <= fast.p90_ms
    assert fast.ratio_p10 <= fast.ratio <= fast.ratio_p90
    assert slow.rounds == fast.rounds >= 5


def test_runners_take_turns_and_the_first_place_rotates():
    calls = []
    runners = {name: sleeper(0, calls, name) for name in "abc"}
    bench(runners, {}, seconds=0, warmup=1, min_rounds=3)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"


def test_first_runner_is_the_default_baseline():
    assert bench({"only": sleeper(0)}, {}, seconds=0)[0].ratio == 1.0


def test_bad_baselines_are_refused():
    with pytest.raises(UsageError, match="baseline 'x' is not among the runners: a, b"):
        bench({"a": sleeper(0), "b": sleeper(0)}, {}, baseline="x")
    with pytest.raises(UsageError, match="nothing to run"):
        bench({}, {})


def test_evaluate_streams_and_scores_in_order():
    logits = np.eye(4, dtype=np.float32)
    labels = np.array([0, 1, 2, 0])
    alive = []

    def feeds():
        for start in (0, 2):
            alive.append(start)
            yield {"x": logits[start : start + 2]}

    def run(batch):
        assert alive[-1] == {0.0: 0, 1.0: 2}[float(batch["x"][0, 2])]  # no batch is drawn ahead of its turn
        return {"y": batch["x"]}

    evaluation = Evaluation("accuracy", 4, feeds, lambda outputs: accuracy(outputs, "y", labels))
    assert evaluate(run, evaluation) == 0.75


@pytest.fixture(scope="module")
def artifact_path(tmp_path_factory):
    from graphopt import models

    path = tmp_path_factory.mktemp("measure") / "digits.gopt"
    return graphopt.compile(models.get("digits").path(), "llvm").save(path)


def test_bench_artifact_beside_onnxruntime(artifact_path):
    from graphopt.measure.artifact import bench_artifact

    row = bench_artifact(artifact_path, seconds=0.2)
    assert row["rounds"] >= 5
    assert row["graphopt_ms"] > 0
    assert row["onnxruntime_ms"] > 0
    assert row["ratio_p10"] <= row["ratio"] <= row["ratio_p90"]
    assert row["ratio"] == pytest.approx(row["onnxruntime_ms"] / row["graphopt_ms"], rel=0.5)
    json.dumps(row)


def test_several_rivals_in_one_run(artifact_path):
    from graphopt.measure.artifact import bench_artifact

    row = bench_artifact(artifact_path, against=["tvm", "onnxruntime"], seconds=0.2)
    assert list(row["ratios"]) == ["tvm", "onnxruntime"]
    assert row["ratio"] == row["ratios"]["tvm"]
    assert row["ratios"]["tvm"] == pytest.approx(row["tvm_ms"] / row["graphopt_ms"], rel=0.5)


def test_rivals_compute_what_the_oracle_does():
    from graphopt import api, models, oracle
    from graphopt.measure.rivals import open_rivals

    digits = models.get("digits")
    model, feeds = api.open_model(digits.path()), digits.example(2)
    expected = oracle.run(model, feeds)
    names = ["onnxruntime", "tvm", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    for runner in open_rivals(names, model, threads=1).values():
        got = runner(feeds)
        assert list(got) == list(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-5)


def test_a_rival_that_is_not_there_is_refused(monkeypatch):
    from graphopt import api, models
    from graphopt.measure.rivals import open_rivals

    model = api.open_model(models.get("digits").path())
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match="pip install openvino"):
        open_rivals(["openvino"], model, threads=1)
    with pytest.raises(UsageError, match=r"'fastest'.*onnxruntime, onnxruntime-cuda, openvino, tvm"):
        open_rivals(["onnxruntime", "fastest"], model, threads=1)


RUNNER = """
import sys, time, numpy, pathlib
model, inputs, threads, log = sys.argv[1:]
assert pathlib.Path(model).stat().st_size and list(numpy.load(inputs)) == ["image"] and threads == "1"
for _ in sys.stdin:
    time.sleep(0.02)
    print("done", flush=True)
pathlib.Path(log).write_text("ended")
"""


def test_a_command_is_a_rival(artifact_path, tmp_path):
    from graphopt.measure.artifact import bench_artifact

    script, log = tmp_path / "run it.py", tmp_path / "log"
    script.write_text(RUNNER)
    command = f"{sys.executable} '{script}' {{model}} {{inputs}} {{threads}} {log}"
    row = bench_artifact(artifact_path, against=[command], seconds=0.1)
    assert row["ratios"][command] == row["ratio"] > 2
    assert 20 < row[f"{command}_ms"] < 40
    del row
    gc.collect()
    assert log.exists(), "the program outlived the comparison"


def test_a_command_that_fails_is_named(artifact_path):
    from graphopt.measure.artifact import bench_artifact

    with pytest.raises(ModelError, match=r"'false .model.' ended with 1"):
        bench_artifact(artifact_path, against=["false {model}"], seconds=0.1)
    with pytest.raises(UsageError, match=r"'no-such-program .model.' can't be started"):
        bench_artifact(artifact_path, against=["no-such-program {model}"], seconds=0.1)


def test_bench_artifact_takes_inputs_from_a_file(artifact_path, tmp_path):
    from graphopt.measure.artifact import bench_artifact

    np.savez(tmp_path / "wrong.npz", nonsense=np.zeros(3, np.float32))
    with pytest.raises(DataError, match="nonsense"):
        bench_artifact(artifact_path, feeds=tmp_path / "wrong.npz", seconds=0.1)


def test_digits_keep_their_accuracy_through_the_artifact(artifact_path):
    from graphopt import artifact, models

    digits = models.get("digits")
    with artifact.load(artifact_path) as program:
        assert evaluate(program.run, digits.evaluation()) == pytest.approx(digits.baseline, abs=1e-9)
