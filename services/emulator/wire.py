"""One answer written straight to its connection, so that it can be cut, delayed, torn or never end.

aiohttp parses the request and keeps the connection; the bytes of the answer are ours. A watcher looks at
all waiting connections every 20 ms, so a client that leaves is seen while nothing is being written.
"""

import asyncio
import socket
import struct
import time
import zlib
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import brotli  # type: ignore[import-untyped]
from aiohttp import web

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    from backports import zstd  # type: ignore[no-redef,unused-ignore]

from services.emulator.log import Row

WATCH_SECONDS: Final = 0.02
# A fault that hangs ends by itself: nothing here waits for ever.
HANG_SECONDS_MAX: Final = 900.0
FLUSH_SECONDS_MAX: Final = 2.0
_RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class ClientGone(Exception):
    """The client closed its connection before the answer was complete."""


class ConnectionCut(Exception):
    """The emulator has closed the connection itself, as its script told it to."""


class Watcher:
    """Notices closed connections of waiting answers."""

    def __init__(self) -> None:
        self.wires: set[Wire] = set()
        self._task: asyncio.Task[None] | None = None

    def add(self, wire: "Wire") -> None:
        self.wires.add(wire)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while self.wires:
            await asyncio.sleep(WATCH_SECONDS)
            for wire in [wire for wire in self.wires if wire.transport.is_closing()]:
                self.wires.discard(wire)
                wire.lost()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


class Written(web.StreamResponse):
    """Tells aiohttp that the answer is already on the connection, and whether that can be used again."""

    def __init__(self, *, status: int, reuse: bool) -> None:
        super().__init__(status=status)
        self._reuse = reuse

    @property
    def keep_alive(self) -> bool | None:
        return self._reuse

    async def prepare(self, request: web.BaseRequest) -> None:  # noqa: ARG002
        return None

    async def write_eof(self, data: Any = b"") -> None:  # noqa: ARG002
        return None


def _compressor(encoding: str) -> tuple[Callable[[bytes], bytes], Callable[[], bytes]] | None:
    """(compress and flush one write, end) for a content encoding."""
    if encoding in ("gzip", "deflate"):
        deflate = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
        return lambda data: deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH), deflate.flush
    if encoding == "br":
        brotlied = brotli.Compressor(quality=3)
        return lambda data: brotlied.process(data) + brotlied.flush(), brotlied.finish
    if encoding == "zstd":
        zstded = zstd.ZstdCompressor()
        return lambda data: zstded.compress(data, zstded.FLUSH_BLOCK), zstded.flush
    return None


def _status_line(status: int) -> bytes:
    try:
        return b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode())
    except ValueError:
        return b"HTTP/1.1 %d Unknown\r\n" % status


