"""What is in a model: operators, shapes, costs, memory, weights, quantization, and what passes would do with it."""

from graphopt.inspect.built import Built, built
from graphopt.inspect.select import select
from graphopt.inspect.summary import Summary, inspect
from graphopt.inspect.text import as_csv, as_text

__all__ = ["Built", "Summary", "as_csv", "as_text", "built", "inspect", "select"]
