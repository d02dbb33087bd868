"""The textual grammar: what is written is what is read, and a mistake is shown with its place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import UsageError
from graphopt.pipeline.spec import Item, format_list, parse_item, parse_list

names = st.from_regex(r"[a-z][a-z0-9]{0,6}(-[a-z0-9]{1,4}){0,2}", fullmatch=True)
keys = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)
values = st.recursive(st.text(max_size=12), lambda inner: st.lists(inner, max_size=3), max_leaves=4)
items = st.builds(Item, names, st.dictionaries(keys, values, max_size=3))


@given(st.lists(items, min_size=1, max_size=4))
def test_any_pipeline_survives_printing_and_parsing(pipeline: list[Item]):
    assert parse_list(format_list(pipeline)) == pipeline


def test_white_space_and_lists():
    assert parse_list(" a , b-c{ k = 1.5, ops=[Conv, Gemm] }") == [
        Item("a"),
        Item("b-c", {"k": "1.5", "ops": ["Conv", "Gemm"]}),
    ]


def test_empty_text_is_an_empty_pipeline():
    assert parse_list("  ") == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a,", "expected a name"),
        (",a", "expected a name"),
        ("a b", "expected ','"),
        ("a{k}", "expected '='"),
        ("a{k=1", "expected ','"),
        ("a{k=1,k=2}", "given twice"),
        ("a{k=[1,2}", "expected ','"),
        ('a{k="x}', "quotation mark"),
        ("Fold_BN", "not a kebab-case name"),
        ("a{k=1}}", "expected ','"),
    ],
)
def test_a_mistake_is_named_with_its_column(text: str, complaint: str):
    with pytest.raises(UsageError, match=complaint) as caught:
        parse_list(text)
    assert "column" in str(caught.value)


def test_one_item_only_where_one_is_asked_for():
    assert parse_item("llvm{mcpu=native}").options == {"mcpu": "native"}
    with pytest.raises(UsageError, match="expected one name"):
        parse_item("llvm,cuda")
