"""basic-pitch: which notes sound when, in two seconds of music with any number of voices.

Bittner et al., A Lightweight Instrument-Agnostic Model for Polyphonic Note Transcription (2022).
Input `serving_default_input_2:0`: float32 (N, 43844, 1), sound at 22,050 Hz in -1..1. Outputs, float32 in 0..1 for
172 frames of 256 samples: `StatefulPartitionedCall:1` (N, 172, 88) the 88 piano keys sounding,
`StatefulPartitionedCall:2` likewise their onsets, `StatefulPartitionedCall:0` (N, 172, 264) pitch in thirds of a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from graphopt.data import Batches
from graphopt.errors import DataError
from graphopt.models.base import Array, Evaluation, Feeds, ReferenceModel, Split
from graphopt.models.fetch import fetch_member

RATE, HOP, FRAMES, KEYS, SAMPLES = 22_050, 256, 172, 88, 43_844
SOUND, NOTES = "serving_default_input_2:0", "StatefulPartitionedCall:1"
_SEEDS: dict[Split, int] = {"evaluation": 31, "calibration": 32}


def music(rng: np.random.Generator) -> tuple[Array, Array]:
    """Two seconds of 4 to 10 plucked notes, (43844,) float32, and which keys sound when, (172, 88) bool.

    A note has up to ten decaying harmonics, the higher ones dying sooner, an attack of 5 ms and a release of 20 ms;
    keys are those of a guitar's and a piano's middle, E2 to C6; white noise lies 20 to 50 dB below.
    """
    sound = np.zeros(SAMPLES)
    sounding = np.zeros((FRAMES, KEYS), bool)
    for _ in range(int(rng.integers(4, 11))):
        key = int(rng.integers(19, 64))
        start, length = rng.uniform(0.05, 1.4), rng.uniform(0.25, 0.9)
        t = np.arange(SAMPLES) / RATE - start
        harmonics = np.arange(1, min(10, int(0.4 * RATE / _hertz(key))) + 1)[:, None]
        strength = harmonics ** -rng.uniform(0.7, 2.0) * np.exp(-np.clip(t, 0, None) * harmonics * rng.uniform(0.5, 2))
        envelope = np.clip(t / 0.005, 0, 1) * np.clip((length - t) / 0.02, 0, 1)
        phases = rng.uniform(0, 2 * np.pi, harmonics.shape)
        waves = np.sin(2 * np.pi * _hertz(key) * harmonics * t + phases)
        sound += rng.uniform(0.3, 1.0) * envelope * (strength * waves).sum(0)
        at = np.arange(FRAMES) * HOP / RATE
        sounding[(at >= start) & (at < start + length), key] = True
    sound += rng.normal(0, sound.std() * 10 ** (-rng.uniform(20, 50) / 20), SAMPLES)
    return (0.8 * sound / np.abs(sound).max()).astype(np.float32), sounding


def _hertz(key: int) -> float:
    return 27.5 * 2 ** (key / 12)


def pieces(split: Split, n: int) -> Iterator[tuple[Array, Array]]:
    """The first `n` pieces of `split`, the same ones each time."""
    rng = np.random.default_rng(_SEEDS[split])
    for _ in range(n):
        yield music(rng)


def frame_f1(pairs: Iterable[tuple[Array, Array]]) -> float:
    """F1 over all keys and frames, of (found, true) bool arrays: ``2 TP / (found + true)``."""
    hits = total = 0
    for found, true in pairs:
        hits += int((found & true).sum())
        total += int(found.sum()) + int(true.sum())
    return 2 * hits / total if total else 0.0


def _feeds(split: Split, n: int) -> Iterator[Feeds]:
    for sound, _ in pieces(split, n):
        yield {SOUND: sound[None, :, None]}


def _evaluation() -> Evaluation:
    n = 40

    def score(outputs: Iterable[Feeds]) -> float:
        found = [row > 0.3 for batch in outputs for row in batch[NOTES]]  # basic-pitch's own threshold
        if len(found) != n:
            raise DataError(f"{len(found)} pieces were transcribed and {n} are labelled: run the whole set.")
        return frame_f1(zip(found, (sounding for _, sounding in pieces("evaluation", n)), strict=True))

    return Evaluation("frame_f1", n, lambda: _feeds("evaluation", n), score)


def _example(batch: int) -> Feeds:
    return {SOUND: np.concatenate([feeds[SOUND] for feeds in _feeds("calibration", batch)])}


BASIC_PITCH = ReferenceModel(
    name="basic-pitch",
    summary="basic-pitch: polyphonic note transcription (constant-Q transform and convolutions in the graph)",
    licence="Apache-2.0",
    source="PyPI basic-pitch 0.4.0; synthetic music",
    path=lambda: fetch_member(
        "basic-pitch",
        "0.4.0",
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        "2c3c1d144bfa61ad236e92e169c13535c880469a12a047d4e73451f2c059a0ec",
    ),
    example=_example,
    calibration=lambda: Batches(lambda: _feeds("calibration", 16)),
    evaluation=_evaluation,
    baseline=0.8975,
)
