"""Writing to one client: headers, chunks with back-pressure, keep-alive comments."""

from __future__ import annotations

import time
from typing import Final

from aiohttp import web

KEEP_ALIVE: Final = b": keep-alive\n\n"
STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


class _Stream(web.StreamResponse):
    # The headers wait for the first bytes, which follow at once: one write instead of two.
    _send_headers_immediately = False


class Delivery:
    """A streamed reply. Whole events only: between two writes a keep-alive comment may stand.

    A client that is gone raises ConnectionResetError, or cancels the handler.
    """

    __slots__ = (
        "_close_connection",
        "_finished",
        "_last_write_s",
        "_request",
        "_request_id",
        "_stalled_bytes",
        "_stalled_since_s",
        "_writing",
        "first_write_s",
        "response",
    )

    def __init__(self, request: web.Request, request_id: str, *, close_connection: bool) -> None:
        self._request = request
        self._request_id = request_id
        self._close_connection = close_connection
        self._finished = False
        self._writing = False
        self._last_write_s = time.monotonic()
        self._stalled_since_s = 0.0
        self._stalled_bytes = 0
        self.first_write_s = 0.0
        self.response: web.StreamResponse | None = None

    @property
    def is_started(self) -> bool:
        return self.response is not None

    async def start(self, headers: dict[str, str] | None = None) -> None:
        """Status 200 and the headers, once; they leave with the first bytes."""
        if self.response is not None:
            return
        response = _Stream(headers={**(headers or {}), **STREAM_HEADERS, "x-request-id": self._request_id})
        self.response = response
        if self._close_connection:
            response.force_close()
        await response.prepare(self._request)

    async def write(self, data: bytes) -> None:
        assert self.response is not None
        self._writing = True
        await self.response.write(data)
        self._written()

    async def end_with(self, last: bytes) -> web.StreamResponse:
        """Write the last bytes (may be empty) and end the reply, once."""
        assert self.response is not None
        if not self._finished:
            self._finished = self._writing = True
            await self.response.write_eof(last)
            self._written()
        return self.response

    def _written(self) -> None:
        self._writing = False
        self._last_write_s = now = time.monotonic()
        if not self.first_write_s:
            self.first_write_s = now

    def is_silent(self, silence_s: float) -> bool:
        return not self._writing and not self._finished and time.monotonic() - self._last_write_s >= silence_s

    async def keep_alive(self, silence_s: float) -> None:
        """Break a silence of `silence_s` with a comment; starts the reply if that must be."""
        try:
            await self.start()
            if self.response is not None and self.is_silent(silence_s):
                await self.response.write(KEEP_ALIVE)
                self._last_write_s = time.monotonic()
        except ConnectionResetError:
            return  # The handler learns of it by itself.

    def abort_if_stalled(self, timeout_s: float) -> None:
        """A client that takes no byte for `timeout_s` counts as gone."""
        transport = self._request.transport
        if not self._writing or transport is None:
            self._stalled_since_s = 0.0
            return
        now, waiting_bytes = time.monotonic(), transport.get_write_buffer_size()
        if not self._stalled_since_s or waiting_bytes != self._stalled_bytes:
            self._stalled_since_s, self._stalled_bytes = now, waiting_bytes
        elif now - self._stalled_since_s >= timeout_s:
            transport.abort()
