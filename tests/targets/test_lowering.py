import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.errors import LoweringError
from graphopt.graph import normalise
from graphopt.targets.lowering import lower
from graphopt.testing import from_text

HEADER = '<ir_version: 10, opset_import: ["": 20]>'


def weights(**shapes):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_weights_are_the_parameters_after_the_inputs():
    model = from_text(
        f"{HEADER} g (float[N,3,8,8] x, float[4,3,3,3] w, float[4] b) => (float[N,4,6,6] y) {{ y = Conv(x, w, b) }}",
        **weights(w=(4, 3, 3, 3), b=(4,)),
    )
    lowered = lower(model)
    params = lowered.module["main"].params
    assert lowered.inputs == ["x"]
    assert lowered.outputs == ["y"]
    assert [var.name for var in params] == ["x", "w", "b"]
    assert list(lowered.weights) == ["w", "b"]
    np.testing.assert_array_equal(lowered.weights["w"], model.graph.initializers["w"].const_value.numpy())
    assert str(params[0].ty.shape[0]) == "N"  # a symbolic dimension stays symbolic


def test_the_model_given_stays_as_it_is():
    model = from_text(f"{HEADER} g (float[2,3] x) => (float[2,3] y) {{ m = Mish(x) s = Shape(x) y = Reshape(m, s) }}")
    before = ir.to_proto(model).SerializeToString()
    lower(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_names_become_identifiers_and_map_back():
    model = from_text(
        f"{HEADER} g (float[2,3] x, float[2,3] w) => (float[2,3] y) {{ y = Add(x, w) }}", **weights(w=(2, 3))
    )
    model.graph.inputs[0].name = "gpu_0/data.0"
    model.graph.initializers["w"].name = "1/weight"
    model.graph.outputs[0].name = "gpu_0_data_0"  # what the input's name turns into
    next(iter(model.graph)).name = "block/add:0"
    lowered = lower(model)
    assert lowered.inputs == ["gpu_0/data.0"]
    assert lowered.outputs == ["gpu_0_data_0"]
    assert list(lowered.weights) == ["1/weight"]
    assert [var.name for var in lowered.module["main"].params] == ["gpu_0_data_0", "v_1_weight"]
    assert "block_add_0" in str(lowered.module["main"])


def test_variables_know_the_node_they_come_from():
    model = from_text(f"{HEADER} g (float[2,3] x) => (float[2,3] y) {{ [first] a = Relu(x) [second] y = Neg(a) }}")
    assert {origin.nodes for origin in lower(model).sources.values()} == {("first",), ("second",)}


def test_dimension_names_that_look_like_arithmetic_stay_apart():
    model = from_text(
        f"{HEADER} g (float[N,4] x, float[M,4] z) => (float[N,4] y, float[M,4] q) {{ y = Relu(x) q = Relu(z) }}"
    )
    model.graph.inputs[0].shape = ir.Shape(["seq-len", 4])
    model.graph.inputs[1].shape = ir.Shape(["seq", 4])
    first, second = lower(normalise(model)).module["main"].params
    assert {str(first.ty.shape[0]), str(second.ty.shape[0])} == {"seq_len", "seq"}


def test_computed_shapes_are_folded_also_through_int32_and_symbolic_batch():
    model = from_text(
        f"""{HEADER}
        g (float[N,2,3] x) => (float[N,6] y, float[N,6] z) {{
            shape = Shape(x)
            narrow = Cast<to=6>(shape)
            zero = Constant<value_ints=[0]>()
            one = Constant<value_ints=[1]>()
            start = Cast<to=6>(zero)
            end = Cast<to=6>(one)
            batch = Slice(narrow, start, end, start)
            six = Constant<value_ints=[6]>()
            six32 = Cast<to=6>(six)
            joined = Concat<axis=0>(batch, six32)
            target = Cast<to=7>(joined)
            y = Reshape(x, target)
            scalar = Constant<value_float=2.0>()
            z = Expand(scalar, target)
        }}"""
    )
    lowered = lower(model)
    text = str(lowered.module["main"])
    assert "R.shape([N, 6])" in text
    assert "astype" not in text
    assert lowered.module["main"].ret_ty.fields[1].shape[1] == 6


def test_dequantised_weights_stay_small():
    model = from_text(
        f"""{HEADER}
        g (float[1,64] x, int8[64,64] w, float s) => (float[1,64] y) {{ d = DequantizeLinear(w, s) y = MatMul(x, d) }}
        """,
        w=np.ones((64, 64), np.int8),
        s=np.float32(0.5),
    )
    assert lower(model).weights["w"].dtype == np.int8


def test_weights_that_only_became_constants_are_no_parameters():
    model = from_text(
        f"{HEADER} g (float[2,3] x, int64[1] axes) => (float[2] y) {{ y = ReduceMean<keepdims=0>(x, axes) }}",
        axes=np.array([1]),
    )
    assert lower(model).weights == {}


def test_every_operator_without_a_converter_is_named_with_its_nodes():
    model = from_text(
        """<ir_version: 10, opset_import: ["": 20, "my": 1]>
        g (float[2,4] x) => (float[2,4] y, float[2,4] z, float[2,4] q) {
            [one] y = my.Relu(x)
            [two] z = my.Relu(x)
            [three] q = my.Other(x)
        }"""
    )
    with pytest.raises(LoweringError) as error:
        lower(model)
    assert "2 kind(s) of operator" in str(error.value)
    assert "my::Relu (no converter) at one, two" in str(error.value)
    assert "my::Other (no converter) at three" in str(error.value)


def test_failures_inside_the_importer_are_all_named_and_nothing_else():
    model = from_text(
        f"""{HEADER}
        g (float[2,4] x, float[2] scales) => (float[A,B] y, float[C,D] z) {{
            [first] a = Resize(x, , scales)
            [after] y = Relu(a)
            [second] z = Resize(x, , scales)
        }}"""
    )
    with pytest.raises(LoweringError, match=r"1 kind\(s\) of operator: Resize \(.*\) at first, second\. Replace"):
        lower(model)


def test_open_dimensions_are_named_as_a_way_out():
    model = from_text(
        """<ir_version: 10, opset_import: ["": 20, "my": 1]>
        g (float[rows,4] x) => (float[rows,4] y) { y = my.Op(x) }"""
    )
    with pytest.raises(LoweringError, match=r"open dimensions \(rows\) sizes"):
        lower(model)


# What TVM's importer would take and compute wrongly: found by ONNX's backend tests.
REFUSED = {
    "Mod .of floats": "(bfloat16[4] x, bfloat16[4] z) => (bfloat16[4] y) { y = Mod<fmod=1>(x, z) }",
    "Resize .antialias": (
        "(float[N,1,4,4] x) => (float[N,1,A,B] y) { s = Constant<value_floats=[1.0, 1.0, 0.5, 0.5]>() "
        'y = Resize<antialias=1, mode="linear">(x, , s) }'
    ),
    "Dropout .training mode": (
        "(float[4] x) => (float[4] y) { r = Constant<value_float=0.5>() z = Constant<value_int=1>() "
        "t = Cast<to=9>(z) y = Dropout(x, r, t) }"
    ),
    "ConvTranspose .output_shape": (
        "(float[1,1,3,3] x, float[1,1,3,3] w) => (float[1,1,5,5] y) { y = ConvTranspose<output_shape=[5,5]>(x, w) }"
    ),
    "NonMaxSuppression .with several": (
        "(float[1,6,4] b, float[1,2,6] s) => (int64[N,3] y) { y = NonMaxSuppression(b, s) }"
    ),
    "ReduceMean .of an empty": "(float[0,4] x) => (float[1,1] y) { y = ReduceMean(x) }",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_would_be_computed_wrongly_is_refused(reason):
    with pytest.raises(LoweringError, match=reason):
        lower(from_text(f"{HEADER} g {REFUSED[reason]}"))


def test_denormal_numbers_are_zero_in_the_program_and_others_are_untouched():
    """A dead channel's bias of 1e-39 made the next layer fifty times slower."""
    b = np.array([1e-39, -1e-39, 1.2e-38, -1.0], np.float32)
    text = f"{HEADER} g (float[N,3,8,8] x, float[4,3,3,3] w, float[4] b) => (float[N,4,6,6] y) {{ y = Conv(x, w, b) }}"
    model = from_text(text, b=b, **weights(w=(4, 3, 3, 3)))
    lowered = lower(model)
    np.testing.assert_array_equal(lowered.weights["b"], np.array([0, 0, 1.2e-38, -1.0], np.float32))
    np.testing.assert_array_equal(model.graph.initializers["b"].const_value.numpy(), b)


@pytest.mark.parametrize("op", ["Elu", "Selu", "ThresholdedRelu"])
@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_what_the_importer_knows_in_float32_alone_is_lowered_by_its_definition(op, dtype):
    text = '<ir_version: 10, opset_import: ["": 22]>'
    model = from_text(f"{text} g ({dtype}[N,3] x) => ({dtype}[N,3] y) {{ y = {op}(x) }}")
    assert lower(model).outputs == ["y"]


def test_the_rest_of_floats_with_the_sign_of_the_divisor_is_refused():
    """What opset 28 allows: taken for `fmod`, it came out wrong."""
    text = "g (float[3] x, float[3] z) => (float[3] y) { y = Mod(x, z) }"
    model = from_text('<ir_version: 10, opset_import: ["": 28]>' + text)
    with pytest.raises(LoweringError, match="Mod"):
        lower(model)


def test_a_size_as_a_boolean_is_whether_it_is_zero():
    """``Cast<bool>(Shape(x))`` is 1 where the size is not 0; taken for the size itself the target would be [6, 6]."""
    model = from_text(
        f"{HEADER} g (float[3,2] x, float[N,2] v, int64[2] t) => (float[a,b] y) {{ s = Shape(v) b = Cast<to=9>(s)"
        " i = Cast<to=7>(b) c = Mul(i, t) y = Reshape(x, c) }",
        t=np.array([2, 3]),
    )
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(3, 2), "v": np.zeros((3, 2), np.float32)}
    program = graphopt.compile(model, verify=False)
    np.testing.assert_array_equal(program.run(feeds)["y"], [[0, 1, 2], [3, 4, 5]])
