"""Measuring: latency of several runners side by side, and a metric on labelled data."""

from graphopt.measure.evaluate import evaluate
from graphopt.measure.latency import Latency, bench

__all__ = ["Latency", "bench", "evaluate"]
