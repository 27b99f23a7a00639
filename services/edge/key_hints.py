"""Where a key's account lives: a bounded cache of `Resolve` answers. A hint only: `Open` authenticates.

Outage behaviour: when no meter answers, keys that aren't in the cache get 503.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import Final

from services.common.contracts.charging import KeyHint, Refused, Reply, Resolve
from services.common.errors import Unavailable
from services.common.ids import KeyHash
from services.edge.errors_http import RefusedByMeter
from services.edge.meter_client import MeterClient, MeterUnavailable

REFUSAL_TTL_MS: Final = 2_000
RETRY_AFTER_MS: Final = 1_000


class KnownKey:
    """`count_next`: this key's next `Open` should carry its body."""

    __slots__ = ("answer", "count_next", "expires_at_s")

    def __init__(self, answer: KeyHint | Refused, expires_at_s: float) -> None:
        self.answer = answer
        self.expires_at_s = expires_at_s
        self.count_next = False

    @property
    def hint(self) -> KeyHint:
        """Raises RefusedByMeter when the meter knows no such key."""
        if isinstance(self.answer, Refused):
            raise RefusedByMeter(self.answer)
        return self.answer


class KeyHints:
    def __init__(self, meter: MeterClient, *, keys_max: int, ttl_ms: int, timeout_ms: int) -> None:
        self._meter = meter
        self._keys_max = keys_max
        self._ttl_ms = ttl_ms
        self._timeout_ms = timeout_ms
        self._known: OrderedDict[KeyHash, KnownKey] = OrderedDict()
        self._asking: dict[KeyHash, asyncio.Future[Reply]] = {}

    def cached(self, key_hash: KeyHash) -> KnownKey | None:
        known = self._known.get(key_hash)
        if known is None:
            return None
        if known.expires_at_s < time.monotonic():
            del self._known[key_hash]
            return None
        self._known.move_to_end(key_hash)
        return known

    def forget(self, key_hash: KeyHash) -> None:
        self._known.pop(key_hash, None)

    async def resolve(self, key_hash: KeyHash) -> KnownKey:
        """Raises Unavailable when no meter knows."""
        asking = self._asking.get(key_hash)
        if asking is None:
            asking = self._meter.send(
                Resolve(key_hash=key_hash), bucket=int(key_hash[:2], 16), timeout_ms=self._timeout_ms
            )
            self._asking[key_hash] = asking
            asking.add_done_callback(lambda done: self._asked(key_hash, done))
        try:
            # Others may wait for the same answer: one of them going away must not cancel it.
            reply = await asyncio.shield(asking)
        except MeterUnavailable as error:
            raise Unavailable(retry_after_ms=RETRY_AFTER_MS) from error
        if not isinstance(reply, KeyHint | Refused):
            raise Unavailable(retry_after_ms=RETRY_AFTER_MS)
        return self.cached(key_hash) or self._remember(key_hash, reply)

    def _asked(self, key_hash: KeyHash, asked: asyncio.Future[Reply]) -> None:
        self._asking.pop(key_hash, None)
        if not asked.cancelled():
            asked.exception()  # Seen, also when everyone who waited has gone away.

    def _remember(self, key_hash: KeyHash, answer: KeyHint | Refused) -> KnownKey:
        ttl_ms = self._ttl_ms if isinstance(answer, KeyHint) else REFUSAL_TTL_MS
        known = KnownKey(answer, time.monotonic() + ttl_ms / 1000)
        if isinstance(answer, Refused) and answer.code == "service_unavailable":
            return known
        self._known[key_hash] = known
        if len(self._known) > self._keys_max:
            self._known.popitem(last=False)
        return known
