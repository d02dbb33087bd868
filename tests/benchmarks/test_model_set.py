"""Reference models compiled alone, open sizes left open, compute what onnxruntime does at several of them."""

from pathlib import Path

import pytest

from graphopt import models

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    "name", [name if name == "digits" else pytest.param(name, marks=pytest.mark.slow) for name in models.names()]
)
def test_a_model_matches_at_every_size(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from model_set import row

    found = row(name)
    assert found["error"] < 1e-3
    assert len(found["ran"]) == (1 if name == "yolox" else 2)
    assert bool(found["open"]) == (name != "yolox")
