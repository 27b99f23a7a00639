"""One connection to an upstream, and one exchange (request and reply) on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from services.edge.deadlines import Deadlines
from services.edge.upstreams.http_body import BodyReader, body_reader
from services.edge.upstreams.http_head import HEAD_BYTES_MAX, HEAD_END, BadReply, ReplyHead, read_head
from services.edge.upstreams.transport import TransportError

_CLOSED_EARLY: Final = "the upstream closed the connection before it answered"
_BROKE_OFF: Final = "the upstream's reply broke off"


class Exchange:
    """What has arrived of one reply and was not read yet."""

    __slots__ = (
        "_connection",
        "_deadlines",
        "_fault",
        "_is_over",
        "_loop",
        "_pieces",
        "_size_bytes",
        "_waiter",
        "head",
    )

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop, deadlines: Deadlines) -> None:
        self.head: ReplyHead | None = None
        self._connection: Connection | None = connection
        self._loop = loop
        self._deadlines = deadlines
        self._pieces: list[bytes] = []
        self._size_bytes = 0
        self._is_over = False
        self._fault: TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def wait_for_head(self, seconds: float) -> ReplyHead:
        while self.head is None:
            if self._fault is not None:
                raise self._fault
            await self._wait(seconds)
        return self.head

    async def read_some(self, seconds: float) -> bytes:
        """All that is there, else the next that comes within `seconds`; empty at the end."""
        while not self._pieces:
            if self._fault is not None:
                raise self._fault
            if self._is_over:
                return b""
            await self._wait(seconds)
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._size_bytes = 0
        if self._connection is not None:
            self._connection.resume()
        return data

    def close(self) -> None:
        connection, self._connection = self._connection, None
        self._is_over = True
        if connection is not None:
            connection.abort()

    # --- called by the connection ---

    def receive(self, data: bytes, bytes_max: int) -> bool:
        """Keep `data`; True: enough for now, stop reading."""
        self._pieces.append(data)
        self._size_bytes += len(data)
        self.wake()
        return self._size_bytes > bytes_max

    def end(self, fault: TransportError | None = None) -> None:
        self._connection = None
        self._is_over = True
        self._fault = fault
        self.wake()

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait(self, seconds: float) -> None:
        # The clock runs only while somebody waits: a slow client is not the upstream's fault.
        waiter = self._waiter = self._loop.create_future()
        self._deadlines.put(self, seconds)
        try:
            await waiter
        finally:
            self._deadlines.drop(self)
            self._waiter = None

    def expire(self) -> None:
        self.close()
        self._fault = TransportError("timed_out", "the upstream did not answer in time")
        self.wake()


class Connection(asyncio.Protocol):
    """`on_idle`: called when a reply is complete and the connection may be used again."""

    def __init__(
        self,
        *,
        buffer_bytes_max: int,
        deadlines: Deadlines,
        on_idle: Callable[[Connection], None],
        on_lost: Callable[[Connection], None],
    ) -> None:
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._buffer_bytes_max = buffer_bytes_max
        self._deadlines = deadlines
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._body: BodyReader | None = None
        self._head_bytes = b""
        self._is_paused = False
        self._received_any = False

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def request(self, head: bytes, body: bytes) -> Exchange:
        assert self._transport is not None
        assert self._exchange is None
        self._exchange = Exchange(self, self._loop, self._deadlines)
        self._received_any = False
        if len(body) <= 64 * 1024:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        return self._exchange

    def resume(self) -> None:
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close without flushing: the upstream may never read what is still to be sent."""
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._exchange is None:
            self.abort()  # nobody asked
            return
        self._received_any = True
        try:
            if self._body is None:
                self._receive_head(data)
            else:
                self._receive_body(self._exchange, self._body, data)
        except BadReply as error:
            self._end(TransportError("broken", str(error)))
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._exchange is not None:
            head = self._exchange.head
            if not self._received_any:
                self._end(TransportError("stale", _CLOSED_EARLY))
            elif head is not None and head.framing.value == "until_close" and exc is None:
                self._end(None)
            else:
                self._end(TransportError("broken", _BROKE_OFF))
        self._on_lost(self)

    # --- the reply ---

    def _receive_head(self, data: bytes) -> None:
        self._head_bytes += data
        while self._exchange is not None:
            end = self._head_bytes.find(HEAD_END)
            if end < 0:
                if len(self._head_bytes) > HEAD_BYTES_MAX or not b"HTTP/1.".startswith(self._head_bytes[:7]):
                    raise BadReply("the reply is not HTTP/1.1")
                return
            head = read_head(self._head_bytes[:end])
            rest, self._head_bytes = self._head_bytes[end + len(HEAD_END) :], b""
            if head.status == 101:
                raise BadReply("the upstream wants another protocol")
            if head.status >= 200:
                self._exchange.head = head
                self._exchange.wake()
                self._body = body_reader(head)
                self._receive_body(self._exchange, self._body, rest)
                return
            self._head_bytes = rest  # 100 and 103 precede the reply

    def _receive_body(self, exchange: Exchange, reader: BodyReader, data: bytes) -> None:
        body, rest = reader.feed(data) if data else (b"", b"")
        if body and exchange.receive(body, self._buffer_bytes_max) and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        if not reader.is_complete:
            return
        head = exchange.head
        is_sent = self._transport is not None and self._transport.get_write_buffer_size() == 0
        self._end(None)
        if head is not None and head.keeps_alive and not rest and is_sent and self.is_open:
            self.resume()
            self._on_idle(self)
        else:
            self.abort()

    def _end(self, fault: TransportError | None) -> None:
        exchange, self._exchange = self._exchange, None
        self._body = None
        self._head_bytes = b""
        if exchange is not None:
            exchange.end(fault)
