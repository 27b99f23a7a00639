"""Every stream of the corpus, read by the splitter and the chunk reader together."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.edge.dialects.openai_chunks import OpenAIChunkReader
from services.edge.streams.sse import Event, EventSplitter
from tests.unit.edge_streams.corpus import CASES, LONG_LINE, Case

pytestmark = pytest.mark.slow


def split(stream: bytes, places: Iterable[int]) -> tuple[list[Event], bytes]:
    splitter = EventSplitter()
    found: list[Event] = []
    start = 0
    for place in [*sorted(places), len(stream)]:
        found += splitter.feed(stream[start:place])
        start = place
    return found, splitter.finish()


def names(case: Case) -> str:
    return case.name


def check_reading(case: Case, events: list[Event]) -> None:
    reader = OpenAIChunkReader()
    done = False
    error = ""
    stripped = garbage = text_bytes = 0
    for event in events:
        if event.data is None:
            continue
        facts = reader.accept(event.data, event.name)
        done = done or facts.is_done
        error = facts.error.message if facts.error else error
        stripped += facts.is_usage_only
        garbage += facts.is_garbage
        text_bytes += facts.text_bytes
    assert dict(reader.texts.texts()) == case.texts
    assert text_bytes == reader.texts.uncounted_bytes
    assert text_bytes == sum(len(text.encode("utf-8", "surrogatepass")) for text in case.texts.values())
    usage = reader.usage
    assert (usage and (usage.tokens.input_total, usage.tokens.output_total)) == case.usage
    assert (done, error, reader.is_finished) == (case.done, case.error, case.finished)
    assert (stripped, garbage) == (case.stripped, case.garbage)


@pytest.mark.parametrize("case", [*CASES, LONG_LINE], ids=names)
def test_the_stream_is_read_whole(case: Case) -> None:
    events, _tail = split(case.stream, [])
    check_reading(case, events)


@pytest.mark.parametrize("case", CASES, ids=names)
def test_the_stream_is_read_byte_by_byte(case: Case) -> None:
    whole = split(case.stream, [])
    bytewise = split(case.stream, range(len(case.stream)))
    assert bytewise == whole
    check_reading(case, bytewise[0])


@pytest.mark.parametrize("case", CASES, ids=names)
def test_every_single_split_gives_the_same_events(case: Case) -> None:
    whole = split(case.stream, [])
    for place in range(len(case.stream)):
        assert split(case.stream, [place]) == whole


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_split_gives_the_same_events(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from([*CASES, LONG_LINE]))
    places = data.draw(st.lists(st.integers(0, len(case.stream)), max_size=40))
    assert split(case.stream, places) == split(case.stream, [])


@pytest.mark.parametrize("case", CASES, ids=names)
def test_nothing_is_lost_but_ids_marks_and_carriage_returns(case: Case) -> None:
    events, tail = split(case.stream, [])
    expected = case.stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").removeprefix(b"\xef\xbb\xbf")
    forwarded = b"".join(event.raw for event in events) + tail
    kept_lines = [line for line in expected.split(b"\n") if line != b"id" and not line.startswith(b"id:")]
    assert [line for line in forwarded.split(b"\n") if line] == [line for line in kept_lines if line]
    if b"id" not in {line.partition(b":")[0] for line in expected.split(b"\n")}:
        assert forwarded == expected


STREAM_BYTES = st.lists(
    st.sampled_from(
        [b"\n", b"\r", b"\r\n", b"data", b":", b" ", b"id: 1", b"event: x", b"\xef\xbb\xbf", b"\xe4", b"x"]
    ),
    max_size=40,
).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(stream=STREAM_BYTES, places=st.lists(st.integers(0, 60), max_size=20))
def test_any_bytes_split_anywhere_give_the_same_events(stream: bytes, places: list[int]) -> None:
    assert split(stream, [min(place, len(stream)) for place in places]) == split(stream, [])


@settings(max_examples=120, deadline=None)
@given(data=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_no_data_makes_the_reader_raise(data: bytes) -> None:
    OpenAIChunkReader().accept(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "delta",
                    "content",
                    "usage",
                    "error",
                    "index",
                    "tool_calls",
                    "function",
                    "x_groq",
                    "audio",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(value=JSON)
def test_no_shape_makes_the_reader_raise(value: object) -> None:
    reader = OpenAIChunkReader()
    facts = reader.accept(json.dumps(value).encode())
    assert facts.text_bytes == reader.texts.uncounted_bytes
    assert reader.usage is None or reader.usage.tokens.input_total >= 0


def test_brackets_nested_without_end_are_garbage() -> None:
    assert OpenAIChunkReader().accept(b'{"choices":' + b"[" * 100_000).is_garbage
    deep = b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert OpenAIChunkReader().accept(deep).is_garbage
