"""Takes a reply's body out of its framing, piece by piece. Pure."""

from __future__ import annotations

from typing import Final, Protocol

from services.edge.upstreams.http_head import BadReply, Framing, ReplyHead

_LINE_BYTES_MAX: Final = 4_096
_SIZE_DIGITS_MAX: Final = 15
_TRAILER_LINES_MAX: Final = 64
_USUAL_SIZES: Final = {b"%x" % size: size for size in range(1, 2_048)}
"""Sizes as most servers write them, so that a chunk of a stream is found by two look-ups."""


class BodyReader(Protocol):
    @property
    def is_complete(self) -> bool: ...

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """(body bytes, what is left after the body's end). Raises BadReply."""
        ...


def body_reader(head: ReplyHead) -> BodyReader:
    if head.framing is Framing.CHUNKED:
        return _Chunked()
    if head.framing is Framing.UNTIL_CLOSE:
        return _Counted(None)
    return _Counted(head.body_bytes)


class _Counted:
    """A body of known length, or (None) up to the connection's end."""

    __slots__ = ("_left_bytes",)

    def __init__(self, left_bytes: int | None) -> None:
        self._left_bytes = left_bytes

    @property
    def is_complete(self) -> bool:
        return self._left_bytes == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        if self._left_bytes is None:
            return data, b""
        if len(data) <= self._left_bytes:
            self._left_bytes -= len(data)
            return data, b""
        body, rest = data[: self._left_bytes], data[self._left_bytes :]
        self._left_bytes = 0
        return body, rest


class _Chunked:
    """`size CRLF data CRLF ... 0 CRLF trailers CRLF`."""

    __slots__ = ("_chunk_left_bytes", "_in_trailer", "_pending", "_trailer_lines", "is_complete")

    def __init__(self) -> None:
        self.is_complete = False
        self._pending = b""
        self._chunk_left_bytes = 0  # data and its CRLF
        self._in_trailer = False
        self._trailer_lines = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        if self._pending:
            data = self._pending + data
            self._pending = b""
        pieces: list[bytes] = []
        position = 0
        while not self.is_complete:
            if self._chunk_left_bytes:
                taken = self._take(data, position, pieces)
                if not taken:
                    self._pending = data[position:]
                    break
                position += taken
                continue
            end = data.find(b"\r\n", position)
            if end < 0:
                self._pending = data[position:]
                if len(self._pending) > _LINE_BYTES_MAX:
                    raise BadReply("a line between the reply's chunks is too long")
                break
            line = data[position:end]
            position = end + 2
            size = _USUAL_SIZES.get(line)
            if size is None or self._in_trailer:
                self._read_line(line)
                continue
            end = position + size
            if data[end : end + 2] == b"\r\n":
                pieces.append(data[position:end])
                position = end + 2
            else:
                self._chunk_left_bytes = size + 2
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return body, data[position:] if self.is_complete else b""

    def _take(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        """Take what there is of the chunk; how many bytes that were (0: more are needed)."""
        available = len(data) - position
        left = self._chunk_left_bytes
        if left > 2:
            size = min(available, left - 2)
            if size:
                pieces.append(data[position : position + size])
                self._chunk_left_bytes = left - size
            return size
        if available < 2:
            return 0
        if data[position : position + 2] != b"\r\n":
            raise BadReply("a chunk of the reply is longer than it says")
        self._chunk_left_bytes = 0
        return 2

    def _read_line(self, line: bytes) -> None:
        if self._in_trailer:
            self._trailer_lines += 1
            self.is_complete = not line
            if self._trailer_lines > _TRAILER_LINES_MAX:
                raise BadReply("the reply has too many trailers")
            return
        digits = line.partition(b";")[0].strip(b" \t")
        # int() would also take signs and underscores.
        if not digits or len(digits) > _SIZE_DIGITS_MAX or digits.strip(b"0123456789abcdefABCDEF"):
            raise BadReply("the size of a chunk of the reply is not valid")
        size = int(digits, 16)
        if size:
            self._chunk_left_bytes = size + 2
        else:
            self._in_trailer = True
