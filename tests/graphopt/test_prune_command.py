"""``graphopt prune``."""

import json

import numpy as np

from graphopt import models
from graphopt.api import open_model
from graphopt.graph import load
from graphopt.graph.cost import cost


def test_digits_by_agreement_and_by_the_labels_of_a_reference_model(graphopt, tmp_path):
    data = tmp_path / "samples.npz"
    np.savez(data, image=np.concatenate([feeds["image"] for feeds in models.get("digits").unlabelled(128)]))
    out = tmp_path / "small.onnx"
    base = ["prune", str(models.get("digits").path()), "-o", str(out), "--calibration", str(data), "--tries", "2"]
    printed = json.loads(graphopt(*base, "--max-drop", "0.1", "--json").out)
    assert (printed["metric"], printed["n"], printed["original"]) == ("agreement", 32, 1.0)
    assert len(printed["tried"]) == 2
    if printed["chosen"] is not None:  # a busy machine may find nothing faster
        assert printed["chosen"]["measured"] <= 0.97
        assert cost(load(out)).macs < 0.8 * cost(open_model(models.get("digits").path())).macs
    passes = "fold-batch-norm,prune-channels{criterion=random}"
    done = graphopt(*base, "--tries", "1", "--evaluation", "digits", "-p", passes)
    assert "To repeat: -p 'fold-batch-norm" in done.out
    assert "accuracy on 300 samples" in done.out


def test_what_cannot_be_chosen_by_is_said(graphopt, tmp_path):
    digits = models.get("digits").path()
    done = graphopt("prune", digits, "-o", tmp_path / "o.onnx")
    assert (done.code, "--calibration" in done.err) == (4, True)
    data = tmp_path / "samples.npz"
    np.savez(data, image=np.zeros((8, 1, 8, 8), np.float32))
    done = graphopt("prune", digits, "-o", tmp_path / "o.onnx", "--calibration", data, "--metric", "accuracy")
    assert (done.code, "accuracy needs labels" in done.err) == (2, True)
    assert not (tmp_path / "o.onnx").exists()
