"""Writes the head of an HTTP/1.1 request and reads the head of a reply. Pure, and strict about framing."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

HEAD_BYTES_MAX: Final = 64 * 1024
HEAD_END: Final = b"\r\n\r\n"
_PATH_SAFE: Final = "/:@!$&'()*+,;=-._~%"
_NAME_CHARS: Final = frozenset(
    b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)


class BadReply(Exception):
    """The reply is not HTTP/1.1 as it should be."""


class Origin(NamedTuple):
    host: str
    port: int
    is_tls: bool


class Target(NamedTuple):
    """Where a request goes. `path`: with the query, ready for the request line."""

    origin: Origin
    host_header: str
    path: str


class Framing(Enum):
    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until_close"


class ReplyHead(NamedTuple):
    """`headers`: names in lower case. `body_bytes`: with Framing.LENGTH."""

    status: int
    headers: dict[str, str]
    framing: Framing
    body_bytes: int
    keeps_alive: bool


@lru_cache(maxsize=1_024)
def target_of(base_url: str, path: str) -> Target:
    """Raises ValueError when it is no http or https address."""
    parts = urlsplit(base_url.rstrip("/") + path)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError("not an http or https address")
    is_tls = parts.scheme == "https"
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    port = parts.port or (443 if is_tls else 80)
    shown = f"[{host}]" if ":" in host else host
    host_header = shown if port == (443 if is_tls else 80) else f"{shown}:{port}"
    query = f"?{quote(parts.query, safe=_PATH_SAFE + '?')}" if parts.query else ""
    return Target(Origin(host, port, is_tls), host_header, quote(parts.path, safe=_PATH_SAFE) + query)


def request_head(target: Target, headers: Mapping[str, str], body_bytes: int) -> bytes:
    """Raises ValueError when a header would break out of its line."""
    lines = [
        f"POST {target.path} HTTP/1.1",
        f"host: {target.host_header}",
        f"content-length: {body_bytes}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    text = "\r\n".join(lines)
    breaks = len(lines) - 1
    if text.count("\r") != breaks or text.count("\n") != breaks or "\0" in text:
        raise ValueError("a header has a line end in it")
    return text.encode("latin-1") + HEAD_END


def read_head(head: bytes) -> ReplyHead:
    """`head`: without the blank line that ends it. Raises BadReply."""
    status_line, *lines = head.split(b"\r\n")
    version, _, rest = status_line.partition(b" ")
    code = rest[:3]
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or len(code) != 3 or not code.isdigit():
        raise BadReply("the reply is not HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        raw_name, colon, raw_value = line.partition(b":")
        # No white space before the colon, no folded lines, no lone line ends: framing depends on it.
        if (
            not colon
            or not raw_name
            or not _NAME_CHARS.issuperset(raw_name)
            or b"\n" in line
            or b"\r" in line
        ):
            raise BadReply("a header line of the reply is not valid")
        name = raw_name.decode("ascii").lower()
        value = raw_value.strip(b" \t").decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    status = int(code)
    framing, body_bytes = _framing(status, headers)
    connection = headers.get("connection", "").lower()
    keeps_alive = (
        ("close" not in connection if version == b"HTTP/1.1" else "keep-alive" in connection)
        and framing is not Framing.UNTIL_CLOSE
        and not (framing is Framing.CHUNKED and "content-length" in headers)
    )
    return ReplyHead(status, headers, framing, body_bytes, keeps_alive)


def _framing(status: int, headers: Mapping[str, str]) -> tuple[Framing, int]:
    if status < 200 or status in (204, 304):
        return Framing.NONE, 0
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if coding.lower() != "chunked":
            raise BadReply("the reply's transfer-encoding is not known")
        return Framing.CHUNKED, 0
    length = headers.get("content-length")
    if length is None:
        return Framing.UNTIL_CLOSE, 0
    if not (length.isascii() and length.isdigit() and len(length) < 19):
        raise BadReply("the reply's content-length is not a number")
    return (Framing.LENGTH, int(length)) if int(length) else (Framing.NONE, 0)
