"""Sensitivity and mixed precision: noise lies where it was put, and the metric holds on other data."""

import dataclasses
import functools
import json

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from graphopt import measure, models, oracle
from graphopt.api import run_pipeline
from graphopt.base import Context
from graphopt.cli.app import app
from graphopt.data import open_data
from graphopt.errors import DataError, PassError, UsageError
from graphopt.graph import bind_dims, load, save
from graphopt.graph.cost import macs
from graphopt.graph.provenance import sources
from graphopt.measure.labelled import labelled
from graphopt.measure.mixed import shares
from graphopt.models.digits import data
from graphopt.passes.correct.twin import float_twin
from graphopt.passes.precision import search, sensitivity
from graphopt.passes.precision.cost import estimate
from graphopt.passes.precision.sensitivity import decibels
from graphopt.pipeline import parse_pipeline

PATH = models.get("digits").path()


@functools.cache
def float_model():
    return run_pipeline(PATH, "fold-batch-norm").model


def quantized(options=""):
    return run_pipeline(PATH, f"fold-batch-norm,insert-qdq{options}", calibration=models.get("digits").calibration)


def batches():
    return open_data(models.get("digits").calibration, float_model())


def test_a_bad_weight_is_found():
    """One layer's scale is spoilt: it is the worst alone and at the outputs, and those behind it only accumulated."""
    model = quantized().model
    clean = {n.node: n for n in sensitivity(model, batches())}
    node = next(n for n in model.graph if n.name == "conv3")
    scale = node.inputs[1].producer().inputs[1]
    scale.const_value = ir.tensor(scale.const_value.numpy() * np.float32(1.5))
    spoilt = {n.node: n for n in sensitivity(model, batches())}
    assert min(spoilt.values(), key=lambda n: n.output).node == "conv3"
    assert min(spoilt.values(), key=lambda n: n.alone).node == "conv3"
    assert spoilt["conv3"].alone < 8
    assert spoilt["conv5"].alone == pytest.approx(clean["conv5"].alone)
    assert spoilt["conv5"].accumulated < clean["conv5"].accumulated - 10
    assert spoilt["conv1"] == clean["conv1"]


def test_noise_of_one_node_is_that_of_a_model_with_it_alone():
    """Against the definition: insert-qdq of one node, and the logits it gives."""
    noises = {n.node: n for n in sensitivity(quantized("{observer=minmax}").model, batches(), samples=64)}
    alone = quantized("{observer=minmax,include=[conv4]}").model
    feeds = [f for f, _ in zip(batches(), range(2), strict=False)]
    signal = error = 0.0
    for piece in feeds:
        want, got = (oracle.run(m, piece)["logits"].astype(np.float64) for m in (float_model(), alone))
        signal, error = signal + (want**2).sum(), error + ((want - got) ** 2).sum()
    assert noises["conv4"].output == pytest.approx(10 * np.log10(signal / error), abs=0.01)


def test_only_kept_nodes_stay_quantized():
    model = quantized().model
    twin = float_twin(model, "x", keep={"conv4"})
    names = [v.producer().op_type for n in twin.graph if n.name == "conv4" for v in n.inputs]
    assert names == ["DequantizeLinear"] * 3
    assert sum(n.op_type == "DequantizeLinear" for n in twin.graph) == 3


def test_decibels():
    assert decibels(100.0, 1.0) == pytest.approx(20)
    assert decibels(1.0, 0.0) == 200
    assert decibels(0.0, 1.0) == -200
    assert decibels(1.0, np.nan) == -200


def test_needs_float_weights(tmp_path):
    path = save(quantized().model, tmp_path / "q.onnx")
    with pytest.raises(PassError, match="same pipeline"):
        sensitivity(load(path), batches())


def test_estimate_counts_borders():
    """All integers is fastest; one float layer between integers costs two borders; all float is the reference."""
    model = quantized().model
    everything = {n.name for n in model.graph}
    whole, none = estimate(model), estimate(float_twin(model, "x"))
    one = estimate(float_twin(model, "x", keep=everything - {"conv3"}))
    assert whole < one < none


