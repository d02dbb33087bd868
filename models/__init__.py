"""The reference models: `names()`, and `get(name)`; nothing is built or fetched before `path()` is called."""

from __future__ import annotations

import difflib
import importlib

from graphopt.errors import UsageError
from graphopt.models.base import Evaluation, ReferenceModel

__all__ = ["Evaluation", "ReferenceModel", "get", "names"]

_MODELS = {
    "digits": "digits:DIGITS",
    "mnist": "mnist:MNIST",
    "angle-classifier": "ocr:ANGLE_CLASSIFIER",
    "ocr-detector": "ocr:TEXT_DETECTOR",
    "ocr-recogniser": "ocr:TEXT_RECOGNISER",
    "efficientnet-lite0": "efficientnet:EFFICIENTNET_LITE0",
    "crepe-full": "crepe:CREPE_FULL",
    "crepe-tiny": "crepe:CREPE_TINY",
    "magika": "magika:MAGIKA",
    "minilm-l3": "minilm:MINILM_L3",
    "yolox": "yolox:YOLOX",
    "basic-pitch": "basic_pitch:BASIC_PITCH",
    "resnet50": "structural:RESNET50",
    "densenet121": "structural:DENSENET121",
    "vgg19": "structural:VGG19",
    "squeezenet": "structural:SQUEEZENET",
    "inception-v1": "structural:INCEPTION_V1",
    "inception-v2": "structural:INCEPTION_V2",
    "shufflenet": "structural:SHUFFLENET",
    "resnet18": "structural_built:RESNET18",
    "mobilenet-v2": "structural_built:MOBILENET_V2",
}


def names() -> list[str]:
    """The names of the reference models."""
    return list(_MODELS)


def get(name: str) -> ReferenceModel:
    """The reference model called `name`; raises `UsageError` that lists the nearest names."""
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, n=3, cutoff=0.4) or names()
        raise UsageError(f"There is no reference model {name!r}. Did you mean {', '.join(near)}?")
    module, attribute = _MODELS[name].split(":")
    return getattr(importlib.import_module(f"graphopt.models.{module}"), attribute)
