"""Magika's input preparation and the choice of its labelled files; nothing here needs the network."""

import base64
import hashlib

import numpy as np
import pytest

from graphopt.models.magika import PER_TYPE, choose, features, split_of


def test_features_of_a_long_file_are_its_two_ends():
    content = bytes(range(256)) * 40
    row = features(content)
    assert row.shape == (2048,)
    assert row.dtype == np.int32
    np.testing.assert_array_equal(row[:1024], np.frombuffer(content[:1024], np.uint8))
    np.testing.assert_array_equal(row[1024:], np.frombuffer(content[-1024:], np.uint8))


def test_features_of_a_short_file_are_stripped_and_padded_inside():
    row = features(b" \n\tabc  ")
    np.testing.assert_array_equal(row[:6], [*b"abc  ", 256])
    np.testing.assert_array_equal(row[-7:], [256, *b" \n\tabc"])
    assert (row[6:-7] == 256).all()


def test_features_strip_blanks_within_the_block_only():
    row = features(b" " * 5000 + b"x" + b" " * 5000)
    assert (row == 256).all()


def record(files):
    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        lines.append(f"{name},sha256={digest},{len(content)}")
    return "\n".join([*lines, "p-1.dist-info/RECORD,,"])


@pytest.fixture
def many():
    files = {f"p/module{i}.py": f"x = {i}\n".encode() * 60 for i in range(200)}
    files |= {f"p/copy{i}.py": f"x = {i}\n".encode() * 60 for i in range(200)}
    return files | {"p/tiny.py": b"pass", "p/notes.txt": b"word " * 100}


def test_choose_takes_known_types_of_some_size_once_and_up_to_the_limit(many):
    for split in "evaluation", "calibration":
        chosen = choose(record(many), split)
        assert len([name for name in chosen if name.endswith(".py")]) == PER_TYPE
        assert len(set(chosen.values())) == len(chosen)
        assert not {"p/tiny.py", "p/notes.txt"} & set(chosen)
        for name, sha256 in chosen.items():
            assert hashlib.sha256(many[name]).hexdigest() == sha256


def test_no_content_is_chosen_for_both_sets(many):
    assert not set(choose(record(many), "evaluation").values()) & set(choose(record(many), "calibration").values())
    assert split_of("3f" + "0" * 62) == "calibration"
    assert split_of("4f" + "0" * 62) == "evaluation"
