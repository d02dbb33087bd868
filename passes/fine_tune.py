"""Fine-tuning: the model's weights are trained toward the outputs of the original model, and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from graphopt.base import LOSSY, Context, Pass, Preserves, Report
from graphopt.errors import DataError
from graphopt.training.settings import Settings


@dataclass(frozen=True)
class FineTune(Settings, Pass):
    """Trains the weights toward the original model's outputs on the calibration data, and toward labels if given.

    The original is the model that came into the pipeline: what pruning or substitution lost comes back. TVM
    differentiates the model; the loss is ``task * L_task + distil * sum_i |f_original(x_i) - f(x_i)|``.

    labels: a .npy file with the class of each calibration sample in order, or the value it should give.

    epochs, lr, batch, optimizer, schedule, warmup, weight_decay, distance, temperature, distil, task, outputs, mixup,
    held_out, patience, keep_zeros, checkpoint, include, exclude: see `graphopt.training.settings`.
    """

    name: ClassVar[str] = "fine-tune"
    preserves: ClassVar[Preserves] = LOSSY

    labels: str = ""

    def apply(self, model: ir.Model, context: Context) -> Report:
        """Facts: `losses` on held-out data before and after each epoch, `best` the epoch kept, `steps`, `seconds`.

        Raises:
            DataError: no calibration data, or too few; labels that can't be read or don't fit.
            LoweringError: an operator has no gradient.
            UsageError: no weight to train, or nothing to follow.
        """
        from graphopt.training.fit import fit

        data, report = context.needs_calibration(self.name), Report()
        labels = _read(self.labels) if self.labels else None
        history = fit(model, context.original, data, self, labels=labels, seed=context.seed)
        first, best = history.losses[0], history.losses[history.best]
        if history.best:
            report.change("model", f"{history.weights} weights trained: held-out loss {first:.4g} -> {best:.4g}")
        else:
            report.skip("model", f"no epoch was better than the held-out loss of {first:.4g} there was before")
        if history.stopped:
            report.skip("model", f"stopped after {len(history.losses) - 1} epochs: {history.stopped}")
        report.facts |= {"losses": history.losses, "best": history.best}
        report.facts |= {"steps": history.steps, "seconds": history.seconds}
        return report


def _read(path: str) -> np.ndarray[Any, Any]:
    try:
        array = np.load(Path(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not a readable .npy file of labels: {error}.") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf" or array.ndim == 0:
        raise DataError(f"{path} does not hold one array of integers or floats with a label for each sample.")
    return array
