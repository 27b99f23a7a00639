"""The event splitter's own promises."""

from __future__ import annotations

import pytest

from services.edge.streams.sse import (
    Event,
    EventSplitter,
    EventTooLarge,
    looks_like_event_stream,
    read_event,
)


def test_an_event_leaves_with_its_last_carriage_return() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: a\r\n\r") == [Event(b"data: a\n\n", b"a")]
    assert splitter.feed(b"\ndata: b\r\n\r\n") == [Event(b"data: b\n\n", b"b")]
    assert splitter.finish() == b""


def test_event_ids_are_never_forwarded() -> None:
    splitter = EventSplitter()
    events = splitter.feed(b"id: 1\ndata: a\nid:2\n\nid\n\n")
    assert [event.raw for event in events] == [b"data: a\n\n", b""]


def test_a_field_that_only_begins_like_data_is_no_data() -> None:
    assert read_event(b"database: x").data is None
    assert read_event(b"data").data == b""
    assert read_event(b" data: x").data is None


def test_only_one_space_after_the_colon_is_dropped() -> None:
    assert read_event(b"data:  x").data == b" x"


def test_the_event_name_comes_along() -> None:
    assert read_event(b"event: message_start\ndata: {}") == Event(
        b"event: message_start\ndata: {}\n\n", b"{}", b"message_start"
    )


def test_an_endless_event_is_refused_in_bounded_memory() -> None:
    splitter = EventSplitter(event_bytes_max=1_000)
    for _ in range(50):
        splitter.feed(b"data: xxxxxxxxxxxxxx")
    with pytest.raises(EventTooLarge):
        splitter.feed(b"x")
    assert splitter.pending_bytes == 0


def test_one_read_that_begins_too_large_an_event_is_refused() -> None:
    splitter = EventSplitter(event_bytes_max=1_000)
    with pytest.raises(EventTooLarge):
        splitter.feed(b"data: " + b"x" * 1_001)


def test_a_large_event_in_small_reads_takes_linear_time() -> None:
    splitter = EventSplitter()
    piece = b"x" * 1_024
    splitter.feed(b"data: ")
    for _ in range(8 * 1_024):
        assert splitter.feed(piece) == []
    [event] = splitter.feed(b"\n\n")
    assert event.data is not None
    assert len(event.data) == 8 * 1_024 * 1_024


@pytest.mark.parametrize(
    "start",
    [b"data: {}", b"data:{}", b": hi", b"event: x\n", b"\n\ndata: x", b"\xef\xbb\xbfdata: x", b"id: 3"],
)
def test_event_streams_are_recognised(start: bytes) -> None:
    assert looks_like_event_stream(start)


@pytest.mark.parametrize("start", [b"", b"{", b'{"error":{}}', b"<!doctype html>", b"[", b"upstream error"])
def test_other_bodies_are_not_taken_for_event_streams(start: bytes) -> None:
    assert not looks_like_event_stream(start)