def accuracy(model):
    return measure.evaluate(oracle.Session(model).run, models.get("digits").evaluation())


def test_mixture_keeps_the_metric():
    passes = parse_pipeline("fold-batch-norm,insert-qdq{weight_bits=3}")
    found = search(load(PATH), passes, Context(calibration=batches()), accuracy, 0.015)
    assert found.frontier[0].floats == ()
    assert found.frontier[0].metric < found.float_metric - 0.015  # there is something to do
    assert found.chosen.metric >= found.float_metric - 0.015
    assert found.chosen.time == min(p.time for p in found.frontier if p.metric >= found.float_metric - 0.015)
    assert 0 < len(found.chosen.floats) < 6
    assert accuracy(found.model) == found.chosen.metric
    text = found.report()["pipeline"]
    again = run_pipeline(PATH, text, calibration=models.get("digits").calibration).model
    assert accuracy(again) == found.chosen.metric  # what is printed gives the same model


def test_no_mixture_is_good_enough():
    passes = parse_pipeline("fold-batch-norm,insert-qdq{weight_bits=3}")
    found = search(
        load(PATH), passes, Context(calibration=batches()), lambda m: 1 - 0.5 * _has_integers(m), 0.01, samples=4
    )
    assert found.chosen is None
    assert not _has_integers(found.model)
    assert len(found.frontier) <= 5


def _has_integers(model):
    return any(n.op_type == "DequantizeLinear" for n in model.graph)


def test_slower_integers_stay_float():
    """By a target's times: here conv1 in integers takes longer than in float."""

    def time(model):
        reads = {
            n.name for n in model.graph for v in n.inputs if (p := v.producer()) and p.op_type == "DequantizeLinear"
        }
        return 10 - len(reads) + 5 * ("conv1" in reads)

    passes = parse_pipeline("fold-batch-norm,insert-qdq")
    found = search(load(PATH), passes, Context(calibration=batches()), accuracy, 0.05, time=time, samples=4)
    assert found.slower == ["conv1"]
    assert found.chosen.floats == ("conv1",)


def test_integers_that_are_no_faster_are_left():
    """However good the metric: what a target computes slower than float32 is no result."""
    passes = parse_pipeline("fold-batch-norm,insert-qdq")
    found = search(
        load(PATH), passes, Context(calibration=batches()), accuracy, 0.05, time=lambda m: 1 + _has_integers(m),
        gains=lambda quantized, twin, names: dict.fromkeys(names, 1.0), samples=4,
    )  # fmt: skip
    assert found.chosen is None
    assert not _has_integers(found.model)
    assert [point.time for point in found.frontier] == [2.0]


def test_kernels_times_are_shared_out_over_their_nodes():
    model = quantized().model
    conv3, conv4 = (next(n for n in model.graph if n.name == name) for name in ("conv3", "conv4"))
    (third,), (fourth,) = sources(conv3)[:1], sources(conv4)[:1]
    times = [(frozenset([third]), 1.0, "a"), (frozenset([third, fourth]), 4.0, "b"), (frozenset(), 9.0, "c")]
    spent = shares(times, model, ["conv3", "conv4", "conv1"])
    assert spent["conv1"] == 0
    assert spent["conv3"] + spent["conv4"] == pytest.approx(5)
    assert (spent["conv3"] - 1) / spent["conv4"] == pytest.approx(macs(conv3) / macs(conv4), rel=1e-3)


