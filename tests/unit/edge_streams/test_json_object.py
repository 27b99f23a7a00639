"""Splicing into raw JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.edge.dialects.json_object import (
    DuplicateKey,
    NotAnObject,
    check_no_duplicates,
    read_object,
    value_spans,
    with_fields,
)

pytestmark = pytest.mark.slow

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["model", "n", 'quo"te', "back\\slash", "{", "]", "", "ключ", "a b", ",", ":"])
OBJECTS: st.SearchStrategy[dict[str, object]] = st.dictionaries(KEYS, VALUES, max_size=8)
SPACES = st.text(alphabet=" \t\r\n", max_size=3)


@st.composite
def written(draw: st.DrawFn) -> tuple[dict[str, object], bytes]:
    """An object and one of the many ways to write it down."""
    value = draw(OBJECTS)
    space = draw(SPACES)
    items = [
        json.dumps(key, ensure_ascii=draw(st.booleans()))
        + draw(SPACES)
        + ":"
        + draw(SPACES)
        + json.dumps(item, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
        for key, item in value.items()
    ]
    text = space + "{" + space + (space + "," + draw(SPACES)).join(items) + space + "}" + draw(SPACES)
    return value, text.encode("utf-8", "surrogatepass")


@settings(max_examples=120, deadline=None)
@given(pair=written())
def test_spans_are_where_the_values_are(pair: tuple[dict[str, object], bytes]) -> None:
    value, text = pair
    spans = value_spans(text, read_object(text))
    assert {key: json.loads(text[start:end]) for key, (start, end) in spans.items()} == value
    check_no_duplicates(text, read_object(text))


@settings(max_examples=120, deadline=None)
@given(pair=written(), changes=st.dictionaries(KEYS, VALUES, max_size=4))
def test_a_splice_changes_the_named_values_and_no_other_byte(
    pair: tuple[dict[str, object], bytes], changes: dict[str, object]
) -> None:
    value, text = pair
    raw_changes = {key: json.dumps(item).encode() for key, item in changes.items()}
    spliced = with_fields(text, raw_changes)
    assert json.loads(spliced) == {**value, **changes}
    # Put the old values back where the new ones are: the original text comes out again.
    fields = read_object(text)
    restored = with_fields(spliced, {key: bytes(fields[key]) for key in changes if key in value})
    added = b",".join(
        json.dumps(key, ensure_ascii=False).encode() + b":" + raw_changes[key]
        for key in changes
        if key not in value
    )
    if added:
        added = b"," + added if value else added
        before, _, after = restored.rpartition(added)
        restored = before + after
    assert restored == text


@settings(max_examples=200, deadline=None)
@given(pair=written())
def test_when_nothing_changes_the_same_object_comes_back(pair: tuple[dict[str, object], bytes]) -> None:
    _value, text = pair
    same = {key: bytes(raw) for key, raw in read_object(text).items()}
    assert with_fields(text, same) is text
    assert with_fields(text, {}) is text


@settings(max_examples=120, deadline=None)
@given(
    items=st.lists(st.tuples(KEYS, VALUES), min_size=2, max_size=6),
    compact=st.booleans(),
    again=st.data(),
)
def test_a_key_that_occurs_twice_is_found(
    items: list[tuple[str, object]], compact: bool, again: st.DataObject
) -> None:
    key, _ = again.draw(st.sampled_from(items))
    items.insert(again.draw(st.integers(0, len(items))), (key, again.draw(VALUES)))
    comma, colon = (",", ":") if compact else (", ", ": ")
    body = comma.join(json.dumps(name) + colon + json.dumps(item) for name, item in items)
    text = ("{" + body + "}").encode()
    with pytest.raises(DuplicateKey):
        check_no_duplicates(text, read_object(text))


def test_a_key_hidden_behind_an_escape_is_the_same_key() -> None:
    text = rb'{"max_tokens":1,"max\u005ftokens":100000}'
    with pytest.raises(DuplicateKey):
        check_no_duplicates(text, read_object(text))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b'"x"',
        b"{",
        b'{"a":NaN}',
        b'{"a":1,}',
        b'{"a":1}x',
        b"{'a':1}",
        b'{"a":' + b"[" * 100_000,
    ],
)
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(NotAnObject):
        read_object(text)
