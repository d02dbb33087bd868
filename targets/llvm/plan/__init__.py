"""Which kernel computes what, in which layout: decided on the ONNX graph, where nodes still have their names.

The graph is walked once in order. Values that a kernel yields are channels-last; they stay so through pooling,
elementwise operators and concatenation, and are turned back only where a consumer needs ONNX's order. Convolutions
and dense layers take the residual addition and the activation that follow them along. What no kernel covers goes on
to TVM's operators.
"""

from graphopt.targets.llvm.plan.checks import check
from graphopt.targets.llvm.plan.transposes import turn
from graphopt.targets.llvm.plan.walk import plan

__all__ = ["check", "plan", "turn"]