def test_mixture_by_times_on_the_target(files):
    """Each mixture is compiled and timed beside the float model; the gains come from both models' kernels."""
    done = call(
        "quantize", PATH, "-o", files / "q.onnx", "--calibration", files / "calibration.npz", "--evaluation",
        files / "labelled.npz", "--samples", 4, "--target", "llvm", "--json",
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert result["target"] == "llvm"
    assert result["won"].keys() == {f"conv{i}" for i in range(1, 6)} | {"classifier"}
    assert all(0.1 < point["time"] < 10 for point in result["frontier"])
    fastest = min(p["time"] for p in result["frontier"] if p["metric"] >= result["float"] - 0.01)
    assert result["chosen"] is None if fastest >= 1 else result["chosen"]["time"] == fastest


def test_search_refuses():
    with pytest.raises(UsageError, match="insert-qdq"):
        search(load(PATH), parse_pipeline("fold-batch-norm"), Context(calibration=batches()), accuracy, 0.01)
    with pytest.raises(UsageError, match="negative"):
        search(load(PATH), parse_pipeline("insert-qdq"), Context(calibration=batches()), accuracy, -0.01)


@pytest.fixture
def files(tmp_path):
    images, labels = data()
    np.savez(tmp_path / "calibration.npz", image=images[:64])
    np.savez(tmp_path / "labelled.npz", image=images[64:264], labels=labels[64:264], other=labels[64:264] * 0)
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)


def test_commands(files):
    common = ["--calibration", files / "calibration.npz", "--json"]
    done = call("sensitivity", PATH, *common, "--samples", 8)
    nodes = json.loads(done.stdout)["nodes"]
    assert {"conv1", "classifier"} <= {n["node"] for n in nodes}
    assert nodes == sorted(nodes, key=lambda n: n["output"])
    out = files / "q.onnx"
    done = call("quantize", PATH, "-o", out, *common, "--evaluation", files / "labelled.npz", "--samples", 4)
    result = json.loads(done.stdout)
    assert (result["metric"], result["n"]) == ("accuracy", 200)
    assert result["chosen"]["metric"] >= result["float"] - 0.01
    done = call("evaluate", out, "--data", files / "labelled.npz", "--json")
    assert json.loads(done.stdout)["value"] == pytest.approx(result["chosen"]["metric"], abs=0.006)
    table = call("quantize", PATH, "-o", out, *common[:2], "--evaluation", "digits", "--samples", 4).stdout
    assert "chosen" in table
    assert "To repeat" in table


def test_labelled_data(files):
    path, model = files / "labelled.npz", float_model()
    evaluation = labelled(path, model)
    assert measure.evaluate(oracle.Session(model).run, evaluation) > 0.98
    assert measure.evaluate(oracle.Session(model).run, labelled(path, model, "agreement")) == 1.0
    assert measure.evaluate(oracle.Session(model).run, labelled(path, model, labels="other")) < 0.3
    with pytest.raises(DataError, match="--labels"):
        labelled(path, model, labels="absent")
    with pytest.raises(DataError, match="class numbers"):
        labelled(path, model, labels="image")
    with pytest.raises(DataError, match="there is no file"):
        labelled(files / "absent.npz", model)
    (files / "bad.npz").write_bytes(b"no")
    with pytest.raises(DataError, match="readable"):
        labelled(files / "bad.npz", model)
    with pytest.raises(DataError, match="labels for"):
        evaluation.score([{"logits": np.zeros((3, 10))}])


def test_labelled_data_of_a_fixed_batch(files):
    """What does not fill a batch is not run, so its labels don't count."""
    model = float_model().clone()
    bind_dims(model, {"N": 64})
    evaluation = labelled(files / "labelled.npz", model)
    assert evaluation.n == 192, "200 samples in batches of 64"
    assert measure.evaluate(oracle.Session(model).run, evaluation) > 0.98


def test_bad_arguments(files):
    data_ = ["--calibration", files / "calibration.npz"]
    for arguments, words in [
        (["evaluate", PATH], "one of --model and --data"),
        (["sensitivity", PATH], "--calibration"),
        (["quantize", PATH, "-o", files / "q.onnx", "--evaluation", "digits"], "--calibration"),
        (
            ["quantize", PATH, "-o", files / "q.onnx", *data_, "--evaluation", "digits", "--metric", "agreement"],
            "metric",
        ),
        (["quantize", PATH, "-o", files / "q.onnx", *data_, "--evaluation", "digit"], "Did you mean"),
    ]:
        assert words in str(call(*arguments).exception)
    assert dataclasses.is_dataclass(sensitivity(quantized().model, batches(), 1)[0])
