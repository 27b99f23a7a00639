"""Identifiers: who makes them, what they look like, where they hash to."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
import zlib
from typing import Final, NewType

SessionId = NewType("SessionId", str)
"""UUIDv7, made by the edge: one API request."""
AccountId = NewType("AccountId", str)
KeyId = NewType("KeyId", str)
ChannelId = NewType("ChannelId", str)
EdgeId = NewType("EdgeId", str)
KeyHash = NewType("KeyHash", str)
"""SHA-256 of an API key, in hex. The key itself is never stored."""

BUCKETS: Final = 256
API_KEY_PREFIX: Final = "sk-mw-"
_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def new_uuid7(now_ms: int | None = None) -> str:
    """A UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then random bits."""
    timestamp_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    value = (timestamp_ms << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def uuid7_ms(uuid7: str) -> int:
    """The Unix milliseconds inside a UUIDv7. Raises ValueError when it is no UUIDv7."""
    text = uuid7.replace("-", "")
    if len(uuid7) != 36 or len(text) != 32 or text[12] != "7":
        raise ValueError(f"{uuid7!r} is not a UUIDv7")
    return int(text[:12], 16)


def new_session_id() -> SessionId:
    return SessionId(new_uuid7())


def new_account_id() -> AccountId:
    return AccountId(f"acct_{secrets.token_hex(10)}")


def new_key_id() -> KeyId:
    return KeyId(f"key_{secrets.token_hex(10)}")


def new_channel_id() -> ChannelId:
    return ChannelId(f"chan_{secrets.token_hex(6)}")


def new_api_key() -> str:
    """A fresh API key: 48 random characters, over 280 bits."""
    return API_KEY_PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(48))


def hash_api_key(api_key: str) -> KeyHash:
    # A key is 280 random bits: a plain hash can't be reversed by guessing, and it must be fast.
    return KeyHash(hashlib.sha256(api_key.encode()).hexdigest())


def bucket_of(account_id: str) -> int:
    """The bucket (0..255) that holds all Redis keys of an account."""
    return zlib.crc32(account_id.encode()) % BUCKETS
