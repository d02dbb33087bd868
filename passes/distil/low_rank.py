"""Low rank: one layer becomes two, through r channels in between."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.passes.distil.affine import positions, read_affine
from graphopt.passes.distil.moments import Moments, relative, standard
from graphopt.passes.distil.region import Region
from graphopt.passes.distil.student import Array, Fitted, Layer, Student, UnsupportedError

LARGEST = 4096
"""Output channels beyond which the eigenvectors of their covariance cost more than they are worth."""
RIDGE = 1e-6
"""Weight of the prior that unseen inputs are white, relative to what was seen."""


class LowRank(Student):
    """``y = W x + b`` becomes ``U (V x) + c`` with V of r rows: r (Cin k + Cout) MACs a position, not Cin k Cout.

    The closed form is that of Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks", the linear
    case (also known as reduced-rank regression)::

        minimise  E |S (y - mean) - Q Q^T S (y - mean)|^2,   S scales each channel to unit variance
        Q = the r leading eigenvectors of S (cov(y) + ridge * W W^T) S
        U = S^-1 Q,   V = Q^T S W,   c = mean + U Q^T S (b - mean)

    So the student starts from, and is a projection of, the teacher's kernel: for white inputs cov(y) = W W^T and
    it is the truncated SVD of W; with data it keeps the directions that the data excites.
    """

    name: ClassVar[str] = "low-rank"

    def __init__(self, model: ir.Model, region: Region, budget: float) -> None:
        self.teacher = read_affine(region)
        out, patch = self.teacher.matrix.shape
        if out > LARGEST:
            raise UnsupportedError(f"it has {out} output channels, more than {LARGEST}")
        self.largest = int(budget * out * patch / (out + patch))
        if self.largest < 1:
            raise UnsupportedError(f"no rank saves enough MACs in a {out} x {patch} matrix")
        self.fitting, self.tuning = Moments(out), Moments(out)

    def rows(self, x: Array, y: Array) -> Array:
        """Only the outputs matter."""
        return positions(y, self.teacher.axis)

    def fit(self, target: float) -> Fitted:
        """The smallest rank whose discarded energy is within `target`."""
        scale = standard(np.diag(self.fitting.covariance))
        vectors = self._directions(self.fitting, scale)
        seen = scale[:, None] * self.tuning.about(self.fitting.mean) * scale
        kept = np.cumsum(np.einsum("ir,ij,jr->r", vectors, seen, vectors, optimize=True))
        spread = float(np.sum(scale**2 * np.diag(self.tuning.covariance)))
        errors = [relative(float(np.trace(seen)) - k, spread) for k in kept[: self.largest]]
        rank = next((r for r, error in enumerate(errors, start=1) if error <= target), None)
        if rank is None:
            raise UnsupportedError(
                f"rank {self.largest}, the largest that saves enough MACs, leaves an error of {errors[-1]:.4f} on the "
                f"tuning data, above {target:.4f}"
            )
        pooled = self.fitting + self.tuning
        scale = standard(np.diag(pooled.covariance))
        q, mean = self._directions(pooled, scale)[:, :rank], pooled.mean
        u, project = q / scale[:, None], q.T * scale
        bias = mean + u @ (project @ (self.teacher.bias - mean))
        layers = [self._first(project @ self.teacher.matrix), *self.teacher.pointwise(u, bias)]
        return Fitted(self.name, tuple(layers), errors[rank - 1], {"rank": rank}, self.teacher.axis)

    def _directions(self, moments: Moments, scale: Array) -> Array:
        """The eigenvectors of the scaled outputs' covariance, the one of most energy first; a column each."""
        covariance, white = moments.covariance, self.teacher.matrix @ self.teacher.matrix.T
        prior = RIDGE * np.trace(covariance) / max(float(np.trace(white)), 1e-300)
        return np.linalg.eigh(scale[:, None] * (covariance + prior * white) * scale)[1][:, ::-1]

    def _first(self, v: Array) -> Layer:
        if not self.teacher.is_conv:
            return self.teacher.pointwise(v, None)[0]
        return Layer("Conv", (v.reshape(len(v), *self.teacher.weight.shape[1:]),), self.teacher.window())
