"""Read a request's body: bounded in size (decompressed) and in time.

aiohttp decodes gzip, deflate, br and zstd step by step, and `client_max_size` bounds what comes
out, so that a small body can't unfold into a large one.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from services.common.errors import BadRequest, BodyTooLarge

ENCODINGS: Final = frozenset({"", "identity", "gzip", "deflate", "br", "zstd"})


class BodyTimeout(BadRequest):
    """The request body took too long to arrive. Please send it again."""

    status = 408
    code = "request_timeout"


class UndecodableBody(BadRequest):
    """The request body can't be decoded. Please check its Content-Encoding."""

    code = "undecodable_body"


def stop_reading(request: web.Request) -> None:
    """Take no more of a body that is a waste to decode; the reply must close the connection."""
    request.content.feed_eof()


async def read_body(request: web.Request, *, bytes_max: int, timeout_ms: int) -> bytes:
    """Raises BadRequest, BodyTooLarge, BodyTimeout or UndecodableBody. The app's `client_max_size` must
    be `bytes_max`."""
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ENCODINGS:
        raise BadRequest(
            "This Content-Encoding is not supported. Please use gzip, deflate, br, zstd or none.",
            code="unsupported_content_encoding",
        )
    if (request.content_length or 0) > bytes_max:
        raise _too_large(bytes_max)
    try:
        if request.content.is_eof():
            return await request.read()
        async with asyncio.timeout(timeout_ms / 1000):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        if encoding not in ("", "identity"):
            stop_reading(request)
        raise _too_large(bytes_max) from error
    except TimeoutError as error:
        raise BodyTimeout from error
    except (web.RequestPayloadError, HttpProcessingError) as error:
        stop_reading(request)
        raise UndecodableBody from error


def _too_large(bytes_max: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than {bytes_max} bytes. Please send a smaller one.")
