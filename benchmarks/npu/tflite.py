"""Write a network of `networks.layers` as an int8 TFLite file, with the schema that ships inside ethos-u-vela.

Weights are random: normal with a standard deviation of 32 steps, about what per-channel scales give.
"""

from __future__ import annotations

import flatbuffers
import numpy as np
from ethosu.vela.tflite import (
    AddOptions,
    Buffer,
    ConcatenationOptions,
    Conv2DOptions,
    DepthwiseConv2DOptions,
    FullyConnectedOptions,
    Model,
    MulOptions,
    Operator,
    OperatorCode,
    Pool2DOptions,
    QuantizationParameters,
    ReshapeOptions,
    SoftmaxOptions,
    SubGraph,
    Tensor,
)  # fmt: skip
from ethosu.vela.tflite.BuiltinOperator import BuiltinOperator as B
from ethosu.vela.tflite.BuiltinOptions import BuiltinOptions as O

CODES = {
    "conv": B.CONV_2D, "depthwise": B.DEPTHWISE_CONV_2D, "dense": B.FULLY_CONNECTED, "add": B.ADD, "mul": B.MUL,
    "maxpool": B.MAX_POOL_2D, "avgpool": B.AVERAGE_POOL_2D, "concat": B.CONCATENATION, "reshape": B.RESHAPE,
    "softmax": B.SOFTMAX, "sigmoid": B.LOGISTIC,
}  # fmt: skip
ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 3}
INT8, INT32 = 9, 2


