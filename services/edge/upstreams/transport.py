"""What the edge asks of an HTTP client towards upstreams: streaming, bounded, closed at once when told.

TransportError(kind)
 +-- refused       no connection: name unknown, refused, TLS failed
 +-- timed_out     connecting, waiting for the first byte, or idle between two
 +-- broken        the connection ended inside the reply, or the reply is no HTTP
 +-- stale         a kept connection was closed before any byte of the reply: worth one more try
 +-- bad_encoding  the body is not what its content-encoding says
 +-- too_large     more than the caller wants to keep
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from services.common.contracts.catalogue import Channel, ChannelCredential


class TransportError(Exception):
    """An upstream could not be asked or did not answer in full. `kind`: see the module's head."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class UpstreamReply(Protocol):
    """A reply whose status and headers are there. Bodies come out decoded (gzip, deflate, br, zstd)."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """To be looked up in lower case."""
        ...

    async def read_some(self) -> bytes:
        """The next body bytes as soon as there are any; empty at the end. Not reading slows the upstream
        down (bounded buffers). Raises TransportError."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """`read_some` until the end."""
        ...

    async def read_bounded(self, bytes_max: int) -> bytes:
        """The whole body. Raises TransportError (`too_large` too)."""
        ...

    def put_back(self, data: bytes) -> None:
        """Make `data` the next bytes that are read."""
        ...

    def close(self) -> None:
        """Close the connection at once, without waiting. Harmless after the end and when repeated.
        A body read to its end gives its connection back to the pool by itself."""
        ...


class Transport(Protocol):
    async def send(
        self,
        channel: Channel,
        credential: ChannelCredential,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
    ) -> UpstreamReply:
        """POST `body` to `channel.base_url + path`; returns once status and headers are there. Cancelling it
        closes the connection. Raises TransportError."""
        ...

    async def close(self) -> None: ...
