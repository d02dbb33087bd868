"""Where the tensors of a program lie, and how its operators are cut: residency, tiles, addresses by live ranges."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from graphopt.targets.npu import cycles
from graphopt.targets.npu.isa import ACTIVATIONS, Load
from graphopt.targets.npu.machine import Machine
from graphopt.targets.npu.program import Contract, Op, Pair, Program, Table, Tensor, View, Window, inputs_of
from graphopt.targets.npu.tiling import SLOTS, Near, Tiling, align, buffers, choose

TABLE_BYTES = 256
LONGEST = (1 << 16) - 1  # rows and columns of a word
WORTH = 1.02  # estimated cycles that keeping a tensor in the scratchpad may cost: it saves traffic


@dataclasses.dataclass(frozen=True)
class Block:
    """A tile of an operator of the vector unit: channels and rows of its output."""

    channels: int
    rows: int


@dataclasses.dataclass(frozen=True)
class Border:
    """Bytes around each plane of a tensor in the scratchpad, so that windows may reach beyond it."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0
    fill: int = 0

    @property
    def none(self) -> bool:
        """Whether there is none."""
        return not (self.top or self.left or self.bottom or self.right)


@dataclasses.dataclass(frozen=True)
class Placement:
    """`near`: scratchpad addresses of resident tensors; `far`: addresses in `ACTIVATIONS`, of `far_bytes` in all.

    For each operator its tile, and the addresses of the slots of its buffers by name.
    """

    near: dict[Tensor, int]
    borders: dict[Tensor, Border]
    far: dict[Tensor, int]
    far_bytes: int
    tiles: list[Tiling | Block]
    slots: list[dict[str, list[int]]]


@dataclasses.dataclass
class Item:
    """Bytes that are in use from operator `first` to operator `last`. `op` and `name`: of which buffer, if of one."""

    size: int
    first: int
    last: int
    owner: Tensor | tuple[int, str]
    address: int = 0


def place(program: Program, machine: Machine) -> Placement:
    """Decide everything.

    Raises:
        ValueError: an operator does not fit the machine.
    """
    lives, borders = _lives(program), _borders(program)
    near = _residents(program, machine, lives, borders)
    early = {at for at, op in enumerate(program.ops) if at and isinstance(op, Contract)}  # whose weights come early
    while True:
        tiles = [
            tile_of(op, machine, _free(at, machine, near, lives, borders), near) for at, op in enumerate(program.ops)
        ]
        items = [Item(padded_bytes(t, borders), *lives[t], t) for t in near]
        for at, (op, tile) in enumerate(zip(program.ops, tiles, strict=True)):
            for name, (size, count) in needs(op, tile, near).items():
                first = at - 1 if at in early and name in ("weights", "parameters") else at
                items += [Item(size, first, at, (at, name)) for _ in range(count) if size]
        stuck = first_fit(items, machine.scratchpad_bytes)
        if stuck is None:
            break
        span = range(stuck.first, stuck.last + 2)
        crowded = [t for t in near if lives[t][0] <= stuck.last and lives[t][1] >= stuck.first]
        if early.intersection(span):
            early.difference_update(span)
        elif crowded:
            near.discard(max(crowded, key=lambda t: t.bytes))
        else:
            raise ValueError(f"it does not fit the scratchpad of {machine.name!r}")
    slots: list[dict[str, list[int]]] = [{} for _ in program.ops]
    for item in items:
        if isinstance(item.owner, tuple):
            slots[item.owner[0]].setdefault(item.owner[1], []).append(item.address)
    for at, (op, tile) in enumerate(zip(program.ops, tiles, strict=True)):
        if isinstance(op, Contract) and isinstance(tile, Tiling):
            acc = buffers(op.layer.geometry, tile).acc
            slots[at]["acc"] = [acc * slot for slot in range(SLOTS)]
    kept = [t for t in lives if t not in near or t in program.outputs]
    far = [Item(align(t.bytes), *lives[t], t) for t in kept]
    first_fit(far, math.inf)
    return Placement(
        {item.owner: item.address for item in items if isinstance(item.owner, Tensor)},
        {t: border for t in near if (border := borders[t]) is not None},
        {item.owner: item.address for item in far if isinstance(item.owner, Tensor)},
        max((item.address + item.size for item in far), default=0),
        tiles,
        slots,
    )


