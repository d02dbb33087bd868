"""Draws `glyphs.npz`, the frozen glyphs and texts that the OCR models' labelled lines are composed from.

Needs Pillow and a folder with the DejaVu fonts, and is run only to make the file anew::

    pip install pillow==13.0.0
    python models/draw_glyphs.py FONT_DIR TEXT_DIR

The fonts: DejaVu 2.37 (Bitstream Vera's licence, see NOTICE.md). The texts:
the Apache License 2.0, which this project carries anyway, and CC0 1.0 (a public domain dedication), so neither
the pictures nor their labels bring a licence of their own. The two texts keep evaluation and calibration apart.

Members of the file, for F fonts and the 95 printable ASCII characters:
    `fonts`     (F,) str         the fonts' names
    `alphabet`  (95,) str        the characters
    `advance`   (F, 95) uint8    pixels from one glyph's left edge to the next one's
    `ink`       (F, 95, 48, W) uint8   coverage 0..255 in steps of 17 (16 levels), baseline at row 37
    `evaluation`, `calibration`  (words,) str   the two texts in reading order, printable ASCII words only
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, BASELINE, POINTS = 48, 37, 38
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono", "DejaVuSans-Oblique")
ALPHABET = [chr(code) for code in range(32, 127)]
TEXTS = {"evaluation": "Apache-2.0", "calibration": "CC0-1.0"}


def words(text: str) -> list[str]:
    """The words of `text` that are printable ASCII throughout."""
    return [word for word in text.split() if all(32 < ord(character) < 127 for character in word)]


def draw(fonts: Path) -> dict[str, Any]:
    """`fonts`, `alphabet`, `advance` and `ink` of the file."""
    from PIL import Image, ImageDraw, ImageFont  # pyright: ignore[reportMissingImports]

    left = 6  # room for glyphs that start left of their origin
    faces = [ImageFont.truetype(str(fonts / f"{name}.ttf"), POINTS) for name in FONTS]
    advance = np.array([[round(face.getlength(character)) for character in ALPHABET] for face in faces])
    ink = np.zeros((len(FONTS), len(ALPHABET), HEIGHT, 64), np.uint8)
    for f, face in enumerate(faces):
        for c, character in enumerate(ALPHABET):
            image = Image.new("L", (64, HEIGHT))
            ImageDraw.Draw(image).text((left, BASELINE), character, fill=255, font=face, anchor="ls")
            ink[f, c] = np.round(np.asarray(image) / 17.0) * 17
    used = np.flatnonzero(ink.any((0, 1, 2)))[-1] + 1
    return {
        "fonts": np.array(FONTS),
        "alphabet": np.array(ALPHABET),
        "advance": advance.astype(np.uint8),
        "ink": ink[..., :used],
    }


def main(fonts: Path, texts: Path) -> None:
    """Write `glyphs.npz` beside this file."""
    members = draw(fonts)
    for name, file in TEXTS.items():
        members[name] = np.array(words((texts / file).read_text()), dtype=np.str_).astype("S")
    np.savez_compressed(Path(__file__).with_name("glyphs.npz"), **members)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
