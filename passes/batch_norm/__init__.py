"""The parts of `fold-batch-norm`: the affine map, what it passes through, what absorbs it, the edits.

A BatchNormalization in inference is one affine map per channel, ``y = s·x + t``. `before` walks it from the
node towards the inputs, `after` towards the outputs, until weighted operators have absorbed it. Nothing is
edited while walking: a walk collects a `Plan`, or raises `Left` with the reason why the node stays.
"""