def first_fit(items: Sequence[Item], capacity: float) -> Item | None:
    """Give every item the lowest address at which it overlaps none that is in use with it, largest items first.

    Returns an item that does not fit `capacity`, if there is one.
    """
    placed: list[Item] = []
    for item in sorted(items, key=lambda i: (-i.size, i.first)):
        address = 0
        for other in sorted(
            (o for o in placed if o.first <= item.last and item.first <= o.last), key=lambda o: o.address
        ):
            if other.address >= address + item.size:
                break
            address = max(address, other.address + other.size)
        if address + item.size > capacity:
            return item
        item.address = address
        placed.append(item)
    return None


def _lives(program: Program) -> dict[Tensor, tuple[int, int]]:
    """First and last operator that uses each tensor; inputs live from the first one on, outputs to the last."""
    lives: dict[Tensor, tuple[int, int]] = dict.fromkeys(program.inputs, (0, 0))
    for at, op in enumerate(program.ops):
        for view in (*inputs_of(op), op.output):
            first, _ = lives.setdefault(view.tensor, (at, at))
            lives[view.tensor] = first, at
    return lives | {t: (lives[t][0], len(program.ops) - 1) for t in program.outputs}


def _borders(program: Program) -> dict[Tensor, Border | None]:
    """What resident tensors need around them; None where no border serves all who read them."""
    found: dict[Tensor, Border | None] = {}
    for op in program.ops:
        found.setdefault(op.output.tensor, Border())
        for view in inputs_of(op):
            have, want = found.get(view.tensor, Border()), _border(op, view)
            if have is not None and not want.none and not have.none and have.fill != want.fill:
                have = None
            if have is not None:
                fill = want.fill if have.none else have.fill
                top, left = max(have.top, want.top), max(have.left, want.left)
                bottom, right = max(have.bottom, want.bottom), max(have.right, want.right)
                have = Border(top, left, bottom, right, fill)
            found[view.tensor] = have
    for op in program.ops:
        for view in (*inputs_of(op), op.output):
            border = found.get(view.tensor)
            if border is not None and not border.none and view.reshaped:
                found[view.tensor] = None
    return found


def _border(op: Op, view: View) -> Border:
    """What `op` reads beyond `view`."""
    _, _, h, w = view.shape
    if isinstance(op, Contract):
        g = op.layer.geometry
        if g.channels_last:
            return Border()
        rows = (g.oh - 1) * g.stride[0] + (g.kh - 1) * g.dilation[0] + 1
        columns = (g.ow - 1) * g.stride[1] + (g.kw - 1) * g.dilation[1] + 1
        pad, fill = g.pad, op.layer.input_zero & 255
    elif isinstance(op, Window):
        (_, _, oh, ow), pad = op.output.shape, op.pad
        rows, columns = (oh - 1) * op.stride[0] + op.kernel[0], (ow - 1) * op.stride[1] + op.kernel[1]
        fill = pool_fill(op)
    else:
        return Border()
    return Border(pad[0], pad[1], max(rows - pad[0] - h, 0), max(columns - pad[1] - w, 0), fill)


def pool_fill(op: Window) -> int:
    """The byte that adds nothing to a window."""
    if op.maximum:
        return 128 if op.quantum.signed else 0
    return op.quantum.zero & 255


def padded_bytes(tensor: Tensor, borders: dict[Tensor, Border | None]) -> int:
    """Scratchpad bytes of a resident tensor."""
    border, (n, c, h, w) = borders[tensor] or Border(), tensor.shape
    return align(n * c * (h + border.top + border.bottom) * (w + border.left + border.right) * tensor.size)


