"""How much each unit matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from graphopt.passes.channels.groups import Channels, Group
from graphopt.passes.channels.observe import Reader

Array: TypeAlias = np.ndarray[Any, Any]
Criterion = Literal["reconstruction", "activation", "l1", "l2", "geometric-median", "random", "taylor"]
NEEDS_DATA = frozenset({"reconstruction", "activation", "taylor"})

AT_ONCE = 1 / 32
"""The part of a group that is judged together before the judgement is renewed."""


def scores(criterion: Criterion, channels: Channels, readers: Sequence[Reader], seed: int) -> Array:
    """The score of each unit, comparable between groups; what is not in a group has infinity.

    l1, l2: the norm of the unit's weights in the layers that make it (Li et al. 2017, Pruning Filters for Efficient
    ConvNets). geometric-median: the sum of its distances to the layer's other filters (He et al. 2019, Filter Pruning
    via Geometric Median). Both divided by the group's mean. random: for comparison.
    activation: ``sum over readers of E[x^2] |W_x|^2 / E|y|^2``, the part of the power of what they read from it.
    reconstruction: the part of that power that is lost when the unit goes and the remaining weights are refitted.
    Units that nothing observed reads go by their share of the power of the weights that make them.
    """
    found = np.full(channels.count, np.inf)
    if criterion in NEEDS_DATA:
        made = _by_weights(channels, _l2)
        for group in channels.groups:
            if not _by_readers(criterion, group, readers, found):
                found[group.units] = made[group.units] / max(float(made[group.units].sum()), 1e-30)
        return found
    if criterion == "random":
        raw = np.random.default_rng(seed).random(channels.count)
    else:
        raw = _by_weights(channels, {"l1": _l1, "l2": _l2, "geometric-median": _distances}[criterion])
        raw = np.sqrt(raw) if criterion == "l2" else raw
    for group in channels.groups:
        found[group.units] = raw[group.units] / max(float(raw[group.units].mean()), 1e-30)
    return found


def _by_weights(channels: Channels, measure: Callable[[Array], Array]) -> Array:
    raw = np.zeros(channels.count)
    for layer in channels.layers:
        if layer.outputs is not None and layer.output_axis is not None:
            rows = np.moveaxis(layer.weight, layer.output_axis, 0).reshape(len(layer.outputs), -1)
            np.add.at(raw, layer.outputs, measure(rows))
    return raw


def _l1(rows: Array) -> Array:
    return np.array([np.abs(row).sum(dtype=np.float64) for row in rows])


def _l2(rows: Array) -> Array:
    return np.array([np.square(row, dtype=np.float64).sum() for row in rows])


def _distances(rows: Array) -> Array:
    squares = _l2(rows)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0.0)).sum(axis=1)


def _by_readers(criterion: Criterion, group: Group, readers: Sequence[Reader], found: Array) -> bool:
    """Scores of one group, into `found`; False where no reader has any of it."""
    parts = [part for reader in readers if (part := _Part.of(reader, group.units, criterion)) is not None]
    alive = np.arange(len(group.units))
    least = 0.0
    step = len(alive) if criterion == "activation" else max(1, round(AT_ONCE * len(alive)))
    while len(alive):
        losses = np.zeros(len(group.units))
        for part in parts:
            part.losses(losses)
        chosen = alive[np.argsort(losses[alive], kind="stable")[:step]]
        for one in chosen:
            least = max(least, float(losses[one])) if criterion == "reconstruction" else float(losses[one])
            found[group.units[one]] = least
        alive = np.setdiff1d(alive, chosen)
        for part in parts if len(alive) else ():
            part.remove(chosen)
    return bool(parts)


class _Part:
    """A group's columns of one reader, shrinking as units go.

    With ``H = (E[x x^T] + damping)^-1`` and ``M = W^T W``, taking out the columns I and refitting the rest costs
    ``tr(H_II^-1 M_II)`` (Optimal Brain Surgeon for blocks: Hassibi and Stork 1993; Kurtic et al. 2023, ZipLM), after
    which, with ``A = H_II^-1 H_I:``,  ``M <- (1 - e_I A)^T M (1 - e_I A)`` and ``H <- H - H_:I A``. Where only the
    powers are known, both are diagonal.
    """

    def __init__(self, owner: Array, inverse: Array, weights: Array, energy: float) -> None:
        self.owner, self.inverse, self.weights, self.energy = owner, inverse, weights, energy

    @classmethod
    def of(cls, reader: Reader, units: Array, criterion: Criterion) -> _Part | None:
        """The part of `reader` that has `units`, owners being places in `units`; None where it has none."""
        place = dict(zip(units.tolist(), range(len(units)), strict=True))
        owner = np.array([place.get(unit, -1) for unit in reader.units.tolist()])
        mine = np.flatnonzero(owner >= 0)
        if not len(mine):
            return None
        if not reader.is_full or criterion == "activation":
            powers = np.diagonal(reader.second) if reader.is_full else reader.second
            weights = np.diagonal(reader.weights) if reader.is_full else reader.weights
            inverse = 1 / np.maximum(powers[mine], 1e-30)
            return cls(owner[mine], inverse, weights[mine], reader.energy)
        block = np.ix_(mine, mine)
        return cls(owner[mine], reader.inverse[block], reader.weights[block], reader.energy)

    def losses(self, into: Array) -> None:
        """Add what each unit still there costs to `into`."""
        if self.inverse.ndim == 1:
            np.add.at(into, self.owner, self.weights / self.inverse / self.energy)
            return
        order = np.argsort(self.owner, kind="stable")
        owners, starts, sizes = np.unique(self.owner[order], return_index=True, return_counts=True)
        for width in np.unique(sizes):
            places = order[starts[sizes == width][:, None] + np.arange(width)]
            blocks = (places[:, :, None], places[:, None, :])
            lost = np.trace(np.linalg.solve(self.inverse[blocks], self.weights[blocks]), axis1=1, axis2=2)
            into[owners[sizes == width]] += np.maximum(lost, 0.0) / self.energy

    def remove(self, chosen: Array) -> None:
        """Take these units' columns out."""
        gone = np.isin(self.owner, chosen)
        stay = ~gone
        if self.inverse.ndim == 2 and gone.any():
            a = np.linalg.solve(self.inverse[np.ix_(gone, gone)], self.inverse[np.ix_(gone, stay)])
            cross = a.T @ self.weights[np.ix_(gone, stay)]
            self.weights = (
                self.weights[np.ix_(stay, stay)] - cross - cross.T + a.T @ self.weights[np.ix_(gone, gone)] @ a
            )
            self.inverse = self.inverse[np.ix_(stay, stay)] - self.inverse[np.ix_(stay, gone)] @ a
        elif gone.any():
            self.weights, self.inverse = self.weights[stay], self.inverse[stay]
        self.owner = self.owner[stay]
