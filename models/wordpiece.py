"""BERT's uncased tokenizer: text to word pieces by greedy longest match, for a vocabulary given as a dict.

For alphabetic scripts: Chinese characters, which BERT parts one by one, are left together.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping


def words(text: str) -> Iterator[str]:
    """`text` in lower case without accents and control characters, parted at blanks and at each punctuation mark."""
    word = ""
    for character in unicodedata.normalize("NFD", text.lower()):
        category = unicodedata.category(character)
        if character.isspace() or category[0] == "P" or character in "$+<=>^`|~":
            if word:
                yield word
            word = ""
            if not character.isspace():
                yield character
        elif category not in {"Mn", "Cc", "Cf"}:
            word += character
    if word:
        yield word


def pieces(word: str, vocabulary: Mapping[str, int]) -> list[str]:
    """The longest pieces of `vocabulary` that make up `word`, all but the first marked ##; else ["[UNK]"]."""
    found: list[str] = []
    start = 0
    while start < len(word):
        marks = "##" if start else ""
        for end in range(len(word), start, -1):
            if marks + word[start:end] in vocabulary:
                found.append(marks + word[start:end])
                start = end
                break
        else:
            return ["[UNK]"]
    return found


def encode(text: str, vocabulary: Mapping[str, int], longest: int) -> list[int]:
    """The ids of [CLS], the pieces of `text`, and [SEP]; pieces beyond `longest` ids in all are cut off."""
    found = [piece for word in words(text) for piece in pieces(word, vocabulary)]
    return [vocabulary[piece] for piece in ["[CLS]", *found[: longest - 2], "[SEP]"]]