def _free(
    at: int,
    machine: Machine,
    near: set[Tensor],
    lives: dict[Tensor, tuple[int, int]],
    borders: dict[Tensor, Border | None],
) -> int:
    """Bytes that resident tensors leave to operator `at`."""
    used = sum(padded_bytes(t, borders) for t in near if lives[t][0] <= at <= lives[t][1])
    step = max(machine.scratchpad_bytes // 64, 1)
    return (machine.scratchpad_bytes - used) // step * step


def _residents(
    program: Program,
    machine: Machine,
    lives: dict[Tensor, tuple[int, int]],
    borders: dict[Tensor, Border | None],
) -> set[Tensor]:
    """Tensors to keep in the scratchpad while they are used: greedily, by the traffic saved per byte and operator."""
    near: set[Tensor] = set()
    reads: dict[Tensor, int] = {}
    for op in program.ops:
        for view in inputs_of(op):
            reads[view.tensor] = reads.get(view.tensor, 0) + 1
    fits = [
        t for t in lives
        if t not in program.inputs and borders[t] is not None and reads.get(t) and t.size == 1
        and padded_bytes(t, borders) <= machine.scratchpad_bytes
    ]  # fmt: skip

    def worth(t: Tensor) -> float:
        return (reads[t] + (t not in program.outputs)) / (lives[t][1] - lives[t][0] + 1)

    def cost(at: int) -> float:
        op = program.ops[at]
        try:
            tile = tile_of(op, machine, _free(at, machine, near, lives, borders), near)
        except ValueError:
            return math.inf
        return tile.cycles if isinstance(tile, Tiling) else _vector_cost(op, machine, near)

    costs = [cost(at) for at in range(len(program.ops))]
    for tensor in sorted(fits, key=lambda t: (-worth(t), t.bytes)):
        span = range(lives[tensor][0], lives[tensor][1] + 1)
        near.add(tensor)
        trial = [cost(at) for at in span]
        if sum(trial) <= WORTH * sum(costs[span.start : span.stop]):
            costs[span.start : span.stop] = trial
        else:
            near.discard(tensor)
    return near


def tile_of(op: Op, machine: Machine, free: int, near: set[Tensor]) -> Tiling | Block:
    """How `op` is cut, given `free` bytes of scratchpad. Raises `ValueError` when it does not fit."""
    if isinstance(op, Contract):
        where = Near(op.input.tensor in near, op.output.tensor in near)
        if free <= 0:
            raise ValueError("no scratchpad is left")
        try:
            return choose(op.layer.geometry, machine, free * 3 // 4, where)
        except ValueError:
            return choose(op.layer.geometry, machine, free, where)
    _, channels, height, width = op.output.shape
    if width > LONGEST:
        raise ValueError(f"its rows are longer than {LONGEST}")
    far = any(view.tensor not in near for view in (*inputs_of(op), op.output))
    best: Block | None = None
    for c, rows in itertools.product(_parts(channels), _parts(min(height, LONGEST))):
        block = Block(c, rows)
        size = sum(size * count for size, count in needs(op, block, near).values())
        tiles = -(-channels // c) * -(-height // rows)
        if size <= free and (not far or tiles >= min(4, channels * height)):
            best = block if best is None or c * rows > best.channels * best.rows else best
    if best is None:
        raise ValueError("no tile of it fits the scratchpad")
    return best


def _parts(whole: int) -> list[int]:
    return sorted({-(-whole // n) for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 1024, whole)}, reverse=True)


def needs(op: Op, tile: Tiling | Block, near: set[Tensor]) -> dict[str, tuple[int, int]]:
    """Bytes and number of the slots of each buffer in the scratchpad; 0 bytes for what lies there already."""
    if isinstance(op, Contract):
        assert isinstance(tile, Tiling)
        size = buffers(op.layer.geometry, tile, Near(op.input.tensor in near, op.output.tensor in near))
        return {
            "input": (size.input, SLOTS),
            "weights": (size.weights, size.weight_slots),
            "parameters": (size.parameters, size.parameter_slots),
            "output": (size.output, SLOTS),
        }
    assert isinstance(tile, Block)

    def slot(view: View, rows: int, columns: int) -> tuple[int, int]:
        return (0 if view.tensor in near else align(tile.channels * rows * columns), SLOTS)

    result = {"output": slot(op.output, tile.rows, op.output.shape[3])}
    if isinstance(op, Pair):
        for name, view in (("input", op.a), ("other", op.b)):
            result[name] = slot(view, min(tile.rows, view.shape[2]), view.shape[3])
    elif isinstance(op, Table):
        result["input"] = slot(op.input, -(-tile.rows // op.repeat[0]) + 1, op.input.shape[3])
        result["table"] = (TABLE_BYTES, 1)
    else:
        ow = op.output.shape[3]
        rows, columns = (tile.rows - 1) * op.stride[0] + op.kernel[0], (ow - 1) * op.stride[1] + op.kernel[1]
        result["input"] = slot(op.input, rows, columns)
    return result


def _vector_cost(op: Op, machine: Machine, near: set[Tensor]) -> float:
    """Cycles of an operator of the vector unit: its work or its traffic."""
    memory = machine.memory("activations")
    far = [v for v in (*inputs_of(op), op.output) if v.tensor not in near]
    traffic = sum(cycles.transfer_cycles(memory, _dense(math.prod(view.shape))) for view in far)
    taps = math.prod(op.kernel) if isinstance(op, Window) else 1
    return max(cycles.vector_cycles(machine, op.output.shape[1], taps * math.prod(op.output.shape[2:])), traffic)


def _dense(size: int) -> Load:
    return Load(ACTIVATIONS, 0, 0, 1, 1, size, 0, 0, 0, 0)
