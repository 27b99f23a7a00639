"""Names of the keys in Redis. All keys of a bucket share one hash tag: a cluster keeps them together."""

from __future__ import annotations

from typing import Final

from services.common.ids import BUCKETS

_TAGS: Final = tuple(f"{{b{bucket}}}" for bucket in range(BUCKETS))
EPOCHS: Final = tuple(f"e:{tag}" for tag in _TAGS)
LEASES: Final = tuple(f"x:{tag}" for tag in _TAGS)
OUTBOXES: Final = tuple(f"o:{tag}" for tag in _TAGS)
QUARANTINES: Final = tuple(f"p:{tag}" for tag in _TAGS)
INDEXES: Final = tuple(f"i:{tag}" for tag in _TAGS)
"""Which accounts (`a:<id>`) and keys (`k:<id>`) a bucket has, and since which epoch."""
FENCE_LOCKS: Final = tuple(f"f:{tag}" for tag in _TAGS)


def account_key(bucket: int, account_id: str) -> str:
    return f"a:{_TAGS[bucket]}:{account_id}"


def limits_key(bucket: int, key_id: str) -> str:
    return f"k:{_TAGS[bucket]}:{key_id}"


def session_key(bucket: int, session_id: str) -> str:
    return f"s:{_TAGS[bucket]}:{session_id}"


def concurrency_key(bucket: int, key_id: str) -> str:
    return f"c:{_TAGS[bucket]}:{key_id}"