class Wire:
    """The connection of one request while it is answered. All methods raise ClientGone when it is lost."""

    def __init__(self, request: web.Request, row: Row, watcher: Watcher) -> None:
        transport = request.transport
        if transport is None:
            raise ClientGone
        self.transport = transport
        self._drain = request.writer.drain
        self._loop = asyncio.get_running_loop()
        self._row = row
        self._watcher = watcher
        self._waker: asyncio.Future[None] | None = None
        self._http_1_1 = request.version >= (1, 1)
        self._reuse = request.keep_alive and self._http_1_1
        self._chunked = False
        self._compress: tuple[Callable[[bytes], bytes], Callable[[], bytes]] | None = None
        self.write_bytes = 0
        self.write_gap_ms = 0.0
        self.head_gap_ms = 0.0

    def lost(self) -> None:
        """Called by the watcher: note when, and wake whoever waits."""
        if self._row.disconnected_at_ms is None:
            self._row.disconnected_at_ms = time.time_ns() // 1_000_000
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    async def wait(self, milliseconds: float) -> None:
        """Wait, or raise ClientGone at once when the client leaves in the meantime."""
        self._watcher.add(self)
        self._waker = waker = self._loop.create_future()
        handle = self._loop.call_later(milliseconds / 1000, _wake, waker)
        try:
            await waker
        finally:
            handle.cancel()
            self._waker = None
        if self.transport.is_closing():
            self.lost()
            raise ClientGone

    async def hang(self) -> None:
        """Say nothing until the client leaves; after 15 minutes cut the connection."""
        await self.wait(HANG_SECONDS_MAX * 1000)
        await self.cut(reset=True)

    def _put(self, data: bytes) -> None:
        if self.transport.is_closing():
            self.lost()
            raise ClientGone
        self.transport.write(data)
        row = self._row
        row.last_write_at_ms = now_ms = time.time_ns() // 1_000_000
        if row.first_write_at_ms is None:
            row.first_write_at_ms = now_ms

    async def _put_parts(self, data: bytes, size: int, gap_ms: float, frame: bool) -> None:
        for place in range(0, len(data), size):
            part = data[place : place + size]
            if place:
                await self.wait(gap_ms)
            self._put(b"%x\r\n%b\r\n" % (len(part), part) if frame else part)

    async def _head(self, status: int, headers: list[tuple[str, str]], more: bytes) -> None:
        self._row.status = status
        lines = [_status_line(status)]
        lines += [f"{name}: {value}\r\n".encode("latin-1") for name, value in headers]
        if not self._reuse:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines) + b"\r\n"
        if self.head_gap_ms:
            await self._put_parts(head, 1, self.head_gap_ms, frame=False)
            head = b""
        if head or more:
            self._put(head + more)

    async def start_stream(self, headers: list[tuple[str, str]], *, encoding: str) -> None:
        """Send a 200 and its headers for a body whose end is not known yet."""
        self._compress = _compressor(encoding)
        self._chunked = self._http_1_1
        if encoding != "identity":
            headers = [*headers, ("content-encoding", encoding)]
        if self._chunked:
            headers = [*headers, ("transfer-encoding", "chunked")]
        self._watcher.add(self)
        await self._head(200, headers, b"")

    async def send(self, data: bytes) -> None:
        """Write one part of a stream; waits when the client reads slowly."""
        if self._compress is not None:
            data = self._compress[0](data)
        if self.write_bytes:
            await self._put_parts(data, self.write_bytes, self.write_gap_ms, self._chunked)
        else:
            self._put(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        try:
            await self._drain()
        except ConnectionError:
            self.lost()
            raise ClientGone from None

    def finish_stream(self) -> None:
        """End the body properly."""
        rest = self._compress[1]() if self._compress is not None else b""
        if self._chunked:
            self._put((b"%x\r\n%b\r\n" % (len(rest), rest) if rest else b"") + b"0\r\n\r\n")
        elif rest:
            self._put(rest)
        self._row.finished = True

    async def answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        body: bytes,
        *,
        encoding: str = "identity",
        cut_after_bytes: int | None = None,
    ) -> None:
        """Send a whole answer of known length, or the first `cut_after_bytes` of its body."""
        compressor = _compressor(encoding)
        if compressor is not None:
            body = compressor[0](body) + compressor[1]()
            headers = [*headers, ("content-encoding", encoding)]
        headers = [*headers, ("content-length", str(len(body)))]
        sent = body if cut_after_bytes is None else body[:cut_after_bytes]
        await self._head(status, headers, b"" if self.write_bytes else sent)
        if self.write_bytes:
            await self._put_parts(sent, self.write_bytes, self.write_gap_ms, frame=False)
        self._row.finished = cut_after_bytes is None

    async def cut(self, *, reset: bool) -> None:
        """Close the connection here, by TCP reset or by a plain close, once what was written has left."""
        for _ in range(int(FLUSH_SECONDS_MAX / 0.005)):
            await asyncio.sleep(0.005)
            if self.transport.is_closing() or self.transport.get_write_buffer_size() == 0:
                break
        self._watcher.wires.discard(self)
        if reset:
            connection = self.transport.get_extra_info("socket")
            if connection is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
            self.transport.abort()
        else:
            self.transport.close()
        self._reuse = False
        raise ConnectionCut

    def written(self) -> Written:
        """What the handler returns to aiohttp."""
        self._watcher.wires.discard(self)
        return Written(status=self._row.status or 200, reuse=self._reuse)


def _wake(waker: asyncio.Future[None]) -> None:
    if not waker.done():
        waker.set_result(None)
