"""The `.gopt` artifact: one file with the compiled library, its weights, the graphs and the report.

`write` and `assemble` make one from a target's `Program`; `load` opens one to run it, `read` to look at it.
"""

from graphopt.artifact.executable import Executable, load
from graphopt.artifact.manifest import Manifest, TensorSpec
from graphopt.artifact.reading import Artifact, read
from graphopt.artifact.writer import assemble, write

__all__ = ["Artifact", "Executable", "Manifest", "TensorSpec", "assemble", "load", "read", "write"]
