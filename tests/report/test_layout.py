"""The layout: edges lead down, nothing overlaps, nothing is lost, and large graphs take no longer than they must."""

import random
import time
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.report.layout import NODE, place


@st.composite
def graphs(draw):
    count = draw(st.integers(0, 30))
    ends = st.integers(0, max(0, count - 1))
    edges = draw(st.lists(st.tuples(ends, ends), max_size=40)) if count else []
    return count, edges


def rows_of(layout, count):
    rows = {}
    for node in range(count):
        rows.setdefault(layout.row[node], []).append(layout.x[node])
    return rows


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_any_graph_is_laid_out_without_overlaps(graph):
    count, edges = graph
    layout = place(count, edges)
    assert len(layout.x) == len(layout.row) == count
    for row in rows_of(layout, count).values():
        assert all(b - a >= NODE - 1e-6 for a, b in pairwise(sorted(row)))
    for (a, b), route in zip(edges, layout.routes, strict=True):
        low, high = sorted((layout.row[a], layout.row[b]))
        assert [row for _, row in route] in ([], list(range(low + 1, high)))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_without_cycles_every_edge_leads_down(graph):
    count, edges = graph
    forward = [(min(e), max(e)) for e in edges if e[0] != e[1]]
    layout = place(count, forward)
    assert all(layout.row[a] < layout.row[b] for a, b in forward)


def test_cycles_and_edges_to_oneself_are_no_trouble():
    layout = place(4, [(0, 1), (1, 2), (2, 1), (2, 3), (3, 3)])
    assert layout.row == [0, 1, 2, 3]


def test_a_constant_stands_next_to_its_reader():
    layout = place(6, [(0, 1), (1, 2), (2, 3), (3, 4), (5, 4)])
    assert layout.row[5] == layout.row[4] - 1


def test_a_chain_is_a_straight_line():
    layout = place(10, [(n, n + 1) for n in range(9)])
    assert layout.x == [0.0] * 10


def test_a_tower_of_residual_blocks_stands_upright():
    edges = []
    for block in range(100):
        start = 5 * block
        edges += [(start + n, start + n + 1) for n in range(5)] + [(start, start + 5)]
    layout = place(501, edges)
    assert max(layout.x) - min(layout.x) < 2.5


def test_branches_that_need_not_cross_do_not():
    edges = [(0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7), (6, 7)]
    layout = place(8, edges)
    assert (layout.x[1] < layout.x[2]) == (layout.x[3] < layout.x[4]) == (layout.x[5] < layout.x[6])


def test_the_same_graph_gives_the_same_layout():
    edges = model_like(400)
    assert place(401, edges) == place(401, edges)


def model_like(count: int) -> list[tuple[int, int]]:
    """Blocks with branches and a residual, and a mask that every tenth node reads."""
    draw = random.Random(0)
    edges = [(n, n + 1) for n in range(1, count)]
    edges += [(n, min(count, n + draw.randint(2, 9))) for n in range(1, count, 3)]
    return edges + [(0, n) for n in range(1, count, 10)]


@pytest.mark.parametrize("count", [5000])
def test_five_thousand_nodes_take_seconds_not_minutes(count):
    start = time.process_time()
    layout = place(count + 1, model_like(count))
    assert time.process_time() - start < 6
    assert sum(map(len, layout.routes)) <= 4 * count + 300
