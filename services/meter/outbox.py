"""Settled sessions on their way to the ledger.

Every meter ships: its own buckets at once, all buckets' older entries once a second (another meter
may have died). An entry is removed after the ledger has it, so two meters may ship the same one; the
ledger posts each session once. Outage behaviour: entries stay in Redis; the shipper backs off.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from services.common import logs
from services.common.contracts.charging import UsageRecord
from services.common.ids import BUCKETS
from services.meter import redis_keys
from services.meter.ledger_client import (
    EncodedPostingEntry,
    LedgerClient,
    LedgerRefused,
    LedgerUnavailable,
)
from services.meter.metrics import MeterMetrics
from services.meter.quota_answers import OutboxEntry
from services.meter.redis_link import RedisLink, StoreUnavailable
from services.meter.scripts import Script

LOG = logs.get("meter.outbox")
ENTRIES_MAX: Final = 500
GATHER_S: Final = 0.02
SHIPMENTS_APART_S: Final = 0.1
"""While sessions keep on ending: a posting costs the ledger much the same whatever is in it."""
SCAN_S: Final = 1.0
OTHERS_AGE_MS: Final = 2_000
RETRY_S: Final = (0.1, 0.25, 0.5, 1.0, 2.0)
_decoder = msgspec.json.Decoder(UsageRecord)


class Outbox:
    def __init__(
        self, link: RedisLink, quarantine: Script, ledger: LedgerClient, metrics: MeterMetrics
    ) -> None:
        self._link = link
        self._quarantine = quarantine
        self._ledger = ledger
        self._metrics = metrics
        self._dirty: set[int] = set()
        self._wake = asyncio.Event()
        self._is_full = asyncio.Event()
        self._settled = 0
        self._shipped_at = 0.0
        self._scan_at = 0.0

    def wake(self, bucket: int) -> None:
        """This meter has just settled a session in this bucket."""
        self._dirty.add(bucket)
        self._wake.set()
        self._settled += 1
        if self._settled == ENTRIES_MAX:
            self._is_full.set()

    async def keep_shipping(self) -> None:
        """Runs until cancelled."""
        failures = 0
        while True:
            try:
                await asyncio.wait_for(self._wake.wait(), max(0.0, self._scan_at - time.monotonic()))
                await self._gather()
            except TimeoutError:
                pass
            if not self._link.is_up:
                await asyncio.sleep(RETRY_S[0])
                continue
            try:
                await self._ship_all()
                failures = 0
            except (StoreUnavailable, LedgerUnavailable) as error:
                self._metrics.posting_failures += 1
                LOG.warning("settled sessions wait for the ledger", error=str(error))
                await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                failures += 1

    async def _gather(self) -> None:
        """What settles within this time leaves with what settled first; a full shipment leaves at once."""
        apart_s = self._shipped_at + SHIPMENTS_APART_S - time.monotonic()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_full.wait(), max(GATHER_S, apart_s))

    async def drain(self) -> None:
        """Ship what is left, once. Raises StoreUnavailable or LedgerUnavailable."""
        self._dirty.update(range(BUCKETS))
        await self._ship_all()

    async def _ship_all(self) -> None:
        self._wake.clear()
        self._is_full.clear()
        self._settled = 0
        self._shipped_at = time.monotonic()
        if time.monotonic() >= self._scan_at:
            await self._scan()
            self._scan_at = time.monotonic() + SCAN_S
        while self._dirty:
            buckets = sorted(self._dirty)
            # Whatever is settled from here on marks its bucket again.
            self._dirty.clear()
            try:
                full = await self._ship(buckets)
            except BaseException:
                self._dirty.update(buckets)
                raise
            if not full:
                # What settled meanwhile gathers for the next shipment.
                return
            self._dirty.update(full)

    async def _scan(self) -> None:
        """Find buckets whose oldest entry is old enough that nobody seems to be shipping it."""
        seconds, micros = await self._link.call("TIME")
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        counts = await self._link.call_many([("XLEN", key) for key in redis_keys.OUTBOXES])
        waiting = [bucket for bucket in range(BUCKETS) if counts[bucket]]
        oldest = await self._link.call_many(
            [("XRANGE", redis_keys.OUTBOXES[bucket], "-", "+", "COUNT", 1) for bucket in waiting]
        )
        ages_ms = {
            bucket: now_ms - int(found[0][0].partition(b"-")[0])
            for bucket, found in zip(waiting, oldest, strict=True)
            if found
        }
        self._metrics.outbox_entries = sum(counts)
        self._metrics.outbox_lag_s = max(ages_ms.values(), default=0) / 1000
        self._dirty.update(bucket for bucket, age_ms in ages_ms.items() if age_ms > OTHERS_AGE_MS)

    async def _ship(self, buckets: Sequence[int]) -> list[int]:
        """One call's worth from each of `buckets`, in calls of at most ENTRIES_MAX; those with more left."""
        found = await self._link.call_many(
            [("XRANGE", redis_keys.OUTBOXES[bucket], "-", "+", "COUNT", ENTRIES_MAX) for bucket in buckets]
        )
        entries = [
            OutboxEntry(bucket, entry_id, dict(zip(fields[::2], fields[1::2], strict=True)))
            for bucket, rows in zip(buckets, found, strict=True)
            for entry_id, fields in rows
        ]
        for start in range(0, len(entries), ENTRIES_MAX):
            await self._post(entries[start : start + ENTRIES_MAX])
        return [bucket for bucket, rows in zip(buckets, found, strict=True) if len(rows) >= ENTRIES_MAX]

    async def _post(self, entries: Sequence[OutboxEntry]) -> None:
        readable: list[OutboxEntry] = []
        postings: list[EncodedPostingEntry] = []
        for entry in entries:
            posting = _posting(entry)
            if posting is None:
                await self._set_aside(entry)
            else:
                readable.append(entry)
                postings.append(posting)
        if not readable:
            return
        try:
            await self._ledger.post_encoded(postings)
        except LedgerRefused:
            if len(readable) == 1:
                await self._set_aside(readable[0])
                return
            # One of them is poison: the rest must still be posted.
            middle = len(readable) // 2
            await self._post(readable[:middle])
            await self._post(readable[middle:])
            return
        self._metrics.posted_entries += len(readable)
        self._metrics.posting_entries.observe(len(readable))
        await self._link.call_many(
            [("XDEL", redis_keys.OUTBOXES[bucket], *ids) for bucket, ids in _by_bucket(readable)]
        )

    async def _set_aside(self, entry: OutboxEntry) -> None:
        self._metrics.poison_entries += 1
        LOG.error(
            "an outbox entry can't be read and was set aside", bucket=entry.bucket, entry_id=entry.entry_id
        )
        keys = (redis_keys.OUTBOXES[entry.bucket], redis_keys.QUARANTINES[entry.bucket])
        await self._link.run(self._quarantine, keys, (entry.entry_id,))


def _posting(entry: OutboxEntry) -> EncodedPostingEntry | None:
    """None: unreadable."""
    try:
        record = entry.fields[b"record"]
        _decoder.decode(record)
        return EncodedPostingEntry(
            entry.bucket, int(entry.fields[b"epoch"]), msgspec.Raw(record), int(entry.fields[b"loan_nanos"])
        )
    except (KeyError, ValueError, msgspec.DecodeError):
        return None


def _by_bucket(entries: Iterable[OutboxEntry]) -> list[tuple[int, list[bytes]]]:
    ids: dict[int, list[bytes]] = {}
    for entry in entries:
        ids.setdefault(entry.bucket, []).append(entry.entry_id)
    return list(ids.items())
