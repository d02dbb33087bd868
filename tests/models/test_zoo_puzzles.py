"""Picture puzzles and YOLOX's boxes; nothing here needs the network."""

import numpy as np
import pytest

from graphopt.errors import DataError
from graphopt.models import get
from graphopt.models.text_boxes import hmean, overlap
from graphopt.models.yolox import SIDE, boxes_of, cells, puzzles


def encode(boxes, scores):
    """What a perfect network would say: each box at the cell of stride 8 that holds its centre."""
    output = np.zeros((len(cells()[0]), 6), np.float32)
    for (left, top, right, bottom), score in zip(boxes, scores, strict=True):
        x, y = (left + right) / 2, (top + bottom) / 2
        cell = int(y // 8) * (SIDE // 8) + int(x // 8)
        output[cell] = [
            x / 8 - x // 8,
            y / 8 - y // 8,
            np.log((right - left) / 8),
            np.log((bottom - top) / 8),
            score,
            1,
        ]
    return output


def test_cells_are_all_of_three_grids():
    corner, stride = cells()
    assert corner.shape == (3549, 2)
    assert [int((stride == s).sum()) for s in (8, 16, 32)] == [52**2, 26**2, 13**2]
    np.testing.assert_array_equal(corner[[0, 1, 52]], [[0, 0], [1, 0], [0, 1]])


def test_boxes_come_back_from_what_a_perfect_network_says():
    for _, boxes in puzzles("evaluation", 5):
        found = boxes_of(encode(boxes, np.full(len(boxes), 0.9)))
        assert len(found) == len(boxes)
        np.testing.assert_allclose(overlap(found, boxes).max(0), 1, atol=1e-4)
        assert hmean([(found, boxes)]) == 1.0


def test_suppression_keeps_the_surer_of_two_that_overlap_and_drops_the_unsure():
    boxes = np.array([[10, 10, 60, 60], [18, 10, 68, 60], [200, 200, 260, 260], [300, 300, 340, 340]], float)
    found = boxes_of(encode(boxes, [0.6, 0.9, 0.5, 0.05]))
    np.testing.assert_allclose(found, boxes[[1, 2]], atol=1e-3)


def test_letters_of_a_puzzle_are_apart_and_stand_out_in_their_boxes():
    for image, boxes in puzzles("evaluation", 4):
        assert image.shape == (SIDE, SIDE, 3)
        shared = overlap(boxes, boxes)
        assert (shared[~np.eye(len(boxes), dtype=bool)] == 0).all()
        for left, top, right, bottom in boxes.astype(int):
            part = image[max(0, top) : bottom, max(0, left) : right].astype(float).mean(-1)
            assert np.percentile(part, 95) - np.percentile(part, 5) > 25


def test_sets_differ_and_a_truncated_run_is_no_result():
    (left, _), (right, _) = next(puzzles("evaluation", 1)), next(puzzles("calibration", 1))
    assert (left != right).any()
    with pytest.raises(DataError, match="whole set"):
        get("yolox").evaluation().score([])
