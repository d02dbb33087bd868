"""Every error graphopt raises on purpose, and the exit code each one gives the command line.

A message is one paragraph: what is wrong, the name of the culprit (node, file, option), and the way out.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import ClassVar


class GraphoptError(Exception):
    """Base of all errors a user can cause; the CLI prints the message and exits with `exit_code`."""

    exit_code: ClassVar[int] = 1


class UsageError(GraphoptError):
    """An unknown pass, target, option or preset, or options that contradict each other."""

    exit_code = 2


class ModelError(GraphoptError):
    """A model file that can't be read, is not valid ONNX, or exceeds a limit."""

    exit_code = 3


class DataError(GraphoptError):
    """Calibration or input data that is missing, unreadable, or does not fit the model's inputs."""

    exit_code = 4


class PassError(GraphoptError):
    """A pass failed, or left a graph that is invalid or not what the pass declared to preserve."""

    exit_code = 5


class LoweringError(GraphoptError):
    """The model can't be lowered to the target: an operator without a converter, a shape left open.

    `nodes`: by the names of source nodes, what it is that can't be lowered; empty where that is not known.
    """

    exit_code = 6

    def __init__(self, message: str, nodes: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.nodes = dict(nodes or {})


class ArtifactError(GraphoptError):
    """A `.gopt` file that is damaged, of an unknown version, or made for another machine."""

    exit_code = 7


class HostError(GraphoptError):
    """What this machine lacks, whatever the model: a linker or compiler that works, room on a disk."""

    exit_code = 9


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What an `OSError` of a full disk has for its `errno`."""


class FetchError(GraphoptError):
    """A package-borne model could not be fetched, or its bytes are not the pinned ones."""

    exit_code = 8
