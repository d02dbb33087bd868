"""What a comparison found."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from graphopt.noise import CLEAN, Error

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class NodeError:
    """The error of one value. `node` computes it in the second model; `before` are the nodes of the first behind it.

    `accumulated`: in the second model as it runs. `alone`: computed from the first model's values of what was compared
    before it, so only the error that this place makes itself. `passes`: passes that made or changed nodes there, in
    order, as far as the model says; where one of them is lossy, only the lossy ones.
    """

    node: str
    op: str
    before: list[str]
    value: str
    accumulated: Error
    alone: Error
    passes: list[str]


@dataclasses.dataclass(frozen=True)
class OutputError:
    """The error of an output: of the second model's graph, and of what was compiled from it (None: not compiled)."""

    name: str
    graph: Error
    compiled: Error | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`nodes` in the order of the second model's graph. `left`: what could not be compared -> why.

    `samples`: how many batches were run. `threshold_db`: what `first` was sought with.
    """

    nodes: list[NodeError]
    outputs: list[OutputError]
    left: dict[str, str]
    samples: int
    threshold_db: float

    @property
    def first(self) -> NodeError | None:
        """The first node whose accumulated error is past the threshold."""
        return next((node for node in self.nodes if node.accumulated.db < self.threshold_db), None)

    @property
    def cause(self) -> NodeError | None:
        """Of the nodes up to `first`, the one with the largest error of its own: it may be `first` itself."""
        if self.first is None:
            return None
        return min(self.nodes[: self.nodes.index(self.first) + 1], key=lambda node: node.alone.db)

    @property
    def past(self) -> bool:
        """Whether a node, an output of the graph or a compiled output is past the threshold."""
        errors = [error for one in self.outputs for error in (one.graph, one.compiled) if error is not None]
        return self.first is not None or any(error.db < self.threshold_db for error in errors)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists; infinite errors as null."""
        found = dataclasses.asdict(self)
        for name in ("first", "cause"):
            node: NodeError | None = getattr(self, name)
            found[name] = None if node is None else dataclasses.asdict(node)
        found["past"] = self.past
        return _finite(found)

    def verdict(self) -> Iterator[str]:
        """Sentences: outputs, the first node past the threshold, where the error comes from."""
        batches = "1 batch" if self.samples == 1 else f"{self.samples} batches"
        equal = sum(node.accumulated.db == CLEAN for node in self.nodes)
        yield f"{len(self.nodes)} values compared on {batches}, {equal} of them without any error"
        for name, why in self.left.items():
            yield f"not compared: {name}: {why}"
        for one in self.outputs:
            compiled = "" if one.compiled is None else f"; compiled {_words(one.compiled)}"
            yield f"output {one.name}: {_words(one.graph)}{compiled}"
        first, cause = self.first, self.cause
        if first is None or cause is None:
            yield f"no node is below {self.threshold_db:g} dB"
            return
        yield f"first below {self.threshold_db:g} dB: {_who(first)}, {first.accumulated.db:.1f} dB"
        if cause is first:
            yield f"its own error: {cause.alone.db:.1f} dB{_by(cause)}"
        else:
            yield f"most of it comes from {_who(cause)}, by itself {cause.alone.db:.1f} dB{_by(cause)}"


def _who(node: NodeError) -> str:
    return f"{node.node} ({node.op})"


def _by(node: NodeError) -> str:
    return f"; brought in by {', '.join(node.passes)}" if node.passes else "; the model does not say by which pass"


def _words(error: Error) -> str:
    if error.db == CLEAN:
        return "equal"
    return f"{error.db:.1f} dB, off by at most {error.largest:.3g}, {error.relative:.2g} of the largest value"


def _finite(item: Any) -> Any:
    if isinstance(item, dict):
        return {name: _finite(part) for name, part in item.items()}
    if isinstance(item, list):
        return [_finite(part) for part in item]
    return None if item in (float("inf"), float("-inf")) else item
