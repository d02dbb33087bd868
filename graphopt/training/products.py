"""What takes nearly all the time of a training step: matrix products, and convolutions as such products.

A convolution is its unfolded input times its weights, and both its gradients are products with the same columns:

    y = W cols(x)        dW = dy cols(x)^T        dx = cols^T(W^T dy)

(im2col; Chellapilla et al. 2006). The products are those of the BLAS library that numpy has. Columns are made for some
samples at a time, few enough to stay in the cache, and made anew for the gradient instead of being kept.
Each function writes its result into its last argument; images are (N, C, *space).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from graphopt.training.window import Array, Window, fold, turned, unfold

COLUMNS = 1 << 21
"""About how many elements of columns are made at a time."""
MANY_PLACES = 64
"""Places from which the products of a 1x1 convolution are done sample by sample, without moving the data."""


def product(a: Array, b: Array, out: Array, turn_a: bool, turn_b: bool) -> None:
    """``out = a b`` over the last two axes, either of them turned; where `out` has only these, summed over the rest."""
    if out.ndim == 2 and a.ndim > 2:
        assert turn_a
        assert not turn_b
        np.matmul(a.reshape(-1, a.shape[-1]).T, b.reshape(-1, b.shape[-1]), out=out)
    elif b.ndim == 2 and a.ndim > 2 and not turn_a:
        np.matmul(a.reshape(-1, a.shape[-1]), b.T if turn_b else b, out=out.reshape(-1, out.shape[-1]))
    else:
        np.matmul(a.swapaxes(-1, -2) if turn_a else a, b.swapaxes(-1, -2) if turn_b else b, out=out)


def conv(window: Window, x: Array, weight: Array, y: Array, groups: int = 1) -> None:
    """The convolution of x with weight (O, C / groups, *kernel)."""
    n, c = x.shape[:2]
    o, places = y.shape[1], math.prod(y.shape[2:])
    matrices = weight.reshape(groups, o // groups, -1)
    if window.trivial and places >= MANY_PLACES:
        maps = x.reshape(n, groups, c // groups, places)
        np.matmul(matrices, maps, out=y.reshape(n, groups, o // groups, places))
        return
    for part in _parts(window, c, n, places):
        columns = unfold(window, x[part]).reshape(groups, matrices.shape[2], -1)
        turned(y[part])[:] = (matrices @ columns).reshape(*turned(y[part]).shape)


def conv_weight_gradient(window: Window, x: Array, dy: Array, dw: Array, groups: int = 1) -> None:
    """The gradient of a convolution's weights: ``dw = dy cols(x)^T``."""
    n, c = x.shape[:2]
    o, places = dy.shape[1], math.prod(dy.shape[2:])
    total = dw.reshape(groups, o // groups, -1)
    for k, part in enumerate(_parts(window, c, n, places)):
        columns = unfold(window, x[part]).reshape(groups, total.shape[2], -1)
        outer = turned(dy[part]).reshape(groups, o // groups, -1)
        if k == 0:
            np.matmul(outer, columns.swapaxes(1, 2), out=total)
        else:
            total += outer @ columns.swapaxes(1, 2)


def conv_input_gradient(window: Window, dy: Array, weight: Array, dx: Array, groups: int = 1) -> None:
    """The gradient of a convolution's input: ``dx = cols^T(W^T dy)``; also the transposed convolution of `dy`."""
    n, c = dx.shape[:2]
    o, places = dy.shape[1], math.prod(dy.shape[2:])
    matrices = weight.reshape(groups, o // groups, -1).swapaxes(1, 2)
    if window.trivial and places >= MANY_PLACES:
        maps = dy.reshape(n, groups, o // groups, places)
        np.matmul(matrices, maps, out=dx.reshape(n, groups, c // groups, places))
        return
    for part in _parts(window, c, n, places):
        outer = turned(dy[part]).reshape(groups, o // groups, -1)
        fold(window, matrices @ outer, dx[part])


def _parts(window: Window, channels: int, n: int, places: int) -> Iterator[slice]:
    step = max(1, COLUMNS // max(1, channels * math.prod(window.kernel) * places))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))
