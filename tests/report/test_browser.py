"""The page in a headless Chromium: it draws, answers to pointer and keyboard, and complains of nothing."""

from pathlib import Path

import onnx_ir as ir
import pytest

from graphopt import report
from graphopt.api import open_model, run_pipeline

CHANGES = "DATA.items.map((item, number) => number).filter((number) => DATA.items[number].s !== 'same')"


@pytest.fixture(scope="module")
def url(evidence, tmp_path_factory) -> str:
    return report.write(evidence, tmp_path_factory.mktemp("page") / "report.html").as_uri()


@pytest.fixture(params=[(1280, 900, False), (390, 844, True)], ids=["desk", "phone in the dark"])
def tab(request, chromium, url):
    width, height, dark = request.param
    chromium.open(url, width, height, dark=dark, phone=dark)
    yield chromium
    assert chromium.complaints == []


@pytest.fixture
def desk(chromium, url):
    chromium.open(url)
    yield chromium
    assert chromium.complaints == []


def place_of(browser, name: str, pane: int = 0) -> tuple[float, float]:
    """Where a node is in the window."""
    x, y = browser.run(
        f"""(() => {{ const pane = shown()[{pane}], bounds = pane.canvas.getBoundingClientRect();
        const box = scene.boxes[scene.boxOf[DATA.items.findIndex((item) => item.n === {name!r})]];
        return [bounds.left + pane.w / 2 + (box.x - state.view.x) * state.view.k,
                bounds.top + pane.h / 2 + (box.y - state.view.y) * state.view.k]; }})()"""
    )
    return x, y


def show_graph(browser) -> None:
    browser.run("document.getElementById('graph').scrollIntoView({behavior: 'instant'})")


def chosen(browser) -> str:
    return browser.run("state.chosen < 0 ? '' : DATA.items[state.chosen].n")


def painted(browser, pane: int = 0) -> int:
    """How many colours there are in a pane."""
    return browser.run(
        f"""(() => {{ const {{ context, canvas }} = shown()[{pane}];
        const data = context.getImageData(0, 0, canvas.width, canvas.height).data, seen = new Set();
        for (let at = 0; at < data.length; at += 4 * 97) seen.add(data[at] << 16 | data[at + 1] << 8 | data[at + 2]);
        return seen.size; }})()"""
    )


def test_it_draws_and_fits_the_window(tab):
    assert painted(tab) > 4
    assert tab.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert tab.run("Number(shown()[shown().length - 1].canvas.dataset.drawn)") >= 6


def test_colours_follow_the_scheme(chromium, url):
    grounds = []
    for dark in (False, True):
        chromium.open(url, dark=dark)
        grounds.append(chromium.run("getComputedStyle(document.body).backgroundColor"))
        assert painted(chromium) > 4
    assert grounds[0] != grounds[1]


def test_search_finds_and_goes_there(tab):
    tab.run("document.body.focus()")
    tab.key("/")
    assert tab.run("document.activeElement.id") == "search"
    tab.write("relu")
    assert tab.run("document.getElementById('hits').textContent") == "2 found"
    tab.key("Enter")
    assert chosen(tab) == "relu1"
    tab.key("Enter")
    assert chosen(tab) == "relu2"
    assert "relu2" in tab.run("panel.textContent")
    tab.key("Escape")
    assert tab.run("document.getElementById('hits').textContent") == ""


def test_a_click_shows_attributes_weights_error_and_passes(tab):
    show_graph(tab)
    tab.click(*place_of(tab, "conv1"))
    text = tab.run("panel.textContent")
    for wanted in ("conv1", "fused", "pads", "fold-batch-norm", "prune-magnitude", "SQNR", "deviation"):
        assert wanted in text
    assert tab.run("panel.querySelectorAll('svg.hist rect').length") >= 64


def test_both_sides_move_together(desk):
    show_graph(desk)
    places = [place_of(desk, "conv2", pane) for pane in (0, 1)]
    desk.run("zoom(1.6)")
    desk.drag(*places[0], 30, -60)
    after = [place_of(desk, "conv2", pane) for pane in (0, 1)]
    assert after[0] != places[0]
    assert after[1][0] - after[0][0] == pytest.approx(places[1][0] - places[0][0])
    assert after[0][1] == pytest.approx(after[1][1])
    assert chosen(desk) == ""  # a drag is no click


def test_the_keyboard_reaches_everything(desk):
    show_graph(desk)
    desk.run("shown()[1].canvas.focus()")
    seen = []
    for _ in range(5):
        desk.key("ArrowDown")
        seen.append(chosen(desk))
    assert seen == ["x", "conv1", "relu1", "conv2", "add"]
    desk.key("ArrowUp")
    assert chosen(desk) in ("conv2", "relu1")
    desk.key("n")
    assert desk.run(f"{CHANGES}.includes(state.chosen)")
    before = desk.run("state.view.k")
    desk.key("-")
    assert desk.run("state.view.k") < before
    desk.key("Enter")
    assert desk.run("document.activeElement.id") == "panel"
    desk.key("Escape")
    assert chosen(desk) == ""


def test_one_side_alone(desk):
    desk.run("document.querySelector('[data-sides=\"1\"]').click()")
    assert desk.run("shown().map((pane) => pane.side)") == [1]
    assert desk.run("scene.boxes.every((box) => box.sides & 1)")
    assert desk.run("panes[1].figure.hidden")


def test_a_phone_stacks_both_sides_undistorted(chromium, url):
    chromium.open(url, 390, 844, phone=True)
    assert chromium.run("shown().map((pane) => pane.side)") == [2]
    chromium.run("document.querySelector('[data-sides=\"3\"]').click()")
    chromium.run("new Promise((done) => setTimeout(done, 100))")
    sizes = chromium.run("shown().map(({canvas: c}) => [c.width, c.height, c.clientWidth, c.clientHeight])")
    assert len(sizes) == 2
    assert all(size[:2] == size[2:] for size in sizes)
    assert chromium.complaints == []


