"""The page as a document: self-contained, its policy names its own script and style, and hostile names stay text."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from graphopt import report
from graphopt.api import open_model, run_pipeline
from graphopt.errors import UsageError
from graphopt.report.findings import findings
from graphopt.report.nodes import index
from graphopt.report.page import page, to_script
from graphopt.report.tensors import weights
from graphopt.report.union import unite
from graphopt.testing import from_text

HEADER = '<ir_version: 10, opset_import: ["": 20]>'


class Tags(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.found[-1:] and self.cdata_elem:
            self.raw.append(data)


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


@pytest.fixture(scope="module")
def text(evidence):
    return page(evidence)


def test_the_policy_allows_this_script_and_this_style_alone(text):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    for name, pattern in (("script-src", r"<script>(.*?)</script>"), ("style-src", r"<style>(.*?)</style>")):
        (body,) = re.findall(pattern, text, re.S)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert "unsafe" not in policy


def test_nothing_is_loaded_and_nothing_is_inline_but_the_two(text):
    for tag, attributes in Tags(text).found:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("src", "href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "http:" not in text.replace("http://www.w3.org/2000/svg", "")


@pytest.fixture
def hostile_model(network, hostile):
    model = open_model(network())
    for node in model.graph:
        node.name = f"{node.name}{hostile}"
        node.doc_string = hostile
    model.graph.inputs[0].name = hostile
    return model


def test_hostile_names_make_no_element(text, hostile, hostile_model):
    done = run_pipeline(hostile_model, "fold-batch-norm")
    evil = page(report.of_result(hostile, hostile_model, done))
    tags = [tag for tag, _ in Tags(evil).found]
    assert "img" not in tags
    assert tags.count("script") == [tag for tag, _ in Tags(text).found].count("script") == 2
    names = [item["n"] for item in data_of(evil)["items"]]
    assert any(hostile in name for name in names)
    assert evil.count("<!--data-->") == 0 or "&lt;!--data--&gt;" in evil


@pytest.mark.parametrize("name", ["\x00\x1b[31m", "\ud800", "\u2028", "]]>", "'\"&amp;<b>", "a" * 5000])
def test_any_text_survives(name, network):
    model = open_model(network())
    model.graph[0].doc_string = name
    model.graph[0].name = f"odd{name}"
    text = page(report.Evidence(title=f"t{name}", after=model))
    assert "<b>" not in text
    text.encode()
    assert any(item["n"].startswith("odd") for item in data_of(text)["items"])


def test_data_in_the_script_element_is_json_without_markup():
    text = to_script({"a": ["</script>", "<!--", "&", float("nan"), float("inf"), 1.5]})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": ["</script>", "<!--", "&", None, None, 1.5]}


def test_a_node_tells_what_happened_to_it(evidence, text):
    items = {item["n"]: item for item in data_of(text)["items"]}
    conv = items["conv1"]
    assert conv["s"] == "fused"
    assert conv["y"] == ["fold-batch-norm", "prune-magnitude"]
    assert any(line.startswith("prune-magnitude: ") for line in conv["z"])
    assert conv["c"][0][0] == 8 * 8 * 4 * 27
    (weight,) = conv["h"]
    assert weight["after"]["zeros"] >= 0.35
    assert sum(weight["counts_before"]) == sum(weight["counts_after"]) == 4 * 27
    assert ["pads", "(1, 1, 1, 1)", "(1, 1, 1, 1)"] in conv["a"]
    assert conv["e"][3] == conv["e"][4] > 0.01  # pruned, and nothing before it has an error
    assert "e" not in items["bn1"]


def test_the_pipeline_is_told_pass_by_pass(evidence, text):
    assert [step["facts"]["totals"]["nodes"] for step in evidence.passes] == [5, 5]
    table = re.search(r"What is left after each pass</caption>(.*?)</table>", text, re.S)[1]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in table.split("<tr>")[2:]]
    assert [row[0] for row in rows] == ["given", "fold-batch-norm", "prune-magnitude"]
    assert [re.sub("<.*?>", "", row[2]) for row in rows] == ["7", "5", "5"]


def test_the_error_enters_where_it_was_put(network):
    """One weight of the second convolution is changed: the first node that differs is that one."""
    before, after = open_model(network()), open_model(network())
    weight = after.graph.initializers["v"]
    changed = weight.const_value.numpy().copy()
    changed[0, 0] += 1.0
    import onnx_ir as ir

    weight.const_value = ir.tensor(changed, name="v")
    found = report.with_errors(report.Evidence(title="t", before=before, after=after))
    assert found.errors["conv1"].accumulated.largest == 0
    assert found.errors["conv2"].alone.largest > 0.01
    known = index(unite(before, after), [])
    (where,) = (f for f in findings(found, known, [], {}) if "error" in f.question)
    assert where.answer.startswith("conv2:")


def test_equal_graphs_have_no_error(network):
    found = report.with_errors(report.Evidence(title="t", before=open_model(network()), after=open_model(network())))
    known = index(unite(found.before, found.after), [])
    (where,) = (f for f in findings(found, known, [], {}) if "error" in f.question)
    assert where.answer.startswith("nowhere")


def test_weights_behind_a_dequantize_are_shown_dequantized():
    rng = np.random.default_rng(0)
    float_model = from_text(
        f"{HEADER} g (float[1,4] x, float[4,3] w) => (float[1,3] y) {{ [m] y = MatMul(x, w) }}",
        w=rng.standard_normal((4, 3), np.float32),
    )
    w = float_model.graph.initializers["w"].const_value.numpy()
    scale = np.abs(w).max(axis=0) / 127
    quantized = from_text(
        f"""{HEADER} g (float[1,4] x, int8[4,3] q, float[3] s) => (float[1,3] y) {{
        [dq] w = DequantizeLinear<axis=1>(q, s) [m] y = MatMul(x, w) }}""",
        q=np.rint(w / scale).astype(np.int8),
        s=scale.astype(np.float32),
    )
    (weight,) = weights(float_model.graph[0], quantized.graph[1])
    assert weight.before.type == "float[4, 3]"
    assert weight.after.type == "int8[4, 3]"
    assert weight.after.std == pytest.approx(weight.before.std, rel=0.02)


def test_weights_without_finite_or_spread_values():
    model = from_text(
        f"{HEADER} g (float[1,4] x, float[4] a, float[4] b) => (float[1,4] y) "
        "{ [p] t = Add(x, a) [q] y = Add(t, b) }",
        a=np.full(4, np.nan, np.float32),
        b=np.array([0, 0, np.inf, 0], np.float32),
    )
    assert weights(model.graph[0], None) == []
    (weight,) = weights(None, model.graph[1])
    assert (weight.low, weight.high, sum(weight.counts_after)) == (0.0, 0.0, 3)


def test_a_report_is_written_whole_or_not_at_all(evidence, tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        report.write(evidence, tmp_path / "none" / "r.html")
    assert report.write(evidence, tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_the_same_evidence_gives_the_same_bytes(evidence, text):
    assert page(evidence) == text
