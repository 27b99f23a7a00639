"""Decodes compressed reply bodies piece by piece, so that a stream stays a stream and no reply is a bomb."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import brotli  # type: ignore[import-untyped]

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES_MAX: Final = 256 * 1024
_GZIP_WINDOW_BITS: Final = 16 + zlib.MAX_WBITS


class BadEncoding(Exception):
    """The reply's body is not what its content-encoding says."""


class BodyDecoder(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]:
        """What can be decoded so far, in pieces of about 256 KiB, none empty. Raises BadEncoding."""
        ...

    def finish(self) -> None:
        """At the end of the body. Raises BadEncoding when it was cut short."""
        ...


def decoder_for(content_encoding: str | None) -> BodyDecoder | None:
    """None: the body is not encoded. Raises BadEncoding for an encoding that is not known."""
    encoding = (content_encoding or "").strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "x-gzip"):
        return _MemberDecoder(lambda: zlib.decompressobj(_GZIP_WINDOW_BITS), _zlib_step)
    if encoding == "deflate":
        return _DeflateDecoder()
    if encoding == "br":
        return _BrotliDecoder()
    if encoding == "zstd":
        return _MemberDecoder(zstd.ZstdDecompressor, _zstd_step)
    raise BadEncoding(f"content-encoding {encoding[:40]!r} is not known")


def _zlib_step(decompressor: Any, data: bytes) -> tuple[bytes, bytes, bool]:
    """A piece, the input left, and whether there is more output to fetch without new input."""
    piece = decompressor.decompress(data, PIECE_BYTES_MAX)
    return piece, decompressor.unconsumed_tail, len(piece) >= PIECE_BYTES_MAX


def _zstd_step(decompressor: Any, data: bytes) -> tuple[bytes, bytes, bool]:
    piece = decompressor.decompress(data, PIECE_BYTES_MAX)
    return piece, b"", not decompressor.needs_input and not decompressor.eof


class _MemberDecoder:
    """gzip and zstd: a body may consist of several members in a row."""

    __slots__ = ("_decompressor", "_is_fresh", "_new", "_step")

    def __init__(
        self, new: Callable[[], Any], step: Callable[[Any, bytes], tuple[bytes, bytes, bool]]
    ) -> None:
        self._new = new
        self._step = step
        self._decompressor = new()
        self._is_fresh = True

    def feed(self, data: bytes) -> Iterator[bytes]:
        more = False
        while data or more:
            if self._decompressor.eof:
                self._decompressor = self._new()
                self._is_fresh = True
            self._is_fresh = self._is_fresh and not data
            try:
                piece, data, more = self._step(self._decompressor, data)
            except (zlib.error, zstd.ZstdError, EOFError) as error:
                raise BadEncoding(str(error)) from None
            if piece:
                yield piece
            if self._decompressor.eof:
                data, more = self._decompressor.unused_data, False

    def finish(self) -> None:
        if not (self._decompressor.eof or self._is_fresh):
            raise BadEncoding("the body is cut short")


class _DeflateDecoder:
    """`deflate` is zlib by the book and raw deflate by habit."""

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder: _MemberDecoder | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._decoder is None and data:
            window_bits = zlib.MAX_WBITS if data[0] & 0x0F == 8 else -zlib.MAX_WBITS
            self._decoder = _MemberDecoder(lambda: zlib.decompressobj(window_bits), _zlib_step)
        return self._decoder.feed(data) if self._decoder is not None else iter(())

    def finish(self) -> None:
        if self._decoder is not None:
            self._decoder.finish()


class _BrotliDecoder:
    __slots__ = ("_decompressor", "_is_fresh")

    def __init__(self) -> None:
        self._decompressor = brotli.Decompressor()
        self._is_fresh = True

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._is_fresh = self._is_fresh and not data
        while True:
            try:
                piece = self._decompressor.process(data, output_buffer_limit=PIECE_BYTES_MAX)
            except brotli.error as error:
                raise BadEncoding(str(error)) from None
            if piece:
                yield piece
            # A full piece may have more behind it, although all input was taken.
            if len(piece) < PIECE_BYTES_MAX and self._decompressor.can_accept_more_data():
                return
            data = b""

    def finish(self) -> None:
        if not (self._is_fresh or self._decompressor.is_finished()):
            raise BadEncoding("the body is cut short")
