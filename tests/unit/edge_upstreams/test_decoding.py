"""Encoded bodies, piece by piece."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable

import brotli  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.edge.upstreams.decoding import PIECE_BYTES_MAX, BadEncoding, decoder_for

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "gzip members": ("GZIP", lambda data: gzip.compress(data[:7]) + gzip.compress(data[7:])),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstd.compress),
    "zstd frames": ("zstd", lambda data: zstd.compress(data[:7]) + zstd.compress(data[7:])),
}
BY_NAME = pytest.mark.parametrize("name", ENCODERS)


def decode(encoding: str, pieces: list[bytes]) -> bytes:
    decoder = decoder_for(encoding)
    assert decoder is not None
    found = b"".join(piece for data in pieces for piece in decoder.feed(data))
    decoder.finish()
    return found


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(sorted(ENCODERS)), body=st.binary(max_size=300), size=st.integers(1, 50))
def test_any_split_decodes_to_the_same(name: str, body: bytes, size: int) -> None:
    encoding, encode = ENCODERS[name]
    encoded = encode(body)
    assert decode(encoding, [encoded[at : at + size] for at in range(0, len(encoded), size)]) == body


@BY_NAME
def test_a_bomb_comes_out_in_bounded_pieces(name: str) -> None:
    encoding, encode = ENCODERS[name]
    size_bytes = 8 * 1024 * 1024
    decoder = decoder_for(encoding)
    assert decoder is not None
    total = 0
    for piece in decoder.feed(encode(bytes(size_bytes))):
        assert 0 < len(piece) <= 2 * PIECE_BYTES_MAX
        total += len(piece)
    assert total == size_bytes
    decoder.finish()


@BY_NAME
def test_a_body_cut_short_is_noticed(name: str) -> None:
    encoding, encode = ENCODERS[name]
    with pytest.raises(BadEncoding):
        decode(encoding, [encode(b"x" * 500 + bytes(range(256)))[:-9]])


@BY_NAME
def test_what_is_not_encoded_so_is_refused(name: str) -> None:
    encoding, _encode = ENCODERS[name]
    with pytest.raises(BadEncoding):
        decode(encoding, [b'{"id":"chatcmpl-1"}' * 9])


def test_what_the_encoder_flushed_is_there_at_once() -> None:
    compressor = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    decoder = decoder_for("gzip")
    assert decoder is not None
    for event in (b"data: one\n\n", b"data: two\n\n"):
        sent = compressor.compress(event) + compressor.flush(zlib.Z_SYNC_FLUSH)
        assert b"".join(decoder.feed(sent)) == event


def test_plain_bodies_have_no_decoder_and_unknown_encodings_are_refused() -> None:
    assert decoder_for(None) is None
    assert decoder_for("identity") is None
    with pytest.raises(BadEncoding):
        decoder_for("compress")
