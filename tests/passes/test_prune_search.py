"""The search for a pruning budget: what is tried, and what is accepted."""

import pytest

from graphopt import models
from graphopt.api import open_model
from graphopt.base import Context
from graphopt.data import Batches
from graphopt.errors import UsageError
from graphopt.graph.cost import cost
from graphopt.measure.speedup import Beside, Speed
from graphopt.passes.channels.search import search
from graphopt.pipeline import make_target, parse_pipeline, run

PIPELINE = "fold-batch-norm,prune-channels{parameters=0.9,samples=32,rows=512}"


@pytest.fixture(scope="module")
def digits():
    return open_model(models.get("digits").path())


@pytest.fixture(scope="module")
def context():
    return Context(calibration=Batches(lambda: models.get("digits").unlabelled(32), divisible=True))


def find(digits, context, measure, max_drop=0.01, beside=None, pipeline=PIPELINE, tries=4):
    beside = beside or (lambda original: lambda model: Speed(0.5, cost(model).macs / cost(original).macs, 1.0))
    return search(digits, parse_pipeline(pipeline), context, measure, max_drop, beside, tries)


def share(digits):
    whole = cost(digits).macs
    return lambda model: min(1.0, 0.7 + cost(model).macs / whole)


def test_the_smallest_budget_within_the_drop_is_found_and_its_pipeline_repeats_it(digits, context):
    found = find(digits, context, share(digits))  # one point is lost below 0.29 of the arithmetic
    assert found.original_metric == 1.0
    assert found.chosen.metric >= 0.99
    failed = [one.asked for one in found.tried if one.metric < 0.99]
    assert failed
    assert max(failed) < found.chosen.asked == min({one.asked for one in found.tried} - set(failed))
    assert found.chosen.parameters <= 0.9
    again = parse_pipeline(found.report()["pipeline"])
    assert [str(p) for p in again] == [str(p) for p in found.passes]
    assert cost(run(digits, again, context).model).macs == cost(found.model).macs < 0.4 * cost(digits).macs


def test_what_keeps_the_metric_and_is_not_faster_is_not_accepted(digits, context):
    found = find(digits, context, lambda model: 1.0, beside=lambda original: lambda model: Speed(0.1, 0.99, 1.0))
    assert found.chosen is None
    assert all(one.measured == 0.99 for one in found.tried)
    assert [p.name for p in found.passes] == ["fold-batch-norm"]
    assert cost(found.model).parameters > 0.9 * cost(digits).parameters


def test_the_fastest_is_chosen_and_not_the_smallest(digits, context):
    speeds = iter([0.9, 0.5, 0.8, 0.7])
    found = find(digits, context, lambda model: 1.0, beside=lambda original: lambda model: Speed(None, next(speeds), 1))
    assert found.chosen is found.tried[1]


def test_a_metric_that_no_budget_keeps_leaves_the_model(digits, context):
    whole = cost(digits).parameters
    found = find(digits, context, lambda model: float(cost(model).parameters > 0.95 * whole), tries=2)
    assert found.chosen is None
    assert [one.measured for one in found.tried] == [None, None]


@pytest.mark.parametrize(
    ("pipeline", "reason"),
    [
        ("fold-batch-norm", "one prune-channels, not 0"),
        ("prune-channels,prune-channels", "not 2"),
        ("prune-channels{ratio=0.5}", "leave its ratio out"),
    ],
)
def test_pipelines_that_cannot_be_searched(digits, context, pipeline, reason):
    with pytest.raises(UsageError, match=reason):
        find(digits, context, lambda model: 1.0, pipeline=pipeline)


def test_predicted_time_follows_the_work_that_is_left(digits):
    beside = Beside(digits, make_target("llvm{threads=1}"), models.get("digits").example(1))
    half = open_model(digits)
    context = Context()
    small = parse_pipeline("prune-channels{ratio=0.25,allocation=uniform,recover=false,criterion=l2}")[0]
    assert beside.predict(half) == pytest.approx(1.0)
    small.apply(half, context)
    assert 0.2 < beside.predict(half) < 0.95
    speed = beside.speed(half)
    assert speed.predicted == beside.predict(half)
    assert 0 < speed.measured < 1.5
