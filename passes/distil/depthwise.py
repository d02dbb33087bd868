"""Depthwise separable: a k x k Conv becomes a k x k depthwise Conv and a 1 x 1 Conv."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.passes.distil.affine import patches, read_affine
from graphopt.passes.distil.moments import Moments, relative, standard
from graphopt.passes.distil.region import Region
from graphopt.passes.distil.student import Array, Fitted, Layer, Student, UnsupportedError

LARGEST = 2304
"""Unknowns of the depthwise half (channels * kernel * multiplier) solved for at once: 256 channels of 3 x 3."""
ROUNDS = 12
"""Most rounds of alternating least squares; it stops earlier when a round gains less than `ENOUGH`."""
ENOUGH = 3e-3
SMALLEST = 1e-8
"""Variances of a channel's filters below this share of the largest are not scaled up further."""
RIDGE = 1e-7
"""Proximal weight of each half-step, relative to its normal matrix: keeps unseen directions where they started."""


class DepthwiseSeparable(Student):
    """``W[o,i,s]`` becomes ``sum_j P[o,(i,j)] D[(i,j),s]`` with m filters a channel: Cin m (k + Cout) MACs a position.

    Starting weights: for each input channel the leading singular pair of its slice ``W[:, i, :]``; for a greater m
    that of what is still missing. Then alternating least squares on the data (each half-step is linear), with G the
    covariance of the patches, A the depthwise half as a matrix (Cin m, Cin k), and the rows of W scaled so that each
    output has unit variance (undone in P at the end)::

        minimise  tr (W - P A) G (W - P A)^T  =  E |(y - mean) - P A (patch - mean)|^2
        P-step:   P (A G A^T) = W G A^T
        D-step:   sum_j' ((P^T P) * G) D = P^T W G,   * taken block by block

    The loss cannot rise from step to step. The bias makes the means agree: ``c = W m + b - P A m``. Last, the filters
    of a channel are turned so that their outputs are uncorrelated and of unit variance (undone in P): least squares
    leaves near copies with large weights of opposite signs, which no quantizer survives.
    """

    name: ClassVar[str] = "depthwise-separable"

    def __init__(self, model: ir.Model, region: Region, budget: float) -> None:
        self.teacher = read_affine(region)
        out, channels = self.teacher.weight.shape[:2]
        taps = math.prod(self.teacher.weight.shape[2:])
        if not self.teacher.is_conv or taps == 1:
            raise UnsupportedError("it is not a convolution with a kernel larger than 1")
        if channels * taps > LARGEST:
            raise UnsupportedError(f"its patches have {channels * taps} entries, more than {LARGEST}")
        self.largest = min(int(budget * taps * out / (taps + out)), LARGEST // (channels * taps), taps)
        if self.largest < 1:
            raise UnsupportedError(f"with {out} output channels and {taps} taps no multiplier saves enough MACs")
        self.shape = (out, channels, taps)
        self.target = self.teacher.matrix
        self.fitting, self.tuning = Moments(channels * taps), Moments(channels * taps)

    def rows(self, x: Array, y: Array) -> Array:
        """The teacher is affine, so its inputs tell all."""
        return patches(x, self.teacher)

    def fit(self, target: float) -> Fitted:
        """The smallest multiplier whose error is within `target`."""
        cov, seen = self.fitting.covariance, self.tuning.about(self.fitting.mean)
        scale = standard(np.einsum("oi,ij,oj->o", self.teacher.matrix, cov, self.teacher.matrix, optimize=True))
        self.target = scale[:, None] * self.teacher.matrix
        enough, spread = target**2 * self._spread(cov), self._spread(self.tuning.covariance)
        p, d, error = np.zeros((self.shape[0], 0)), np.zeros((self.shape[1], 0, self.shape[2])), float("inf")
        for multiplier in range(1, self.largest + 1):
            p, d = self._alternate(self._grow(p, d), cov, enough)
            error = relative(self._loss(p, d, seen), spread)
            if error <= target:
                pooled = self.fitting + self.tuning
                p, d = self._alternate((p, d), pooled.covariance, 0.0)
                p, d = _whiten(p, d, pooled.covariance)
                p, mean = p / scale[:, None], pooled.mean
                bias = self.teacher.matrix @ mean + self.teacher.bias - p @ (self._matrix(d) @ mean)
                size = {"multiplier": multiplier}
                return Fitted(self.name, self._layers(p, d, bias), error, size, self.teacher.axis)
        raise UnsupportedError(
            f"{self.largest} filters a channel, the most it may have, leave an error of {error:.4f} on the "
            f"tuning data, above {target:.4f}"
        )

    def _alternate(self, start: tuple[Array, Array], cov: Array, enough: float) -> tuple[Array, Array]:
        """Rounds until they gain nothing, or until the rest of them could not bring the loss down to `enough`."""
        p, d = start
        loss = self._loss(p, d, cov)
        for left in reversed(range(ROUNDS)):
            p = self._solve_pointwise(p, d, cov)
            d = self._solve_depthwise(p, d, cov)
            before, loss = loss, self._loss(p, d, cov)
            gain = before - loss
            if gain <= ENOUGH * before or (left < ROUNDS - 2 and 0.0 < enough < loss - left * gain):
                break
        return p, d

    def _spread(self, cov: Array) -> float:
        """E|S (y - mean)|^2 for patches of this covariance."""
        return float(np.einsum("oi,ij,oj->", self.target, cov, self.target, optimize=True))

    def _grow(self, p: Array, d: Array) -> tuple[Array, Array]:
        """One filter more for each channel: the leading singular pair of what its slice of W still misses."""
        out, channels, taps = self.shape
        gap = (self.target - p @ self._matrix(d)).reshape(out, channels, taps).transpose(1, 0, 2)
        u, s, vt = np.linalg.svd(gap, full_matrices=False)
        wider = np.concatenate([p.reshape(out, channels, -1), (u[:, :, 0] * s[:, :1]).T[:, :, None]], axis=2)
        return wider.reshape(out, -1), np.concatenate([d, vt[:, :1]], axis=1)

    def _matrix(self, d: Array) -> Array:
        """D as the matrix A (Cin m, Cin taps): each channel's filters see its own taps only."""
        channels, multiplier, taps = d.shape
        a = np.zeros((channels, multiplier, channels, taps))
        each = np.arange(channels)
        a[each, :, each] = d
        return a.reshape(channels * multiplier, channels * taps)

    def _loss(self, p: Array, d: Array, cov: Array) -> float:
        gap = self.target - p @ self._matrix(d)
        return float(np.einsum("oi,ij,oj->", gap, cov, gap, optimize=True))

    def _solve_pointwise(self, p: Array, d: Array, cov: Array) -> Array:
        a = self._matrix(d)
        gap = self.target - p @ a
        return p + _solve(a @ cov @ a.T, (gap @ cov @ a.T).T).T

    def _solve_depthwise(self, p: Array, d: Array, cov: Array) -> Array:
        channels, multiplier, taps = d.shape
        gap = (p.T @ ((self.target - p @ self._matrix(d)) @ cov)).reshape(channels, multiplier, channels, taps)
        each = np.arange(channels)
        right = gap[each, :, each].reshape(-1)
        pp = (p.T @ p).reshape(channels, multiplier, 1, channels, multiplier, 1)
        normal = (pp * cov.reshape(channels, 1, taps, channels, 1, taps)).reshape(d.size, d.size)
        return d + _solve(normal, right).reshape(d.shape)

    def _layers(self, p: Array, d: Array, bias: Array) -> tuple[Layer, ...]:
        channels, multiplier = d.shape[:2]
        kernel = self.teacher.weight.shape[2:]
        filters = d.reshape(channels * multiplier, 1, *kernel)
        first = Layer("Conv", (filters,), {**self.teacher.window(), "group": channels})
        return (first, *self.teacher.pointwise(p, bias))


def _whiten(p: Array, d: Array, cov: Array) -> tuple[Array, Array]:
    """The same P A with ``cov(D_i x_i) = I`` for each channel i: ``D_i -> C^-1/2 D_i``, ``P_i -> P_i C^1/2``."""
    channels, multiplier, taps = d.shape
    p, d = p.reshape(len(p), channels, multiplier).copy(), d.copy()
    for i in range(channels):
        own = slice(i * taps, (i + 1) * taps)
        values, vectors = np.linalg.eigh(d[i] @ cov[own, own] @ d[i].T)
        if values[-1] <= 0.0:
            continue  # a channel that is always constant
        roots = np.sqrt(np.maximum(values, SMALLEST * values[-1]))
        d[i] = (vectors / roots) @ vectors.T @ d[i]
        p[:, i] = p[:, i] @ ((vectors * roots) @ vectors.T)
    return p.reshape(len(p), -1), d


def _solve(normal: Array, right: Array) -> Array:
    """``(normal + ridge I)^-1 right`` for a positive semi-definite `normal`."""
    ridge = RIDGE * float(np.trace(normal)) / len(normal) + 1e-300
    return np.linalg.solve(normal + ridge * np.eye(len(normal)), right)
