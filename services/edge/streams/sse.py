"""Splits a server-sent event stream into events, whatever the reads split.

Line ends come out as LF: a stream that uses CR or CRLF is normalised on the way in, so that an event
can leave the moment it is complete, even when its last LF is in the next read. `id:` lines are
dropped: a client must not try to resume.
"""

from __future__ import annotations

from typing import Final

import msgspec

EVENT_BYTES_MAX: Final = 16 * 1024 * 1024
_CR: Final = 0x0D
_BOM: Final = b"\xef\xbb\xbf"
_FIELD_STARTS: Final = (b":", b"data:", b"event:", b"id:", b"retry:", b"data\n", b"event\n", b"id\n")


class EventTooLarge(Exception):
    """An event of the upstream's stream exceeds 16 MiB."""


class Event(msgspec.Struct, gc=False):
    """`raw`: to be forwarded, blank line included (empty when only `id:` lines were in it).
    `data`: the data lines joined by LF, None when there were none (a comment). `name`: of `event:`."""

    raw: bytes
    data: bytes | None = None
    name: bytes | None = None


class EventSplitter:
    """`feed` every read, in order; `finish` at the end."""

    __slots__ = ("_after_cr", "_at_start", "_event_bytes_max", "_tail")

    def __init__(self, *, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._tail: bytearray | None = None
        self._after_cr = False
        self._at_start = True
        self._event_bytes_max = event_bytes_max

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes. Raises EventTooLarge."""
        if _CR in chunk or self._after_cr:
            chunk = self._with_lf_only(chunk)
        tail = self._tail
        if tail is None:
            # The usual read is one event of one line: no copy of it is made.
            is_one_event = chunk.find(b"\n") == len(chunk) - 2 and chunk[-1:] == b"\n"
            if is_one_event and chunk[:6] == b"data: ":
                self._at_start = False
                return [Event(chunk, chunk[6:-2])]
        else:
            # Looking for the blank line in the new bytes only keeps a huge event linear.
            if b"\n\n" not in chunk and not (tail[-1:] == b"\n" and chunk[:1] == b"\n"):
                tail += chunk
                self._check_size(len(tail))
                return []
            tail += chunk
            chunk = bytes(tail)
            self._tail = None
        if self._at_start:
            chunk = self._without_bom(chunk)
        blocks = chunk.split(b"\n\n")
        rest = blocks.pop()
        if rest:
            self._check_size(len(rest))
            self._tail = bytearray(rest)
        events = []
        for block in blocks:
            if block[:6] == b"data: " and b"\n" not in block:
                events.append(Event(block + b"\n\n", block[6:]))
            else:
                events.append(read_event(block))
        return events

    def finish(self) -> bytes:
        """What came after the last blank line: a torn event, or one whose blank line is missing."""
        tail, self._tail = self._tail, None
        if tail is None:
            return b""
        return bytes(tail).removeprefix(_BOM) if self._at_start else bytes(tail)

    @property
    def pending_bytes(self) -> int:
        return len(self._tail) if self._tail is not None else 0

    def _with_lf_only(self, chunk: bytes) -> bytes:
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
            self._after_cr = False
            if b"\r" not in chunk:
                return chunk
        if chunk:
            self._after_cr = chunk[-1:] == b"\r"
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _without_bom(self, chunk: bytes) -> bytes:
        if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
            return chunk
        self._at_start = False
        return chunk.removeprefix(_BOM)

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._event_bytes_max:
            self._tail = None
            raise EventTooLarge


def read_event(block: bytes) -> Event:
    """Read an event's lines; `block` has LF line ends and no closing blank line."""
    data: list[bytes] = []
    kept: list[bytes] = []
    name = None
    for line in block.split(b"\n"):
        field, colon, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if field == b"id":
            continue
        kept.append(line)
        if field == b"data":
            data.append(value)
        elif field == b"event" and colon:
            name = value
    raw = b"\n".join(kept) + b"\n\n" if kept else b""
    return Event(raw, b"\n".join(data) if data else None, name)


def looks_like_event_stream(start: bytes) -> bool:
    """Whether a body that starts so can be an event stream (and not JSON or HTML)."""
    return start.removeprefix(_BOM).lstrip(b"\r\n").startswith(_FIELD_STARTS)