class Writer:
    """Collects tensors and operators, then writes the file."""

    def __init__(self, network):
        self.b = flatbuffers.Builder(1 << 20)
        self.rng = np.random.default_rng(0)
        self.buffers, self.tensors, self.index, self.operators = [b""], [], {}, []
        self.network = network

    def tensor(self, name, shape, kind, scale, data=None, axis=0, label=None):
        buffer = 0
        if data is not None:
            buffer = len(self.buffers)
            self.buffers.append(np.ascontiguousarray(data).tobytes())
        b = self.b
        scales = b.CreateNumpyVector(np.asarray(scale, np.float32).reshape(-1))
        zeros = b.CreateNumpyVector(np.zeros(np.size(scale), np.int64))
        QuantizationParameters.Start(b)
        QuantizationParameters.AddScale(b, scales)
        QuantizationParameters.AddZeroPoint(b, zeros)
        QuantizationParameters.AddQuantizedDimension(b, axis)
        quantization = QuantizationParameters.End(b)
        label = b.CreateString(label or name)
        dims = b.CreateNumpyVector(np.asarray(shape, np.int32))
        Tensor.Start(b)
        Tensor.AddShape(b, dims)
        Tensor.AddType(b, kind)
        Tensor.AddBuffer(b, buffer)
        Tensor.AddName(b, label)
        Tensor.AddQuantization(b, quantization)
        self.tensors.append(Tensor.End(b))
        self.index[name] = len(self.tensors) - 1
        return self.index[name]

    def constants(self, layer):
        """Weights and bias of a layer: their tensors."""
        shapes, kernel = self.network["tensors"], layer.get("kernel", [])
        cin, cout = shapes[layer["inputs"][0]][-1], shapes[layer["output"]][-1]
        if layer["op"] == "conv":
            shape, axis = [cout, *kernel, cin], 0
        elif layer["op"] == "depthwise":
            shape, axis = [1, *kernel, cout], 3
        else:
            shape, axis = [cout, cin], 0
        weights = np.clip(np.rint(self.rng.normal(0, 32, shape)), -127, 127).astype(np.int8)
        scale = self.rng.uniform(0.001, 0.002, cout)
        bias = self.rng.integers(-1000, 1000, cout).astype(np.int32)
        return [
            self.tensor(layer["name"] + "/w", shape, INT8, scale, weights, axis),
            self.tensor(layer["name"] + "/b", [cout], INT32, 0.05 * scale, bias),
        ]

    def options(self, layer):
        b, op = self.b, layer["op"]
        padding, act = 0 if layer.get("same") else 1, ACTIVATIONS[layer["activation"]]
        if op in ("conv", "depthwise"):
            kind, module = (
                (O.Conv2DOptions, Conv2DOptions) if op == "conv" else (O.DepthwiseConv2DOptions, DepthwiseConv2DOptions)
            )
            module.Start(b)
            module.AddPadding(b, padding)
            module.AddStrideW(b, layer["stride"][1])
            module.AddStrideH(b, layer["stride"][0])
            if op == "depthwise":
                module.AddDepthMultiplier(b, 1)
            module.AddFusedActivationFunction(b, act)
            module.AddDilationWFactor(b, layer["dilation"][1])
            module.AddDilationHFactor(b, layer["dilation"][0])
            return kind, module.End(b)
        if op in ("maxpool", "avgpool"):
            Pool2DOptions.Start(b)
            Pool2DOptions.AddPadding(b, padding)
            Pool2DOptions.AddStrideW(b, layer["stride"][1])
            Pool2DOptions.AddStrideH(b, layer["stride"][0])
            Pool2DOptions.AddFilterWidth(b, layer["kernel"][1])
            Pool2DOptions.AddFilterHeight(b, layer["kernel"][0])
            return O.Pool2DOptions, Pool2DOptions.End(b)
        if op in ("add", "mul", "dense"):
            kind, module = {
                "add": (O.AddOptions, AddOptions), "mul": (O.MulOptions, MulOptions),
                "dense": (O.FullyConnectedOptions, FullyConnectedOptions),
            }[op]  # fmt: skip
            module.Start(b)
            module.AddFusedActivationFunction(b, act)
            return kind, module.End(b)
        if op == "concat":
            ConcatenationOptions.Start(b)
            ConcatenationOptions.AddAxis(b, 3)
            return O.ConcatenationOptions, ConcatenationOptions.End(b)
        if op == "reshape":
            shape = b.CreateNumpyVector(np.asarray(self.network["tensors"][layer["output"]], np.int32))
            ReshapeOptions.Start(b)
            ReshapeOptions.AddNewShape(b, shape)
            return O.ReshapeOptions, ReshapeOptions.End(b)
        if op == "softmax":
            SoftmaxOptions.Start(b)
            SoftmaxOptions.AddBeta(b, 1.0)
            return O.SoftmaxOptions, SoftmaxOptions.End(b)
        return 0, None

    def vector(self, start, offsets):
        start(self.b, len(offsets))
        for offset in reversed(offsets):
            self.b.PrependUOffsetTRelative(offset)
        return self.b.EndVector()

    def write(self, path):
        b, codes = self.b, sorted(set(CODES.values()))
        scales = {}
        for name in self.network["inputs"]:
            self.tensor(name, self.network["tensors"][name], INT8, 0.05)
        for layer in self.network["layers"]:
            inputs = [self.index[name] for name in layer["inputs"]]
            if layer["op"] in ("conv", "depthwise", "dense"):
                inputs += self.constants(layer)
            scale = 1 / 256 if layer["op"] in ("softmax", "sigmoid") else 0.05
            if layer["op"] == "reshape":
                scale = scales.get(layer["inputs"][0], 0.05)
            scales[layer["output"]] = scale
            output = self.tensor(
                layer["output"], self.network["tensors"][layer["output"]], INT8, scale, label=layer["name"]
            )
            kind, options = self.options(layer)
            ins, outs = (b.CreateNumpyVector(np.asarray(v, np.int32)) for v in (inputs, [output]))
            Operator.Start(b)
            Operator.AddOpcodeIndex(b, codes.index(CODES[layer["op"]]))
            Operator.AddInputs(b, ins)
            Operator.AddOutputs(b, outs)
            if options is not None:
                Operator.AddBuiltinOptionsType(b, kind)
                Operator.AddBuiltinOptions(b, options)
            self.operators.append(Operator.End(b))
        ends = [
            b.CreateNumpyVector(np.asarray([self.index[name] for name in self.network[key]], np.int32))
            for key in ("inputs", "outputs")
        ]
        tensors = self.vector(SubGraph.StartTensorsVector, self.tensors)
        operators = self.vector(SubGraph.StartOperatorsVector, self.operators)
        SubGraph.Start(b)
        SubGraph.AddTensors(b, tensors)
        SubGraph.AddInputs(b, ends[0])
        SubGraph.AddOutputs(b, ends[1])
        SubGraph.AddOperators(b, operators)
        graphs = self.vector(Model.StartSubgraphsVector, [SubGraph.End(b)])
        made = []
        for code in codes:
            OperatorCode.Start(b)
            OperatorCode.AddDeprecatedBuiltinCode(b, code)
            OperatorCode.AddVersion(b, 1)
            OperatorCode.AddBuiltinCode(b, code)
            made.append(OperatorCode.End(b))
        codes_vector = self.vector(Model.StartOperatorCodesVector, made)
        stored = []
        for data in self.buffers:
            offset = b.CreateByteVector(data) if data else None
            Buffer.Start(b)
            if offset is not None:
                Buffer.AddData(b, offset)
            stored.append(Buffer.End(b))
        buffers = self.vector(Model.StartBuffersVector, stored)
        Model.Start(b)
        Model.AddVersion(b, 3)
        Model.AddOperatorCodes(b, codes_vector)
        Model.AddSubgraphs(b, graphs)
        Model.AddBuffers(b, buffers)
        b.Finish(Model.End(b), b"TFL3")
        path.write_bytes(b.Output())
