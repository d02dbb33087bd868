"""Calibration data: streamed, re-iterable batches of model inputs, from files or from Python."""

from graphopt.data.batches import Batches, Feeds
from graphopt.data.source import Source, open_data

__all__ = ["Batches", "Feeds", "Source", "open_data"]