def test_buttons_outside_the_graph_lead_into_it(desk):
    desk.run("document.querySelector('#findings .jump').click()")
    assert chosen(desk) != ""
    assert desk.run("document.querySelector('#findings .jump').dataset.item") == str(desk.run("state.chosen"))


def test_the_list_sorts_and_follows_the_search(desk):
    desk.run("[...document.querySelectorAll('#list th button')].find((b) => b.textContent === 'MACs').click()")
    first = desk.run("document.querySelector('#list tbody tr .jump').textContent")
    assert first == "conv1"
    desk.run("search.focus()")
    desk.write("add")
    assert desk.run("document.querySelectorAll('#list tbody tr').length") == 1


def blocks_model() -> ir.Model:
    from graphopt.testing import from_text

    model = open_model(
        from_text(
            """<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y) {
            [a] p = Relu(x) [b] q = Neg(p) [c] r = Abs(q) [d] s = Exp(r) [e] y = Add(s, p) }"""
        )
    )
    for node, name in zip(model.graph, ("/one/a", "/one/deep/b", "/one/deep/c", "/two/d", "/two/e"), strict=True):
        node.name = name
    return model


def test_blocks_collapse_and_open(chromium, tmp_path):
    chromium.open(report.write(report.Evidence("blocks", after=blocks_model()), tmp_path / "b.html").as_uri())
    show_graph(chromium)
    assert chromium.run("scene.boxes.length") == 7
    chromium.run("document.getElementById('fold').click()")
    assert chromium.run("scene.boxes.length") == 4
    assert chromium.run("scene.rows.length") == 4
    chromium.click(*place_of(chromium, "/two/e"))  # the block that holds it
    assert chromium.run("scene.boxes.length") == 5
    chromium.run("find('deep/b'); nextHit(1)")  # what is found comes out of its block
    assert chosen(chromium) == "/one/deep/b"
    assert chromium.run("holder(state.chosen)") == -1
    chromium.run("shown()[0].canvas.focus()")
    chromium.key("c")
    assert chromium.run("[...state.folded].map((block) => DATA.blocks[block][0])") == ["one/deep"]
    chromium.run("document.getElementById('unfold').click()")
    assert chromium.run("scene.boxes.length") == 7
    assert chromium.complaints == []


def test_hostile_names_run_nothing(chromium, network, hostile, tmp_path):
    model = open_model(network())
    for node in model.graph:
        node.name = f"{node.name}{hostile}"
        node.doc_string = hostile
    path = report.write(report.of_result(hostile, model, run_pipeline(model, "fold-batch-norm")), tmp_path / "h.html")
    chromium.open(path.as_uri())
    chromium.run("DATA.items.forEach((_, number) => choose(number))")
    chromium.run("search.focus()")
    chromium.write("<img")
    assert chromium.run("document.querySelectorAll('img').length") == 0
    assert chromium.run("document.title").startswith("</script>")
    assert chromium.complaints == []


def test_the_policy_stops_what_gets_in_all_the_same(chromium, url):
    chromium.open(url)
    evil = '<img src=x onerror=\\"document.title=1\\"><p style=\\"color:red\\">'
    chromium.run(f'document.body.insertAdjacentHTML("beforeend", "{evil}")')
    chromium.run("new Promise((done) => setTimeout(done, 200))")
    assert chromium.run("document.title") != "1"
    assert any("Content Security Policy" in line for line in chromium.complaints)


def large(count: int) -> ir.Model:
    """A tower of residual blocks whose nodes have exporters' names."""
    x = ir.Value(name="x", shape=ir.Shape([1, 8]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes, value = [], x
    for block in range(count // 5):
        entry = value
        for step, op in enumerate(("Relu", "Neg", "Abs", "Tanh")):
            nodes.append(ir.node(op, [value], name=f"/tower/{block // 20}/{block % 20}/{op}{step}"))
            value = nodes[-1].outputs[0]
        nodes.append(ir.node("Add", [value, entry], name=f"/tower/{block // 20}/{block % 20}/Add"))
        value = nodes[-1].outputs[0]
    for node in nodes:
        node.outputs[0].name = f"{node.name}.out"
        node.outputs[0].shape, node.outputs[0].type = x.shape, x.type
    graph = ir.Graph([x], [value], nodes=nodes, opset_imports={"": 20}, name="tower")
    return ir.Model(graph, ir_version=10)


def test_five_thousand_nodes_stay_usable(chromium, tmp_path):
    """First paint in 2 s and 30 frames a second while moving; a loaded machine gets twice the time."""
    path = report.write(report.Evidence("tower", before=large(5000), after=large(5000)), tmp_path / "tower.html")
    chromium.open(path.as_uri())
    assert chromium.run("DATA.items.length") == 5002
    assert int(chromium.run("document.documentElement.dataset.ready")) < 4000
    frame = """(async () => {{ {prepare}; const times = [];
        for (let at = 0; at < 30; at += 1) {{
          await new Promise((done) => requestAnimationFrame(done));
          const start = performance.now(); move(0, 40 * state.view.k); drawNow();
          times.push(performance.now() - start); }}
        return times.sort((a, b) => a - b)[15]; }})()"""
    for prepare in ("fit()", "state.view.k = 0.05", "state.view.k = 0.8"):
        assert chromium.run(frame.format(prepare=prepare)) < 66, prepare
    assert chromium.complaints == []


def test_it_prints(desk, tmp_path: Path):
    told = desk.call("Page.printToPDF", printBackground=True)
    assert len(told["data"]) > 20_000
