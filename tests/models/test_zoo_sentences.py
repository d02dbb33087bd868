"""Word pieces, the sentence pairs and the retrieval metric; nothing here needs the network."""

from pathlib import Path

import networkx
import numpy as np
import pytest

from graphopt.errors import DataError
from graphopt.models import get, sentence_pairs
from graphopt.models.minilm import retrieved
from graphopt.models.sentence_pairs import pairs
from graphopt.models.wordpiece import encode, pieces, words

_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "cafe", "!"]
VOCABULARY = {piece: index for index, piece in enumerate(_PIECES)}


def test_words_part_at_blanks_and_each_mark_and_lose_case_and_accents():
    assert list(words("  Café-au lait, $5!\n")) == ["cafe", "-", "au", "lait", ",", "$", "5", "!"]
    assert list(words("a\u200bb\x00c")) == ["abc"]
    assert list(words("")) == []


def test_pieces_are_the_longest_that_match():
    assert pieces("unaffable", VOCABULARY) == ["un", "##aff", "##able"]
    assert pieces("unaffableness", VOCABULARY) == ["[UNK]"]
    assert pieces("able", VOCABULARY) == ["[UNK]"]  # only known as a continuation


def test_encode_frames_the_text_and_cuts_long_ones():
    assert encode("Unaffable café!", VOCABULARY, 64) == [2, 4, 5, 6, 7, 8, 3]
    assert encode("café " * 99, VOCABULARY, 5) == [2, 7, 7, 7, 3]


def test_pairs_are_summaries_and_the_prose_after_them():
    source = '''
def good(x):
    """Returns the number of nodes in it.

    The number of nodes counts each vertex
    of the given graph exactly once.

    Parameters
    ----------
    """

def bare(x):
    """Returns the number of nodes in it."""

def table(x):
    """Returns the number of nodes in it.

    Parameters
    ----------
    x : a graph of any kind that has nodes in it
    """

def _private(x):
    """Returns the number of nodes in it.

    The number of nodes counts each vertex of the graph exactly once.
    """
'''
    assert list(pairs(source)) == [
        (
            "Returns the number of nodes in it.",
            "The number of nodes counts each vertex of the given graph exactly once.",
        )
    ]


def test_retrieved_is_one_for_equal_vectors_and_falls_with_each_confusion():
    vectors = np.repeat(np.eye(4), 2, axis=0) * np.arange(1, 9)[:, None]  # lengths don't matter
    assert retrieved(vectors) == 1.0
    vectors[[1, 3]] = vectors[[3, 1]]
    assert retrieved(vectors) == 0.5


def test_the_sets_share_no_sentence():
    model = get("minilm-l3")
    evaluation = {feeds["input_ids"].tobytes() for feeds in model.evaluation().feeds()}
    selection = {feeds["input_ids"].tobytes() for feeds in model.selection().feeds()}
    calibration = {feeds["input_ids"].tobytes() for feeds in model.calibration()}
    unlabelled = {feeds["input_ids"].tobytes() for feeds in model.unlabelled(300)}
    assert len(evaluation) == 2 * model.evaluation().n  # and none occurs twice
    assert calibration < unlabelled
    assert not (evaluation | selection) & (calibration | unlabelled)
    assert not evaluation & selection


def test_feeds_are_framed_word_pieces_with_their_mask():
    for feeds in get("minilm-l3").evaluation().feeds():
        ids, mask = feeds["input_ids"][0], feeds["attention_mask"][0]
        used = mask.sum()
        assert (ids[0], ids[used - 1]) == (101, 102)
        assert ids[:used].all()
        assert not ids[used:].any()
        assert ids.max() < 30522


def test_a_truncated_run_is_no_result():
    with pytest.raises(DataError, match="whole set"):
        get("minilm-l3").evaluation().score([{"461": np.ones((3, 384), np.float32)}])


@pytest.mark.slow
def test_the_frozen_sentences_are_those_of_their_networkx():
    with np.load(Path(sentence_pairs.__file__).with_name("sentence_pairs.npz")) as frozen:
        if frozen["version"] != networkx.__version__:
            pytest.skip(f"frozen from networkx {frozen['version']}")
        for split, found in sentence_pairs.collect().items():
            assert [tuple(pair) for pair in frozen[split]] == found
