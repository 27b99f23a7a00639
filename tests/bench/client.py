"""One client connection of the load generator: HTTP/1.1 over a raw socket, nothing parsed that need not be.

It finds the end of each answer, counts the events of a stream, and notes the times. Everything else about the
answer is checked only as far as it costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, cast

_EVENT: Final = b"data: "


class ChunkedBody:
    """Counts the events of a body in chunked coding, wherever it is cut."""

    __slots__ = ("_carry", "_left", "_rest", "events", "is_complete")

    def __init__(self) -> None:
        self.events = 0
        self.is_complete = False
        # The end of the text before, too short for a whole mark, so that nothing is counted twice.
        self._carry = b""
        # Bytes that this chunk still has, its line end included; 0: a size comes next.
        self._left = 0
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Raises ValueError for anything but a chunk, and for bytes after the last."""
        data = self._rest + data
        place, parts = 0, [self._carry]
        while place < len(data):
            if self.is_complete:
                raise ValueError("bytes after the last chunk")
            if self._left == 0:
                end = data.find(b"\r\n", place)
                if end < 0:
                    break
                size = int(data[place:end], 16)
                if size == 0 and len(data) < end + 4:
                    break
                self.is_complete = size == 0
                self._left = 0 if size == 0 else size + 2
                place = end + (4 if size == 0 else 2)
            else:
                taken = min(self._left, len(data) - place)
                # Of the two bytes of the line end, what is here.
                line_end = max(0, 2 - (self._left - taken))
                parts.append(data[place : place + max(0, taken - line_end)])
                self._left -= taken
                place += taken
        self._rest = data[place:]
        text = b"".join(parts)
        self.events += text.count(_EVENT)
        self._carry = text[-(len(_EVENT) - 1) :]


@dataclass(slots=True)
class Seen:
    """What a run's connections saw. Times are seconds."""

    latencies: list[float] = field(default_factory=list)
    first_byte_times: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    events: int = 0
    body_bytes: int = 0
    failures: dict[str, int] = field(default_factory=dict)

    def fail(self, why: str) -> None:
        self.failures[why] = self.failures.get(why, 0) + 1

    def forget(self) -> None:
        """Start again, as after the warm-up; failures stay."""
        self.latencies, self.first_byte_times, self.gaps = [], [], []
        self.events = self.body_bytes = 0


class Connection(asyncio.Protocol):
    """Sends one request after the other; `on_done(connection)` when an answer is complete or has failed."""

    __slots__ = (
        "_body_left",
        "_chunked",
        "_expected_events",
        "_gap",
        "_head",
        "_last_at",
        "_on_done",
        "_seen",
        "_sent_at",
        "_transport",
        "busy",
        "is_open",
    )  # fmt: skip

    def __init__(self, seen: Seen, on_done: Callable[[Connection], None]) -> None:
        self._seen = seen
        self._on_done = on_done
        self._transport: asyncio.Transport | None = None
        self.busy = False
        self.is_open = False
        self._last_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self.busy:
            self._end("connection lost in an answer")

    @property
    def is_streaming(self) -> bool:
        """Whether an answer has begun and not ended."""
        return self.busy and self._last_at > 0.0

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def ask(self, request: bytes, expected_events: int | None) -> None:
        """Send `request`, head and body. `expected_events`: a stream of another length has failed."""
        assert self._transport is not None
        assert not self.busy
        self.busy = True
        self._expected_events = expected_events
        self._head = b""
        self._chunked: ChunkedBody | None = None
        self._body_left = -1
        self._gap = 0.0
        self._last_at = 0.0
        self._sent_at = perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        if not self.busy:
            self._seen.fail("bytes after the end of an answer")
            self.close()
            return
        if self._body_left < 0:
            data = self._take_head(data)
            if not data:
                return
        if self._last_at == 0.0:
            self._seen.first_byte_times.append(now - self._sent_at)
        elif now - self._last_at > self._gap:
            self._gap = now - self._last_at
        self._last_at = now
        self._seen.body_bytes += len(data)
        chunked = self._chunked
        if chunked is None:
            self._body_left -= len(data)
            if self._body_left <= 0:
                self._end("" if self._body_left == 0 else "more bytes than content-length")
            return
        chunked.feed(data)
        if chunked.is_complete:
            is_whole = self._expected_events in (None, chunked.events)
            self._end("" if is_whole else f"{chunked.events} events instead of {self._expected_events}")

    def _take_head(self, data: bytes) -> bytes:
        """The bytes after the head, once it is complete."""
        data = self._head + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._head = data
            return b""
        head = data[: end + 2].lower()
        if not head.startswith(b"http/1.1 200"):
            self._end(f"answered {data[9:12].decode(errors='replace')}")
            self.close()
            return b""
        if b"\r\ntransfer-encoding: chunked\r\n" in head:
            self._chunked, self._body_left = ChunkedBody(), 0
        else:
            _, _, length = head.partition(b"\r\ncontent-length: ")
            self._body_left = int(length.partition(b"\r\n")[0])
        return data[end + 4 :]

    def _end(self, failure: str) -> None:
        seen = self._seen
        self.busy = False
        if failure:
            seen.fail(failure)
        else:
            seen.latencies.append(perf_counter() - self._sent_at)
            if self._chunked is not None:
                seen.events += self._chunked.events
                seen.gaps.append(self._gap)
        self._on_done(self)
