"""The HTTP client towards upstreams, by aiohttp."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import aiohttp
from yarl import URL

from services.common.contracts.catalogue import Channel, ChannelCredential
from services.edge.upstreams.decoding import BadEncoding, BodyDecoder, decoder_for
from services.edge.upstreams.headers import upstream_headers
from services.edge.upstreams.transport import TransportError

_INLINE_BODY_BYTES_MAX: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportLimits:
    connections_max: int = 20_000
    connections_per_host_max: int = 10_000
    keep_alive_seconds: float = 15.0
    dns_cache_seconds: int = 30
    read_buffer_bytes: int = 64 * 1024
    """Reading pauses when twice this much waits to be read."""


class AiohttpTransport:
    """Made inside a running event loop; `close` at the end."""

    def __init__(self, limits: TransportLimits | None = None) -> None:
        limits = limits or TransportLimits()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=limits.connections_max,
                limit_per_host=limits.connections_per_host_max,
                keepalive_timeout=limits.keep_alive_seconds,
                ttl_dns_cache=limits.dns_cache_seconds,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=limits.read_buffer_bytes,
            trust_env=False,
        )

    async def send(
        self,
        channel: Channel,
        credential: ChannelCredential,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
    ) -> AiohttpReply:
        try:
            response = await self._session.post(
                _url(channel.base_url, path),
                # aiohttp writes a BytesIO in portions and warns of larger bytes.
                data=body if len(body) <= _INLINE_BODY_BYTES_MAX else io.BytesIO(body),
                headers=upstream_headers(headers, channel, credential),
                allow_redirects=False,
                timeout=_timeout(channel.connect_timeout_ms, channel.first_byte_timeout_ms),
            )
        except Exception as error:
            raise _translated(error) from error
        try:
            decoder = decoder_for(response.headers.get("Content-Encoding"))
        except BadEncoding as error:
            response.close()
            raise TransportError("bad_encoding", str(error)) from error
        return AiohttpReply(response, decoder, channel.idle_timeout_ms / 1000)

    async def close(self) -> None:
        await self._session.close()


class AiohttpReply:
    """Implements `UpstreamReply`."""

    __slots__ = ("_decoded", "_decoder", "_idle_seconds", "_put_back", "_response", "headers", "status")

    def __init__(
        self, response: aiohttp.ClientResponse, decoder: BodyDecoder | None, idle_seconds: float
    ) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        self._decoder = decoder
        self._decoded: Iterator[bytes] | None = None
        self._idle_seconds: float | None = idle_seconds
        self._put_back: bytes | None = None

    async def read_some(self) -> bytes:
        if self._put_back is not None:
            data, self._put_back = self._put_back, None
            return data
        try:
            if self._decoder is None:
                return await self._read_raw()
            return await self._read_decoded(self._decoder)
        except BadEncoding as error:
            self.close()
            raise TransportError("bad_encoding", str(error)) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.close()
            translated = _translated(error)
            # Bytes of this reply were read: the connection was not merely an old one.
            raise TransportError(
                "broken" if translated.kind == "stale" else translated.kind, str(error)
            ) from error

    async def chunks(self) -> AsyncIterator[bytes]:
        while data := await self.read_some():
            yield data

    async def read_bounded(self, bytes_max: int) -> bytes:
        first = await self.read_some()
        pieces: list[bytes] = []
        size_bytes = 0
        while first:
            pieces.append(first)
            size_bytes += len(first)
            if size_bytes > bytes_max:
                self.close()
                raise TransportError("too_large", f"the reply exceeds {bytes_max} bytes")
            first = await self.read_some()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def put_back(self, data: bytes) -> None:
        self._put_back = data + (self._put_back or b"")

    def close(self) -> None:
        connection = self._response.connection
        if connection is not None and connection.transport is not None:
            # close() would first flush a request body that the upstream may never read.
            connection.transport.abort()
        self._response.close()

    async def _read_raw(self) -> bytes:
        data = await self._response.content.readany()
        if self._idle_seconds is not None:
            self._limit_idle_time(self._idle_seconds)
            self._idle_seconds = None
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

    def _limit_idle_time(self, seconds: float) -> None:
        """The first byte is there: from now on the shorter patience between two reads applies."""
        connection = self._response.connection
        protocol = connection.protocol if connection is not None else None
        if protocol is not None:
            protocol.read_timeout = seconds
            protocol.start_timeout()


@lru_cache(maxsize=1_024)
def _url(base_url: str, path: str) -> URL:
    return URL(base_url.rstrip("/") + path)


@lru_cache(maxsize=256)
def _timeout(connect_ms: int, first_byte_ms: int) -> aiohttp.ClientTimeout:
    connect_seconds = connect_ms / 1000
    return aiohttp.ClientTimeout(
        total=None,
        connect=connect_seconds,
        sock_connect=connect_seconds,
        sock_read=first_byte_ms / 1000,
    )


def _translated(error: Exception) -> TransportError:
    """Driver errors become ours here, and only here. The text has no header of the request in it."""
    if isinstance(error, TimeoutError):
        return TransportError("timed_out", "the upstream did not answer in time")
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.InvalidURL)):
        return TransportError("refused", f"no connection to the upstream ({type(error).__name__})")
    if isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        return TransportError("stale", "the upstream closed the connection before it answered")
    if isinstance(error, (aiohttp.ClientError, OSError)):
        return TransportError("broken", f"the upstream's reply broke off ({type(error).__name__})")
    if isinstance(error, ValueError):
        return TransportError("refused", "the channel's address or headers are not valid")
    raise error
