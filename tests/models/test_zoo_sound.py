"""Synthetic notes and the pitch metric; nothing here needs the network."""

import numpy as np
import pytest

from graphopt.errors import DataError
from graphopt.models import get
from graphopt.models.crepe import BINS, RATE, cents, frequency_to_cents, tones


def peak(centre):
    """Activations like CREPE's training targets: a bump 25 cents wide around the pitch, in bins."""
    return np.exp(-((np.arange(BINS) - centre) ** 2) / (2 * 1.25**2))[None].astype(np.float32)


@pytest.mark.parametrize("centre", [40.0, 100.3, 222.5, 355.0])
def test_cents_finds_the_middle_of_a_peak_between_bins(centre):
    assert cents(peak(centre))[0] == pytest.approx(1997.379 + 20 * centre, abs=1)


def test_cents_at_the_ends_uses_only_bins_that_exist():
    lone = np.zeros((2, BINS), np.float32)
    lone[0, 0] = lone[1, -1] = 1
    np.testing.assert_allclose(cents(lone), [1997.379, 1997.379 + 20 * 359], rtol=1e-6)


def test_frequency_to_cents_counts_from_10_hz():
    np.testing.assert_allclose(frequency_to_cents(np.array([10.0, 20.0, 31.70])), [0, 1200, 1997.4], atol=0.5)


def test_tones_have_the_pitch_they_are_labelled_with():
    frames, pitch = tones(200, seed=11)
    np.testing.assert_allclose(frames.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(frames.std(1), 1, rtol=1e-5)
    assert 50 <= pitch.min() < pitch.max() <= 1500
    # the frame is like itself one period later, for whole-sample periods with little noise
    alike = []
    for frame, f0 in zip(frames, pitch, strict=True):
        period = round(RATE / f0)
        if abs(RATE / f0 - period) < 0.05 and period < 300:
            alike.append(np.corrcoef(frame[:-period], frame[period:])[0, 1])
    assert len(alike) >= 10
    assert np.median(alike) > 0.8


def test_tones_repeat_by_seed_and_differ_between_seeds():
    np.testing.assert_array_equal(tones(3, seed=1)[0], tones(3, seed=1)[0])
    assert (tones(3, seed=1)[0] != tones(3, seed=2)[0]).all()


def test_score_counts_within_50_cents_and_refuses_a_truncated_run():
    evaluation = get("crepe-tiny").evaluation()
    truth = frequency_to_cents(tones(300, seed=1)[1])
    bins = (truth - 1997.379) / 20
    assert evaluation.score({"activation": peak(b)} for b in bins) == 1.0
    off = [b + (3 if i % 2 else 2) for i, b in enumerate(bins)]  # 60 and 40 cents too high
    assert evaluation.score({"activation": peak(b)} for b in off) == 0.5
    with pytest.raises(DataError, match="whole set"):
        evaluation.score([{"activation": peak(9)}])
