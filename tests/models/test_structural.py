"""The structural networks: the published structure, weights that keep activations alive, a free batch."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import oracle
from graphopt.errors import ModelError
from graphopt.graph import load
from graphopt.models import get
from graphopt.models.realistic import realistic
from graphopt.models.structural import images
from graphopt.testing import from_text

STRUCTURES = {
    "shufflenet": ({"Conv": 49, "BatchNormalization": 49, "Transpose": 16}, 1.4e6),
    "squeezenet": ({"Conv": 26, "Concat": 8}, 1.24e6),
    "mobilenet-v2": ({"Conv": 52, "BatchNormalization": 52, "Clip": 35, "Add": 10}, 3.5e6),
    "inception-v1": ({"Conv": 57, "LRN": 2, "Concat": 9}, 7.0e6),
    "densenet121": ({"Conv": 121, "BatchNormalization": 121, "Concat": 58}, 8.0e6),
    "inception-v2": ({"Conv": 69, "BatchNormalization": 69, "Concat": 10}, 11.2e6),
    "resnet18": ({"Conv": 20, "BatchNormalization": 20, "Add": 8}, 11.69e6),
    "resnet50": ({"Conv": 53, "BatchNormalization": 53, "Sum": 16}, 25.6e6),
    "vgg19": ({"Conv": 16, "Gemm": 3}, 143.7e6),
}
FAST = ("shufflenet", "squeezenet", "mobilenet-v2")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in STRUCTURES]
)
def test_structure_and_life(name):
    entry = get(name)
    model = load(entry.path())
    ops, parameters = STRUCTURES[name]
    counts = Counter(node.op_type for node in model.graph)
    assert {op: counts[op] for op in ops} == ops
    floats = [value for value in model.graph.initializers.values() if value.dtype == ir.DataType.FLOAT]
    assert sum(value.const_value.size for value in floats) == pytest.approx(parameters, rel=0.05)
    assert not any(node.op_type == "ConstantOfShape" for node in model.graph)

    linear = [node.outputs[0].name for node in model.graph if node.op_type in ("Conv", "Gemm")]
    normed = [node.outputs[0].name for node in model.graph if node.op_type == "BatchNormalization"]
    (output,) = [value.name for value in model.graph.outputs]
    found = oracle.run(model, entry.example(3), outputs=[*linear, *normed, output])
    assert all(np.isfinite(array).all() for array in found.values())
    rms = {key: float(np.sqrt(np.square(found[key]).mean())) for key in (*normed, linear[-1])}
    assert all(0.05 < value < 20 for value in rms.values()), rms

    answers = found[output].reshape(3, -1)
    assert answers.shape[1] == 1000
    assert len(set(answers.argmax(1))) == 3, "different images give the same answer"
    assert np.abs(np.corrcoef(answers)[np.triu_indices(3, 1)]).max() < 0.9
    assert answers.std(axis=1).min() > 1e-4


def test_batch_norm_statistics_are_those_of_the_activations():
    model = load(get("mobilenet-v2").path())
    nodes = [node for node in model.graph if node.op_type == "BatchNormalization"][::10]
    found = oracle.run(model, {"image": images(8)}, outputs=[node.inputs[0].name for node in nodes])
    for node in nodes:
        x = found[node.inputs[0].name]
        mean, var = (value.const_value.numpy() for value in node.inputs[3:5])
        np.testing.assert_allclose(mean, x.mean((0, 2, 3)), atol=1e-3 * np.sqrt(var.max()))
        np.testing.assert_allclose(var, x.var((0, 2, 3)), rtol=1e-2, atol=1e-4)


def test_rounding_errors_do_not_grow_through_the_depth():
    """A hundredfold growth, which plain He weights show, would drown what a pass is judged by."""
    entry = get("mobilenet-v2")
    model, feeds = load(entry.path()), entry.example(1)
    noise = 1 + 1e-4 * np.random.default_rng(0).standard_normal(feeds["image"].shape).astype(np.float32)
    plain, disturbed = (oracle.run(model, f)["logits"] for f in (feeds, {"image": feeds["image"] * noise}))
    assert np.abs(plain - disturbed).max() < 30e-4 * np.abs(plain).max()


def test_building_twice_gives_the_same_bytes(tmp_path, monkeypatch):
    first = get("shufflenet").path().read_bytes()
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path))
    again = get("shufflenet").path()
    assert tmp_path in again.parents
    assert again.read_bytes() == first


def test_images_are_seeded_of_unit_order_and_smooth_as_photographs():
    batch = images(4, seed=3)
    assert batch.shape == (4, 3, 224, 224)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch, images(4, seed=3))
    assert 0.4 < batch.std() < 2
    neighbours = np.corrcoef(batch[..., :-1].ravel(), batch[..., 1:].ravel())[0, 1]
    assert neighbours > 0.8


def test_a_weight_without_a_rule_is_named():
    model = from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[1,4] x, float[4] w) => (float[1,4] y) { y = PRelu(x, w) }
        """,
        w=np.ones(4, np.float32),
    )
    with pytest.raises(ModelError, match="input 1 of PRelu"):
        realistic(model, {"x": np.ones((1, 4), np.float32)}, seed=0)


def test_last_scale_of_a_residual_branch_is_small_only():
    model = load(get("mobilenet-v2").path())
    norms = {node.name: node for node in model.graph if node.op_type == "BatchNormalization"}

    def scale(name):
        return norms[name].inputs[1].const_value.numpy().mean()

    assert scale("block2.project.bn") < 0.5 < scale("block1.project.bn")
