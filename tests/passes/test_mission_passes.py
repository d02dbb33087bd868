"""The four passes of the mission one after the other: each must leave what the next can work with."""

import pytest

from graphopt import oracle
from graphopt.api import run_pipeline
from graphopt.demo import PIPELINE
from graphopt.measure import evaluate
from graphopt.models import get

SOLVED = (
    "fold-batch-norm,substitute-distilled{regions=2,max_error=0.25},"
    "prune-magnitude{sparsity=0.2,scope=global},insert-qdq"
)
"""A depthwise student whose filters nearly cancel fell from .992 to .894 when quantized."""


@pytest.mark.parametrize("pipeline", [PIPELINE, SOLVED], ids=["trained", "solved"])
def test_all_four_take_effect_and_keep_the_digits_accuracy(pipeline):
    model = get("digits")
    result = run_pipeline(model.path(), pipeline, calibration=model.calibration)
    assert [bool(step.report.changes) for step in result.steps] == [True] * 4
    assert evaluate(oracle.Session(result.model).run, model.evaluation()) >= model.baseline - 0.02
