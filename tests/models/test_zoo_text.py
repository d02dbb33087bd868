"""The labelled lines and pages, and the metrics of the OCR models; nothing here needs the network."""

import numpy as np
import pytest

from graphopt.errors import DataError
from graphopt.models import get
from graphopt.models.images import blur, planes, resize
from graphopt.models.ocr import ctc_decode, prepare_line
from graphopt.models.text_boxes import boxes_of, components, hmean, overlap, pages
from graphopt.models.text_lines import coverage, lines, words


def box(*sides):
    return np.array([sides], np.float32)


def test_resize_keeps_a_ramp_straight_and_the_same_size_unchanged():
    ramp = np.arange(8, dtype=np.float32)[:, None] * np.ones((1, 5), np.float32)
    np.testing.assert_array_equal(resize(ramp, 8, 5), ramp)
    np.testing.assert_allclose(resize(ramp, 16, 5)[3:-3, 0], np.arange(16)[3:-3] / 2 - 0.25, rtol=1e-6)
    assert resize(np.zeros((4, 6, 3)), 2, 3).shape == (2, 3, 3)


def test_blur_keeps_the_mean_away_from_the_border():
    image = np.zeros((9, 9))
    image[4, 4] = 1
    smooth = blur(image, 2)
    assert smooth.sum() == pytest.approx(1)
    assert smooth[4, 4] < 0.2


def test_lines_are_the_same_each_time_and_show_their_text():
    first, again = list(lines("evaluation", 5, 1024, (20, 48))), list(lines("evaluation", 5, 1024, (20, 48)))
    for (image, text), (other, same) in zip(first, again, strict=True):
        np.testing.assert_array_equal(image, other)
        assert text == same
        assert image.shape[0] == 48
        assert np.ptp(image) > 40
        assert set(text.split()) <= set(words("evaluation"))


def test_a_letter_moves_the_pen_by_its_advance():
    one, two = coverage("m", 4), coverage("mm", 4)
    np.testing.assert_array_equal(one[:, :20], two[:, :20])
    step = two.shape[1] - one.shape[1]
    np.testing.assert_array_equal(two[:, step + 10 : step + 25], one[:, 10:25])


def test_lines_respect_the_widest():
    assert all(image.shape[1] <= 100 for image, _ in lines("evaluation", 50, 100, (20, 48)))


def test_evaluation_and_calibration_share_no_text_or_page():
    def phrases(split):
        source = words(split)
        return {" ".join(source[i : i + 5]) for i in range(len(source) - 4)}

    assert len(words("evaluation")) > 1000
    assert len(words("calibration")) > 1000
    assert not phrases("evaluation") & phrases("calibration")
    (left, _), (right, _) = next(pages("evaluation", 1)), next(pages("calibration", 1))
    assert (left != right).any()


def test_prepare_line_pads_short_lines_and_squeezes_long_ones():
    short, long = np.full((48, 100), 255, np.uint8), np.full((48, 900), 255, np.uint8)
    assert prepare_line(short, 192).shape == (1, 3, 48, 192)
    np.testing.assert_array_equal(prepare_line(short, 192)[..., :100], 1)
    np.testing.assert_array_equal(prepare_line(short, 192)[..., 100:], 0)
    np.testing.assert_allclose(prepare_line(long, 192), 1, rtol=1e-6)
    np.testing.assert_allclose(planes(np.array([[0]]))[:, 0, 0], [-1, -1, -1])


def test_ctc_merges_repeats_unless_a_blank_parts_them():
    alphabet = ["", "a", "b", " "]
    scores = np.eye(4)[[0, 1, 1, 0, 1, 3, 2, 2, 0, 0]]
    assert ctc_decode(scores, alphabet) == "aa b"
    assert ctc_decode(np.eye(4)[[0, 0]], alphabet) == ""


def test_components_finds_regions_that_touch_only_at_corners_or_further_down():
    mask = np.zeros((8, 10), bool)
    mask[0, 0] = mask[1, 1] = True  # corner
    mask[4:7, 4] = mask[4:7, 8] = mask[6, 4:9] = True  # a U: two runs that join at the bottom
    assert sorted(components(mask)) == [(0, 0, 2, 2), (4, 4, 9, 7)]
    assert components(np.zeros((3, 3), bool)) == []


def test_boxes_grow_back_by_area_over_perimeter():
    probability = np.zeros((100, 200), np.float32)
    probability[40:50, 60:140] = 0.9
    grow = 1.6 * 80 * 10 / (2 * 90)
    np.testing.assert_allclose(boxes_of(probability), box(60 - grow, 40 - grow, 140 + grow, 50 + grow))
    assert boxes_of(probability * 0.5).shape == (0, 4)  # above the threshold, but not sure


def test_overlap_and_hmean():
    a, b = box(0, 0, 10, 10), box(0, 0, 10, 20)
    assert overlap(a, b)[0, 0] == pytest.approx(0.5)
    assert hmean([(a, a)]) == 1.0
    assert hmean([(a, b)]) == 0.0  # not above one half
    assert hmean([(np.concatenate([a, a]), a)]) == pytest.approx(2 / 3)  # a box is taken once
    assert hmean([(a, a), (np.zeros((0, 4)), b)]) == pytest.approx(2 / 3)
    assert hmean([]) == 0.0


def test_ground_truth_pages_score_one_and_their_boxes_hold_all_the_ink():
    for image, boxes in pages("evaluation", 3):
        assert hmean([(boxes, boxes)]) == 1.0
        blank = image.copy().astype(int)
        for left, top, right, bottom in boxes.astype(int):
            blank[max(0, top - 3) : bottom + 3, max(0, left - 3) : right + 3] = np.median(image)
        assert abs(blank - np.median(image)).max() < 75  # the noise that is left: at most 14 levels of sigma
        assert abs(image - np.median(image)).max() > 75


def test_a_truncated_run_is_no_result():
    with pytest.raises(DataError, match="whole set"):
        get("ocr-detector").evaluation().score([])
