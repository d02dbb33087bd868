"""Synthetic music and the transcription metric; nothing here needs the network."""

import numpy as np
import pytest

from graphopt.errors import DataError
from graphopt.models import get
from graphopt.models.basic_pitch import FRAMES, HOP, KEYS, RATE, SAMPLES, frame_f1, pieces


def test_pieces_sound_where_their_labels_say():
    for sound, sounding in pieces("evaluation", 8):
        assert sound.shape == (SAMPLES,)
        assert sounding.shape == (FRAMES, KEYS)
        assert np.abs(sound).max() == pytest.approx(0.8)
        loud = [np.abs(sound[i * HOP : (i + 1) * HOP]).max() for i in range(FRAMES - 1)]
        silent = ~sounding[:-1].any(1) & ~sounding[1:].any(1)
        assert silent.any()
        assert np.median(np.array(loud)[silent]) < 0.2 * np.median(np.array(loud)[~silent])


def test_a_key_that_sounds_has_a_spectral_peak_at_its_pitch():
    sound, sounding = next(pieces("evaluation", 1))
    frame = int(sounding.sum(1).argmax())
    part = sound[frame * HOP : frame * HOP + 8192] * np.hanning(8192)
    spectrum = np.abs(np.fft.rfft(part))
    for key in np.flatnonzero(sounding[frame : frame + 32].all(0)):
        bin_ = 27.5 * 2 ** (key / 12) / RATE * 8192
        near = spectrum[int(bin_) - 2 : int(bin_) + 4].max()
        assert near > 5 * np.median(spectrum)


def test_frame_f1():
    true = np.zeros((4, 4), bool)
    true[:2] = True
    assert frame_f1([(true, true)]) == 1.0
    assert frame_f1([(~true, true)]) == 0.0
    assert frame_f1([(np.ones_like(true), true)]) == pytest.approx(2 / 3)
    assert frame_f1([]) == 0.0


def test_sets_differ_and_a_truncated_run_is_no_result():
    (left, _), (right, _) = next(pieces("evaluation", 1)), next(pieces("calibration", 1))
    assert (left != right).any()
    with pytest.raises(DataError, match="whole set"):
        get("basic-pitch").evaluation().score([])
