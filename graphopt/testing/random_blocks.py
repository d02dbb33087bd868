"""Blocks of random models, each of many nodes: what the layers of whole architectures look like in ONNX."""

from __future__ import annotations

import numpy as np

from graphopt.testing.random_net import SIZE, Net, Value
from graphopt.testing.random_steps import Step


def _attention(net: Net, v: Value, a: int, b: int) -> None:
    """Self-attention over the positions: softmax(q·kᵀ / √c)·v, of one head or two; k and v may share their weights."""
    if not v.size:
        return
    c, heads = v.channels, 2 if v.channels % 2 == 0 and a & 1 else 1
    rows = net.line(f"Transpose<perm=[0,2,1]>({_flat(net, v)})")
    weights = [net.kernel(False, c, c) for _ in range(3)]
    if b & 4:
        weights[2] = weights[1]
    split = net.constant(np.array([0, 0, heads, c // heads]))
    parts: list[str] = []
    for w, perm in zip(weights, ("0,2,1,3", "0,2,3,1", "0,2,1,3"), strict=True):
        product = net.line(f"MatMul({rows}, {w})")
        if b & 2:
            product = net.line(f"Add({product}, {net.weight(c)})")
        parts.append(net.line(f"Transpose<perm=[{perm}]>({net.line(f'Reshape({product}, {split})')})"))
    scores = net.line(f"MatMul({parts[0]}, {parts[1]})")
    scale = net.constant(np.array((c // heads) ** -0.5, net.dtype))
    weighted = net.line(f"Softmax<axis=-1>({net.line(f'Mul({scores}, {scale})')})")
    mixed = net.line(f"Transpose<perm=[0,2,1,3]>({net.line(f'MatMul({weighted}, {parts[2]})')})")
    joined = net.line(f"Reshape({mixed}, {net.constant(np.array([0, 0, c]))})")
    _image(net, v, net.line(f"Transpose<perm=[0,2,1]>({joined})"))


def _flat(net: Net, v: Value) -> str:
    return net.line(f"Reshape({v.name}, {net.constant(np.array([0, v.channels, -1]))})")


def _image(net: Net, like: Value, flat: str) -> None:
    """[N, C, H·W] as [N, C, H, W] again."""
    shape = net.line(f"Shape({like.name})") if net.open_image else net.constant(np.array([0, 0, like.size, like.size]))
    net.emit(f"Reshape({flat}, {shape})", like)


def _gate(net: Net, v: Value, a: int, b: int) -> None:
    """Squeeze and excite."""
    if not v.size:
        return
    pooled = f"GlobalAveragePool({v.name})" if a & 1 else _mean(net, v.name, [2, 3])
    small = net.line(f"Conv({net.line(pooled)}, {net.kernel(False, 2, v.channels, 1, 1)}, {net.weight(2)})")
    back = net.line(f"Conv({net.line(f'Relu({small})')}, {net.kernel(False, v.channels, 2, 1, 1)})")
    gate = net.line(f"{('Sigmoid', 'HardSigmoid')[b & 1]}({back})")
    net.emit(f"Mul({v.name}, {gate})", v)


def _mean(net: Net, value: str, axes: list[int]) -> str:
    if net.opset < 18:
        return f"ReduceMean<axes={axes}>({value})"
    return f"ReduceMean({value}, {net.constant(np.array(axes))})"


def _layer_norm(net: Net, v: Value, a: int, b: int) -> None:
    """Over the last axis in opset 17, or over the channels, written out; of an image also InstanceNormalization."""
    scale, bias = net.weight(v.channels, low=0.5, high=1.5), net.weight(v.channels)
    if v.size and a % 3 == 0:
        net.emit(f"InstanceNormalization<epsilon=0.1>({v.name}, {scale}, {bias})", v)
        return
    last = net.line(f"Transpose<perm=[0,2,3,1]>({v.name})") if v.size else v.name
    if net.opset >= 17 and a & 1:
        normal = net.line(f"LayerNormalization<epsilon=0.1>({last}, {scale}, {bias})")
    else:
        centred = net.line(f"Sub({last}, {net.line(_mean(net, last, [-1]))})")
        square = net.line(f"Mul({centred}, {centred})")
        epsilon = net.constant(np.array(0.1, net.dtype))
        root = net.line(f"Sqrt({net.line(f'Add({net.line(_mean(net, square, [-1]))}, {epsilon})')})")
        scaled = net.line(f"Mul({net.line(f'Div({centred}, {root})')}, {scale})")
        normal = net.line(f"Add({scaled}, {bias})")
    net.emit(f"Transpose<perm=[0,3,1,2]>({normal})" if v.size else f"Identity({normal})", v)


def _line(net: Net, v: Value, a: int, b: int) -> None:
    """Layers on [N, C, H·W]: Conv, MatMul from the left, or BatchNormalization of three axes."""
    if not v.size:
        return
    flat, c = _flat(net, v), v.channels
    if a & 1:
        flat = net.line(f"Conv<pads=[1,1]>({flat}, {net.kernel(False, c, c, 3)})")
    if a & 2:
        flat = net.line(f"MatMul({net.kernel(False, c, c)}, {flat})")
    low = [0.5, -1.0, -1.0, 0.3]
    norm = [net.weight(c, low=value, high=1.5) for value in low]
    _image(net, v, net.line(f"BatchNormalization({flat}, {', '.join(norm)})"))


def _pad(net: Net, v: Value, a: int, b: int) -> None:
    """Pad (zeros, ones, the edge, a mirror), and a convolution that takes the border away again."""
    if not v.size:
        return
    pads = net.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    mode = ("constant", "constant", "edge", "reflect")[a % 4]
    value = f", {net.constant(np.array(a % 4, net.dtype))}" if mode == "constant" else ""
    padded = net.line(f'Pad<mode="{mode}">({v.name}, {pads}{value})')
    if b & 1:
        norm = [net.weight(v.channels, low=low, high=1.5) for low in (0.5, -1.0, -1.0, 0.3)]
        padded = net.line(f"BatchNormalization({padded}, {', '.join(norm)})")
    net.emit(f"Conv({padded}, {net.kernel(bool(b & 2), 4, v.channels, 3, 3)})", v, 4)


def _resize(net: Net, v: Value, a: int, b: int) -> None:
    """Half-sized images double: Resize, DepthToSpace or a ConvTranspose; whole ones halve by SpaceToDepth or
    a pool."""
    if v.size == SIZE and v.channels <= 4 and a & 1:
        net.emit(f"SpaceToDepth<blocksize=2>({v.name})", v, v.channels * 4, SIZE // 2)
    elif v.size == SIZE:
        kind = ("MaxPool", "AveragePool")[b & 1]
        net.emit(f"{kind}<kernel_shape=[2,2], strides=[2,2]>({v.name})", v, size=SIZE // 2)
    elif v.size == SIZE // 2 and a % 3 == 0 and v.channels % 4 == 0:
        mode = ("DCR", "CRD")[b & 1]
        net.emit(f'DepthToSpace<blocksize=2, mode="{mode}">({v.name})', v, v.channels // 4, SIZE)
    elif v.size == SIZE // 2 and a % 3 == 1:
        norm = [net.weight(4, low=low, high=1.5) for low in (0.5, -1.0, -1.0, 0.3)]
        up = net.line(f"ConvTranspose<strides=[2,2]>({v.name}, {net.kernel(False, v.channels, 4, 2, 2)})")
        net.emit(f"BatchNormalization({up}, {', '.join(norm)})", v, 4, SIZE)
    elif v.size == SIZE // 2:
        scales = net.constant(np.array([1, 1, 2, 2], np.float32))
        mode = 'mode="linear"' if b & 1 else 'mode="nearest", coordinate_transformation_mode="asymmetric"'
        rounding = "" if b & 1 else ', nearest_mode="floor"'
        net.emit(f"Resize<{mode}{rounding}>({v.name}, , {scales})", v, size=SIZE)


def _shuffle(net: Net, v: Value, a: int, b: int) -> None:
    """Channels in another order: Gather, or Reshape and Transpose."""
    if a & 1 or not v.size or v.channels % 2 or net.open_image:
        order = net.constant(net.rng.permutation(v.channels))
        net.emit(f"Gather<axis=1>({v.name}, {order})", v)
        return
    split = net.constant(np.array([0, 2, v.channels // 2, v.size, v.size]))
    swapped = net.line(f"Transpose<perm=[0,2,1,3,4]>({net.line(f'Reshape({v.name}, {split})')})")
    net.emit(f"Reshape({swapped}, {net.constant(np.array([0, v.channels, v.size, v.size]))})", v)


def _pieces(net: Net, v: Value, a: int, b: int) -> None:
    """Split into two, each through something of its own, joined again (also in the other order)."""
    if v.channels % 2:
        return
    half = v.channels // 2
    one, two = net.name("t"), net.name("t")
    sizes = net.constant(np.array([half, half]))
    net.lines.append(f"{one}, {two} = Split<axis=1>({v.name}, {sizes})")
    one = net.line(f"{('Relu', 'Tanh', 'Neg')[a % 3]}({one})")
    if v.size and b & 1:
        two = net.line(f"Conv<pads=[1,1,1,1]>({two}, {net.kernel(bool(b & 2), half, half, 3, 3)})")
    pair = f"{two}, {one}" if b & 4 else f"{one}, {two}"
    net.emit(f"Concat<axis=1>({pair})", v)


def _quantized_weight(net: Net, v: Value, a: int, b: int) -> None:
    """A layer whose weights are int8 behind DequantizeLinear, per tensor or per channel."""
    out = 4 if v.size else 5
    shape = (out, v.channels, 3, 3) if v.size else (v.channels, out)
    w = net.constant(net.rng.integers(-127, 128, shape).astype(np.int8))
    limit = float(3 / (v.channels * (9 if v.size else 1))) ** 0.5 / 127
    axis = 0 if v.size else 1
    scale = net.weight(out, low=limit / 2, high=limit) if a & 1 else net.constant(np.array(limit, net.dtype))
    if net.type == "float16" and net.opset < 19:  # float16 scales came with opset 19
        return
    dequantized = net.line(f"DequantizeLinear{f'<axis={axis}>' if a & 1 else ''}({w}, {scale})")
    if v.size:
        net.emit(f"Conv<pads=[1,1,1,1]>({v.name}, {dequantized})", v, out)
    else:
        net.emit(f"MatMul({v.name}, {dequantized})", v, out)


def _shape_arithmetic(net: Net, v: Value, a: int, b: int) -> None:
    """x·C/8, or x·H/8, with the number taken from Shape at run time; or Expand to a computed shape."""
    shape = net.line(f"Shape({v.name})")
    if a % 3 == 2:
        ones = net.line(f"Expand({net.weight(1, low=0.5, high=1.5)}, {shape})")
        net.emit(f"Mul({v.name}, {ones})", v)
        return
    index = net.constant(np.array(1 if not v.size or a % 3 else 2))
    number = net.line(f"Cast<to={net.code}>({net.line(f'Gather<axis=0>({shape}, {index})')})")
    share = net.line(f"Div({number}, {net.constant(np.array(8, net.dtype))})")
    net.emit(f"Mul({v.name}, {share})", v)


def _more_activations(net: Net, v: Value, a: int, b: int) -> None:
    kinds = [
        "Clip",
        "PRelu",
        "Erf",
        "Selu",
        "ThresholdedRelu<alpha=0.0>",
        "Celu",
        "swish",
        "hard swish",
        "gelu",
        "Mish",
    ]
    kind = kinds[a % len(kinds)]
    match kind:
        case "Clip":
            low, high = (net.constant(np.array(x, net.dtype)) for x in ((0, 6), (-0.5, 0.5), (0, 1))[b % 3])
            net.emit(f"Clip({v.name}, {low}, {high})", v)
        case "PRelu":
            slope = net.weight(*((v.channels, 1, 1) if v.size and b & 1 else (1,)), low=0.1, high=0.3)
            net.emit(f"PRelu({v.name}, {slope})", v)
        case "swish":
            net.emit(f"Mul({v.name}, {net.line(f'Sigmoid({v.name})')})", v)
        case "hard swish":
            gate = net.line(f"HardSigmoid<alpha=0.1666667, beta=0.5>({v.name})")
            net.emit(f"Mul({v.name}, {gate})", v)
        case "gelu":
            root, one, half = (net.constant(np.array(x, net.dtype)) for x in (2**0.5, 1, 0.5))
            erf = net.line(f"Erf({net.line(f'Div({v.name}, {root})')})")
            twice = net.line(f"Mul({v.name}, {net.line(f'Add({erf}, {one})')})")
            net.emit(f"Mul({twice}, {half})", v)
        case "Mish" if net.opset < 18:
            soft = net.line(f"Tanh({net.line(f'Softplus({v.name})')})")
            net.emit(f"Mul({v.name}, {soft})", v)
        case "Celu" if net.type == "float16":
            pass
        case _:
            net.emit(f"{kind}({v.name})", v)


def _loop(net: Net, v: Value, a: int, b: int) -> None:
    """A Loop of a few rounds; its body reads weights, and another value, from outside."""
    rounds, go = net.constant(np.array(1 + a % 3)), net.constant(np.array(True))
    i, c, s, c2, s2, t = (net.name(k) for k in "icscst")
    if v.size and b & 1:
        body = f"{t} = Conv<pads=[1,1,1,1]>({s}, {net.kernel(False, v.channels, v.channels, 3, 3)})"
        norm = [net.weight(v.channels, low=low, high=1.2) for low in (0.5, -1.0, -1.0, 0.3)]
        body += f"\n{s2} = BatchNormalization({t}, {', '.join(norm)})" if b & 2 else f"\n{s2} = Tanh({t})"
    else:
        body = f"{t} = Tanh({s})\n{s2} = Add({t}, {v.name})"
    kind = net.kind(v)
    header = f"(int64 {i}, bool {c}, {kind} {s}) => (bool {c2}, {kind} {s2})"
    net.emit(
        f"Loop({rounds}, {go}, {v.name})<body = {net.name('body')} {header} {{\n{c2} = Identity({c})\n{body}\n}}>", v
    )


def _recurrent(net: Net, v: Value, a: int, b: int) -> None:
    """LSTM or GRU over the positions, one direction or both (their results added)."""
    if not v.size or net.type == "float16":
        return
    hidden, both = v.channels, a & 1
    gates, kind = (4, "LSTM") if b & 1 else (3, "GRU")
    sequence = net.line(f"Transpose<perm=[2,0,1]>({_flat(net, v)})")
    w = net.weight(1 + both, gates * hidden, v.channels, low=-0.5, high=0.5)
    r = net.weight(1 + both, gates * hidden, hidden, low=-0.5, high=0.5)
    bias = f", {net.weight(1 + both, 2 * gates * hidden)}" if b & 2 else ""
    way = ', direction="bidirectional"' if both else ""
    all_ = net.line(f"{kind}<hidden_size={hidden}{way}>({sequence}, {w}, {r}{bias})")
    axes = net.constant(np.array([1]))
    merged = f"ReduceSum<keepdims=0>({all_}, {axes})" if both else f"Squeeze({all_}, {axes})"
    _image(net, v, net.line(f"Transpose<perm=[1,2,0]>({net.line(merged)})"))


def _gemm_of_pool(net: Net, v: Value, a: int, b: int) -> None:
    """Back from a vector to an image's scale and shift: conditional normalisation."""
    if not v.size:
        return
    vector = net.line(f"Flatten({net.line(f'GlobalMaxPool({v.name})')})")
    w = net.kernel(False, v.channels, v.channels)
    mixed = net.line(f"Gemm<transB={a & 1}, alpha=0.5>({vector}, {w}, {net.weight(v.channels)})")
    axes = net.constant(np.array([2, 3]))
    net.emit(f"{('Add', 'Mul')[b & 1]}({v.name}, {net.line(f'Unsqueeze({mixed}, {axes})')})", v)


def _vector(net: Net, v: Value, a: int, b: int) -> None:
    """From an image to a vector; what follows are dense layers."""
    if v.size:
        pooled = net.line(f"{('GlobalAveragePool', 'GlobalMaxPool')[a & 1]}({v.name})")
        net.emit(f"Flatten({pooled})", v, size=0)


BLOCKS: dict[str, Step] = {
    "attention": _attention,
    "gate": _gate,
    "layer_norm": _layer_norm,
    "line": _line,
    "pad": _pad,
    "resize": _resize,
    "shuffle": _shuffle,
    "pieces": _pieces,
    "quantized_weight": _quantized_weight,
    "shape_arithmetic": _shape_arithmetic,
    "more_activations": _more_activations,
    "loop": _loop,
    "recurrent": _recurrent,
    "gemm_of_pool": _gemm_of_pool,
    "vector": _vector,
}
