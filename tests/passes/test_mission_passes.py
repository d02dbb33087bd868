"""The four passes of the mission one after the other: each must leave what the next can work with."""

from graphopt import oracle
from graphopt.api import run_pipeline
from graphopt.demo import PIPELINE
from graphopt.measure import evaluate
from graphopt.models import get


def test_the_demo_pipeline_keeps_the_digits_accuracy():
    """A depthwise student whose filters nearly cancel fell from .992 to .894 when quantized."""
    model = get("digits")
    result = run_pipeline(model.path(), PIPELINE, calibration=model.calibration)
    assert [bool(step.report.changes) for step in result.steps] == [True] * 4
    assert evaluate(oracle.Session(result.model).run, model.evaluation()) >= model.baseline - 0.02
