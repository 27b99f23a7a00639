"""Whether a reply with status 200 is an answer at all, seen before the client sees any of it.

A stream must be an event stream whose first event is no error; a plain reply must be a JSON object that
says no error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from services.edge.dialects.endpoint import Endpoint, PlainFacts, UpstreamError
from services.edge.streams.sse import EventSplitter, EventTooLarge, looks_like_event_stream
from services.edge.upstreams.transport import UpstreamReply
from services.edge.upstreams.verdicts import Verdict, judge_error

_GARBAGE: Final = Verdict("garbage", 200)
_FIELD_NAME_BYTES: Final = 7
_NO_STREAM_STARTS: Final = (b"{", b"[", b"<")
_BLANK_LINE: Final = re.compile(rb"\n\n|\r\n\r\n|\r\r")


async def fault_of_stream(reply: UpstreamReply, endpoint: Endpoint) -> Verdict | None:
    """Look at the first bytes and put them back; None: an event stream begins. Raises TransportError."""
    start = await reply.read_some()
    while 0 < len(start) < _FIELD_NAME_BYTES:
        more = await reply.read_some()
        if not more:
            break
        start += more
    if not _begins_stream(start, reply.headers.get("content-type", "")):
        # A body that is no event stream may at least say what is wrong.
        error = endpoint.read_plain(start).error if start.lstrip()[:1] == b"{" else None
        return judge_error(error, reply.headers) if error is not None else _GARBAGE
    error = _error_in_first_event(start, endpoint)
    if error is not None:
        return judge_error(error, reply.headers)
    reply.put_back(start)
    return None


def fault_of_plain(facts: PlainFacts, headers: Mapping[str, str]) -> Verdict | None:
    """None: a JSON object that says no error."""
    if facts.error is not None:
        return judge_error(facts.error, headers)
    return _GARBAGE if facts.is_garbage else None


def _begins_stream(start: bytes, content_type: str) -> bool:
    if not start:
        return False
    if content_type.lower().startswith("text/event-stream"):
        return not start.lstrip().startswith(_NO_STREAM_STARTS)
    # Some send an event stream as text/plain, or without a type.
    return looks_like_event_stream(start)


def _error_in_first_event(start: bytes, endpoint: Endpoint) -> UpstreamError | None:
    # A first read may hold hundreds of events: no more of them are split than it takes to see one.
    splitter, begin = EventSplitter(), 0
    while begin < len(start):
        blank_line = _BLANK_LINE.search(start, begin)
        end = blank_line.end() if blank_line is not None else len(start)
        try:
            events = splitter.feed(start[begin:end])
        except EventTooLarge:
            return None
        for event in events:
            if event.data is not None:
                return endpoint.chunk_reader().accept(event.data, event.name).error
        begin = end
    return None
