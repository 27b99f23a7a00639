"""Encoding of the charging WebSocket's frames: msgpack arrays of `(call_id, message)`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from services.common.contracts.charging import Call, Reply

FRAME_BYTES_MAX = 64 * 1024 * 1024

_encoder = msgspec.msgpack.Encoder()
_calls = msgspec.msgpack.Decoder(list[tuple[int, Call]])
_replies = msgspec.msgpack.Decoder(list[tuple[int, Reply]])


def encode_frame(messages: Sequence[tuple[int, Call | Reply]]) -> bytes:
    return _encoder.encode(messages)


def decode_calls(frame: bytes) -> list[tuple[int, Call]]:
    """Raises msgspec.DecodeError or msgspec.ValidationError."""
    return _calls.decode(frame)


def decode_replies(frame: bytes) -> list[tuple[int, Reply]]:
    """Raises msgspec.DecodeError or msgspec.ValidationError."""
    return _replies.decode(frame)
