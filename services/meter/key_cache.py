"""Which key a hash belongs to, and its limits, as last heard from the ledger.

A snapshot is a hint: the scripts check its revision against Redis, where `configure` is in force at
once. It is refreshed after 30 s, in the background; without the ledger it stays usable for 15 min.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import Final

from services.common.contracts.lending import KeySnapshot
from services.common.ids import KeyHash
from services.meter.ledger_client import LedgerClient, LedgerUnavailable

RECENT_S: Final = 1.0
FRESH_S: Final = 30.0
USABLE_S: Final = 900.0
UNKNOWN_S: Final = 2.0
KEYS_MAX: Final = 100_000
UNKNOWN_MAX: Final = 10_000
RESOLVING_MAX: Final = 512


class KeyCache:
    def __init__(self, ledger: LedgerClient) -> None:
        self._ledger = ledger
        self._known: OrderedDict[KeyHash, tuple[KeySnapshot, float]] = OrderedDict()
        self._unknown: OrderedDict[KeyHash, float] = OrderedDict()
        self._resolving: dict[KeyHash, asyncio.Task[KeySnapshot | None]] = {}

    def cached(self, key_hash: KeyHash) -> KeySnapshot | None:
        """The key's snapshot while it is usable; an ageing one is refreshed in the background."""
        entry = self._known.get(key_hash)
        if entry is None:
            return None
        snapshot, heard_at = entry
        age_s = time.monotonic() - heard_at
        if age_s < FRESH_S:
            return snapshot
        if age_s < USABLE_S:
            self._start(key_hash)
            return snapshot
        return None

    async def find(self, key_hash: KeyHash) -> KeySnapshot | None:
        """The key's snapshot, None: no such key. Raises LedgerUnavailable."""
        if (snapshot := self.cached(key_hash)) is not None:
            return snapshot
        if self._unknown.get(key_hash, 0.0) > time.monotonic():
            return None
        return await self.refetch(key_hash)

    async def refetch(self, key_hash: KeyHash) -> KeySnapshot | None:
        """Ask the ledger, once however many ask. Raises LedgerUnavailable."""
        task = self._start(key_hash)
        if task is None:
            raise LedgerUnavailable("too many keys are being looked up")
        return await asyncio.shield(task)

    async def recent(self, key_hash: KeyHash) -> KeySnapshot | None:
        """With totals that are a moment old at most. Raises LedgerUnavailable."""
        entry = self._known.get(key_hash)
        if entry is not None and time.monotonic() - entry[1] < RECENT_S:
            return entry[0]
        return await self.refetch(key_hash)

    def put(self, snapshot: KeySnapshot) -> None:
        """An older revision never replaces a newer one."""
        entry = self._known.get(snapshot.key_hash)
        if entry is not None and entry[0].revision > snapshot.revision:
            return
        self._unknown.pop(snapshot.key_hash, None)
        self._known[snapshot.key_hash] = (snapshot, time.monotonic())
        self._known.move_to_end(snapshot.key_hash)
        if len(self._known) > KEYS_MAX:
            self._known.popitem(last=False)

    def _start(self, key_hash: KeyHash) -> asyncio.Task[KeySnapshot | None] | None:
        task = self._resolving.get(key_hash)
        if task is None and len(self._resolving) < RESOLVING_MAX:
            task = asyncio.create_task(self._resolve(key_hash))
            self._resolving[key_hash] = task
            task.add_done_callback(lambda done: self._done(key_hash, done))
        return task

    def _done(self, key_hash: KeyHash, done: asyncio.Task[KeySnapshot | None]) -> None:
        self._resolving.pop(key_hash, None)
        if not done.cancelled():
            done.exception()  # A refresh in the background is awaited by nobody.

    async def _resolve(self, key_hash: KeyHash) -> KeySnapshot | None:
        snapshot = await self._ledger.resolve_key(key_hash)
        if snapshot is not None:
            self.put(snapshot)
            return self._known[key_hash][0]
        self._known.pop(key_hash, None)
        self._unknown[key_hash] = time.monotonic() + UNKNOWN_S
        if len(self._unknown) > UNKNOWN_MAX:
            self._unknown.popitem(last=False)
        return None
