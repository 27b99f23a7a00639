"""The HTTP client towards upstreams: HTTP/1.1 on our own connections.

Half of what an aiohttp proxy costs is aiohttp's client. This one does the little that is needed: POST, kept
connections, all three body framings, TLS, limits and timeouts. It speaks no HTTP/2 and uses no proxy.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass

from services.common.contracts.catalogue import Channel, ChannelCredential
from services.edge.deadlines import Deadlines
from services.edge.upstreams.decoding import BadEncoding, BodyDecoder, decoder_for
from services.edge.upstreams.headers import upstream_headers
from services.edge.upstreams.http_connection import Connection, Exchange
from services.edge.upstreams.http_head import Origin, request_head, target_of
from services.edge.upstreams.transport import TransportError


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportLimits:
    connections_max: int = 20_000
    idle_connections_per_origin_max: int = 512
    keep_alive_seconds: float = 15.0
    read_buffer_bytes: int = 128 * 1024
    """Reading pauses when more than this waits to be read."""


class DirectTransport:
    """Implements `Transport`. Made inside a running event loop; `close` at the end. `tls`: instead of the
    system's certificate authorities."""

    def __init__(self, limits: TransportLimits | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self._limits = limits or TransportLimits()
        self._loop = asyncio.get_running_loop()
        self._idle: dict[Origin, deque[Connection]] = {}
        self._origins: dict[Connection, Origin] = {}
        self._opening = 0
        self._deadlines = Deadlines()
        self._tls = tls
        self._sweep = self._loop.call_later(self._limits.keep_alive_seconds, self._close_old)

    async def send(
        self,
        channel: Channel,
        credential: ChannelCredential,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
    ) -> DirectReply:
        try:
            target = target_of(channel.base_url, path)
            head = request_head(target, upstream_headers(headers, channel, credential), len(body))
        except ValueError as error:
            raise TransportError("refused", "the channel's address or headers are not valid") from error
        connection = self._kept(target.origin)
        if connection is None:
            connection = await self._open(target.origin, channel.connect_timeout_ms / 1000)
        exchange = connection.request(head, body)
        try:
            reply = await exchange.wait_for_head(channel.first_byte_timeout_ms / 1000)
            decoder = decoder_for(reply.headers.get("content-encoding"))
        except BadEncoding as error:
            exchange.close()
            raise TransportError("bad_encoding", str(error)) from error
        except BaseException:
            exchange.close()
            raise
        return DirectReply(reply.status, reply.headers, exchange, decoder, channel)

    async def close(self) -> None:
        self._sweep.cancel()
        for connection in tuple(self._origins):
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)

    def _kept(self, origin: Origin) -> Connection | None:
        """The connection that was used last: the others may grow old and go."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            is_young = self._loop.time() - connection.idle_since < self._limits.keep_alive_seconds
            if connection.is_open and is_young:
                return connection
            connection.abort()
        return None

    async def _open(self, origin: Origin, seconds: float) -> Connection:
        if len(self._origins) + self._opening >= self._limits.connections_max:
            raise TransportError("refused", "too many connections to upstreams are open")
        self._opening += 1
        try:
            async with asyncio.timeout(seconds):
                _transport, connection = await self._loop.create_connection(
                    lambda: Connection(
                        buffer_bytes_max=self._limits.read_buffer_bytes,
                        deadlines=self._deadlines,
                        on_idle=self._keep,
                        on_lost=self._forget,
                    ),
                    origin.host,
                    origin.port,
                    ssl=self._tls_context() if origin.is_tls else None,
                    server_hostname=origin.host if origin.is_tls else None,
                )
        except TimeoutError as error:
            raise TransportError("timed_out", "the upstream could not be reached in time") from error
        except (OSError, ValueError) as error:
            message = f"no connection to the upstream ({type(error).__name__})"
            raise TransportError("refused", message) from error
        finally:
            self._opening -= 1
        self._origins[connection] = origin
        return connection

    def _keep(self, connection: Connection) -> None:
        origin = self._origins.get(connection)
        idle = self._idle.setdefault(origin, deque()) if origin is not None else None
        if idle is None or len(idle) >= self._limits.idle_connections_per_origin_max:
            connection.abort()
            return
        connection.idle_since = self._loop.time()
        idle.append(connection)

    def _forget(self, connection: Connection) -> None:
        origin = self._origins.pop(connection, None)
        idle = self._idle.get(origin) if origin is not None else None
        if idle is not None and connection in idle:
            idle.remove(connection)

    def _close_old(self) -> None:
        oldest = self._loop.time() - self._limits.keep_alive_seconds
        for origin, idle in tuple(self._idle.items()):
            while idle and idle[0].idle_since <= oldest:
                idle.popleft().abort()
            if not idle:
                del self._idle[origin]
        self._sweep = self._loop.call_later(self._limits.keep_alive_seconds, self._close_old)

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


class DirectReply:
    """Implements `UpstreamReply`."""

    __slots__ = (
        "_decoded",
        "_decoder",
        "_exchange",
        "_idle_seconds",
        "_patience_seconds",
        "_put_back",
        "headers",
        "status",
    )

    def __init__(
        self,
        status: int,
        headers: dict[str, str],
        exchange: Exchange,
        decoder: BodyDecoder | None,
        channel: Channel,
    ) -> None:
        self.status = status
        self.headers: Mapping[str, str] = headers
        self._exchange = exchange
        self._decoder = decoder
        self._decoded: Iterator[bytes] | None = None
        self._patience_seconds = channel.first_byte_timeout_ms / 1000
        self._idle_seconds = channel.idle_timeout_ms / 1000
        self._put_back = b""

    async def read_some(self) -> bytes:
        if self._put_back:
            data, self._put_back = self._put_back, b""
            return data
        if self._decoder is None:
            return await self._read_raw()
        try:
            return await self._read_decoded(self._decoder)
        except BadEncoding as error:
            self.close()
            raise TransportError("bad_encoding", str(error)) from error

    async def chunks(self) -> AsyncIterator[bytes]:
        while data := await self.read_some():
            yield data

    async def read_bounded(self, bytes_max: int) -> bytes:
        pieces: list[bytes] = []
        size_bytes = 0
        while data := await self.read_some():
            pieces.append(data)
            size_bytes += len(data)
            if size_bytes > bytes_max:
                self.close()
                raise TransportError("too_large", f"the reply exceeds {bytes_max} bytes")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def put_back(self, data: bytes) -> None:
        self._put_back = data + self._put_back

    def close(self) -> None:
        self._exchange.close()

    async def _read_raw(self) -> bytes:
        data = await self._exchange.read_some(self._patience_seconds)
        # The first byte is there: from now on the shorter patience between two reads applies.
        self._patience_seconds = self._idle_seconds
        return data

    async def _read_decoded(self, decoder: BodyDecoder) -> bytes:
        while True:
            if self._decoded is not None:
                piece = next(self._decoded, b"")
                if piece:
                    return piece
                self._decoded = None
            data = await self._read_raw()
            if not data:
                decoder.finish()
                return b""
            self._decoded = decoder.feed(data)
