"""Training as a whole: against closed forms, with masks, checkpoints, labels, and what it refuses."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import graphopt
from graphopt import models, oracle
from graphopt.api import run_pipeline
from graphopt.cli.app import app
from graphopt.data import Batches, open_data
from graphopt.errors import DataError, UsageError
from graphopt.graph import load, save
from graphopt.passes.fine_tune import FineTune
from graphopt.testing import from_text
from graphopt.training import stream
from graphopt.training.fit import fit
from graphopt.training.optimizers import Optimizer
from graphopt.training.settings import Settings

HEADER = '<ir_version: 9, opset_import: ["": 18]>'


def net(body, inputs="float[N,6] x", out="float[N,c] y", seed=0, **shapes):
    """A model from the body of a graph, with random weights of these shapes."""
    rng = np.random.default_rng(seed)
    arrays = {name: (rng.standard_normal(shape) / 2).astype(np.float32) for name, shape in shapes.items()}
    declared = [f"float{list(a.shape)} {name}" for name, a in arrays.items()]
    return from_text(f"{HEADER}\ng ({', '.join([inputs, *declared])}) => ({out}) {{ {body} }}", **arrays)


TWO_LAYERS = {"body": "h = Gemm(x, a, b) r = Relu(h) y = Gemm(r, c, d)", "a": (6, 8), "b": (8,), "c": (8, 3), "d": (3,)}


def data(model, n=64, seed=1):
    return open_data({"x": np.random.default_rng(seed).standard_normal((n, 6)).astype(np.float32)}, model)


def weights(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.05), ("adam", 0.1)])
def test_least_squares(optimizer, lr):
    """A linear student of a teacher that isn't linear ends at numpy's least squares solution."""
    teacher, student = net(**TWO_LAYERS), net("y = Gemm(x, w, b)", w=(6, 3), b=(3,), seed=5)
    x = np.random.default_rng(1).standard_normal((64, 6)).astype(np.float32)
    twice = open_data({"x": np.repeat(x, 2, axis=0)}, teacher)  # so that what is held out is what is trained on
    options = Settings(epochs=150, lr=lr, batch=64, optimizer=optimizer, mixup=0, held_out=0.5, patience=200)
    fit(student, teacher, twice, options)
    y = oracle.run(teacher, {"x": x})["y"]
    matrix = np.column_stack([x, np.ones(len(x))])
    best = np.linalg.norm(matrix @ np.linalg.lstsq(matrix, y, rcond=None)[0] - y)
    assert best <= np.linalg.norm(oracle.run(student, {"x": x})["y"] - y) * (1 + 1e-6)
    assert np.linalg.norm(oracle.run(student, {"x": x})["y"] - y) < best * 1.002


def test_zeros_stay():
    """Pruned weights stay zero, others and biases move; without the mask they come back."""
    teacher, student = net(**TWO_LAYERS), net(**TWO_LAYERS)
    pruned = weights(student)["a"].copy()
    pruned[np.abs(pruned) < 0.3] = 0
    value = student.graph.initializers["a"]
    value.const_value = type(value.const_value)(pruned, name="a")
    free = student.clone()
    history = fit(student, teacher, data(teacher), Settings(epochs=8, batch=16))
    assert history.best > 0
    assert history.losses[history.best] == min(history.losses) < history.losses[0]
    np.testing.assert_array_equal(weights(student)["a"] == 0, pruned == 0)
    assert (weights(student)["a"] != pruned).any()
    fit(free, teacher, data(teacher), Settings(epochs=2, batch=16, keep_zeros=False))
    assert (weights(free)["a"] != 0).all()


def test_deterministic():
    """The same seed gives the same weights, bit for bit; another one others."""
    results = []
    for seed in (0, 0, 1):
        student = net(**TWO_LAYERS, seed=3)
        fit(student, net(**TWO_LAYERS), data(student), Settings(epochs=3, batch=8), seed=seed)
        results.append(weights(student)["a"])
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()


def test_resume(tmp_path, monkeypatch):
    """Training that was interrupted goes on from its last epoch and ends as if it had not been."""
    teacher = net(**TWO_LAYERS)
    options = Settings(epochs=4, batch=8, checkpoint=str(tmp_path / "c.npz"))
    whole = net(**TWO_LAYERS, seed=3)
    expected = fit(whole, teacher, data(whole), Settings(epochs=4, batch=8))

    real, steps = Optimizer.update, []

    def interrupted(self, *arguments):
        steps.append(self)
        if len(steps) == 17:
            raise KeyboardInterrupt
        real(self, *arguments)

    student = net(**TWO_LAYERS, seed=3)
    before = weights(student)["a"].copy()
    monkeypatch.setattr(Optimizer, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(student, teacher, data(student), options)
    assert [path.name for path in tmp_path.iterdir()] == ["c.npz"]
    np.testing.assert_array_equal(weights(student)["a"], before)
    monkeypatch.setattr(Optimizer, "update", real)
    history = fit(student, teacher, data(student), options)
    assert history.losses == expected.losses
    assert history.steps == expected.steps == 28
    np.testing.assert_array_equal(weights(student)["a"], weights(whole)["a"])
    with pytest.raises(UsageError, match="other settings"):
        fit(student, teacher, data(student), Settings(epochs=5, batch=8, checkpoint=options.checkpoint))
    (tmp_path / "c.npz").write_bytes(b"PK rubbish")
    with pytest.raises(UsageError, match="not a checkpoint"):
        fit(student, teacher, data(student), options)


def test_early_stop_and_best():
    """A rate that is far too high is stopped, and the weights are those that were best: here the first."""
    teacher = net(**TWO_LAYERS)
    student = net(**TWO_LAYERS)
    before = weights(student)["a"].copy()
    history = fit(student, teacher, data(teacher), Settings(epochs=50, lr=5.0, batch=8, patience=2))
    assert history.best == 0
    assert history.stopped
    assert len(history.losses) <= 4
    np.testing.assert_array_equal(weights(student)["a"], before)


def test_labels():
    """With labels alone, no teacher: a linear classifier learns classes that are linear."""
    model = net("y = Gemm(x, w, b)", w=(6, 3), b=(3,))
    x = np.random.default_rng(1).standard_normal((256, 6)).astype(np.float32)
    labels = (x @ np.random.default_rng(2).standard_normal((6, 3))).argmax(1)
    trained = graphopt.fine_tune(model, {"x": x}, labels=labels, epochs=80, lr=0.05, mixup=0)
    assert (oracle.run(model, {"x": x})["y"].argmax(1) == labels).mean() < 0.6
    assert (oracle.run(trained, {"x": x})["y"].argmax(1) == labels).mean() > 0.95
    with pytest.raises(DataError, match="3 classes"):
        graphopt.fine_tune(model, {"x": x}, labels=labels + 1)
    with pytest.raises(DataError, match="255 labels"):
        graphopt.fine_tune(model, {"x": x}, labels=labels[1:])
    with pytest.raises(UsageError, match="to follow"):
        graphopt.fine_tune(model, {"x": x})
    with pytest.raises(UsageError, match="option 'epoch'"):
        graphopt.fine_tune(model, {"x": x}, labels=labels, epoch=3)


def test_refusals():
    """Nothing to train, an unknown output: by name."""
    model = net("y = Relu(x)", out="float[N,6] y")
    with pytest.raises(UsageError, match="no weight to train"):
        fit(model, model, data(model), Settings())
    model = net(**TWO_LAYERS)
    with pytest.raises(UsageError, match="no output of floats named z"):
        fit(model, model, data(model), Settings(outputs=("z",)))


def test_include():
    """Only the layers named are trained."""
    teacher, student = net(**TWO_LAYERS), net(**TWO_LAYERS, seed=3)
    for node in student.graph:
        node.name = node.outputs[0].name
    before = {name: array.copy() for name, array in weights(student).items()}
    fit(student, teacher, data(teacher), Settings(epochs=2, batch=16, include=("y",)))
    moved = {name for name, array in weights(student).items() if (array != before[name]).any()}
    assert moved == {"c", "d"}


def test_minibatches(monkeypatch):
    """Shuffled, every sample comes once but for an incomplete end; a small buffer shuffles less and loses none."""
    batches = Batches(lambda: ({"x": np.arange(k, k + 10)[:, None]} for k in range(0, 50, 10)), divisible=True)
    for buffer in (1 << 20, 8 * 7):
        monkeypatch.setattr(stream, "BUFFER", buffer)
        drawn = list(stream.minibatches(batches, 8, np.random.default_rng(0)))
        seen = np.concatenate([feeds["x"][:, 0] for feeds in drawn])
        assert [len(feeds["x"]) for feeds in drawn] == [8] * 6
        assert len(set(seen)) == 48
        assert (np.diff(seen) != 1).any()
    ordered = [feeds["x"][:, 0].tolist() for feeds in stream.minibatches(batches, 8, None)]
    assert ordered[0] == list(range(8))
    assert ordered[-1] == [48, 49, 0, 1, 2, 3, 4, 5]


def test_schedules():
    """The rate rises, then stays or falls to nothing."""
    ends = {"constant": 0.1, "linear": 0.0, "cosine": 0.0}
    for schedule, end in ends.items():
        settings = Settings(lr=0.1, schedule=schedule, warmup=0.1)
        assert settings.rate(0.05) == pytest.approx(0.05)
        assert settings.rate(0.1) == pytest.approx(0.1)
        assert settings.rate(1.0) == pytest.approx(end)


def test_recovers_what_pruning_lost(tmp_path):
    """digits at a quarter of its MACs, by the command line: training regains most of what pruning cost."""
    entry = models.get("digits")
    samples = [feeds["image"] for feeds in entry.calibration()]
    np.savez(tmp_path / "c.npz", image=np.concatenate(samples))
    passes = "fold-batch-norm,prune-channels{macs=0.25},fine-tune{epochs=20,lr=0.003}"
    command = ["opt", str(entry.path()), "-p", passes, "--calibration", str(tmp_path / "c.npz"), "--json"]
    result = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "small.onnx")])
    assert result.exit_code == 0, result.output
    steps = json.loads(result.stdout)["passes"]
    losses = steps[-1]["facts"]["losses"]
    assert min(losses) < losses[0] * 0.7
    tuned = load(tmp_path / "small.onnx")
    evaluation = entry.evaluation()
    session = oracle.Session(tuned)
    assert evaluation.score(session.run(feeds) for feeds in evaluation.feeds()) > 0.965


def test_fixed_batch_and_labels_file(tmp_path):
    """A model of one sample at a time is trained batch by batch; labels come from a file."""
    model = net("y = Gemm(x, w, b)", inputs="float[1,6] x", out="float[1,3] y", w=(6, 3), b=(3,))
    save(model, tmp_path / "m.onnx")
    x = np.random.default_rng(1).standard_normal((20, 6)).astype(np.float32)
    np.save(tmp_path / "l.npy", np.zeros((20, 1), np.int64))
    tune = FineTune(epochs=2, labels=str(tmp_path / "l.npy"), distil=0, mixup=0)
    result = run_pipeline(tmp_path / "m.onnx", [tune], calibration={"x": x})
    assert result.steps[0].report.facts["best"] == 2
    np.save(tmp_path / "l.npy", np.array(["a"]))
    with pytest.raises(DataError, match="labels"):
        run_pipeline(tmp_path / "m.onnx", [tune], calibration={"x": x})
