"""Sessions whose edge was not heard of in time: orphaned first, then ended at their last checkpoint.

Several meters may sweep at once: each step is one script that looks at the session again.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from services.common import logs
from services.common.contracts.charging import Release, SessionRef
from services.common.contracts.lending import EdgeForgotten, PostingEntry
from services.common.ids import AccountId, EdgeId, KeyId, SessionId
from services.meter.epochs import Epochs
from services.meter.ledger_client import LedgerClient, LedgerUnavailable
from services.meter.metrics import MeterMetrics
from services.meter.outbox import Outbox
from services.meter.quota_answers import Due, Fence, LedgerMustCharge, NotDue, Orphaned, Settled
from services.meter.quota_store import QuotaStore
from services.meter.redis_link import StoreUnavailable
from services.meter.sessions import orphan_record, total_tokens
from services.meter.settings import MeterSettings

LOG = logs.get("meter.sweeper")
SESSIONS_PER_BUCKET_MAX: Final = 100
_encoder = msgspec.json.Encoder()


class Sweeper:
    def __init__(
        self,
        *,
        settings: MeterSettings,
        store: QuotaStore,
        epochs: Epochs,
        ledger: LedgerClient,
        outbox: Outbox,
        metrics: MeterMetrics,
    ) -> None:
        self._settings = settings
        self._store = store
        self._epochs = epochs
        self._ledger = ledger
        self._outbox = outbox
        self._metrics = metrics

    async def keep_sweeping(self) -> None:
        """Runs until cancelled."""
        while True:
            await asyncio.sleep(self._settings.sweep_interval_ms / 1000)
            if self._epochs.live_buckets == 0:
                continue
            try:
                await self.sweep()
            except StoreUnavailable as error:
                LOG.warning("leases could not be looked through", error=str(error))
            except LedgerUnavailable as error:
                LOG.warning("orphans of an older epoch wait for the ledger", error=str(error))

    async def sweep(self) -> int:
        """One round; how many sessions were ended. Raises StoreUnavailable or LedgerUnavailable."""
        ended = 0
        for bucket, session_id in await self._store.leases_over(limit=SESSIONS_PER_BUCKET_MAX):
            answer = await self._store.sweep(
                session_id,
                bucket=bucket,
                epoch=self._epochs.known(bucket),
                grace_ms=self._settings.orphan_grace_ms,
            )
            match answer:
                case Orphaned(held_nanos):
                    self._metrics.orphans["orphaned"] += 1
                    self._metrics.orphan_held_nanos += held_nanos
                    LOG.warning("a session's lease is over", session_id=session_id, held_nanos=held_nanos)
                case Due():
                    ended += await self._end(session_id, bucket, answer)
                case Fence(cause, seen_epoch):
                    self._epochs.suspect(bucket, seen_epoch, cause=cause)
        return ended

    async def forget_edge(self, edge_id: EdgeId) -> EdgeForgotten:
        """End the sessions of this edge whose lease is over, without the grace.

        Raises StoreUnavailable or LedgerUnavailable.
        """
        ended = running = 0
        for bucket, session_id in await self._store.sessions_of_edge(edge_id):
            # The first look makes it an orphan, the second finds its grace over.
            for _look in range(2):
                answer = await self._store.sweep(
                    session_id, bucket=bucket, epoch=self._epochs.known(bucket), grace_ms=0
                )
                if not isinstance(answer, Orphaned):
                    break
            match answer:
                case Due():
                    ended += await self._end(session_id, bucket, answer)
                case NotDue(is_running=True) | Orphaned():
                    running += 1
                case Fence(cause, seen_epoch):
                    self._epochs.suspect(bucket, seen_epoch, cause=cause)
                    running += 1
        return EdgeForgotten(ended, running)

    async def _end(self, session_id: SessionId, bucket: int, due: Due) -> bool:
        # Nothing was delivered as far as anybody knows: nothing is charged.
        if due.used_tokens == 0 or due.used_nanos == 0:
            return await self._release(session_id, bucket, due.seq)
        record = orphan_record(session_id, due)
        ref = SessionRef(session_id, AccountId(due.account_id), KeyId(due.key_id), bucket, due.epoch)
        answer = await self._store.settle(
            ref,
            seq=due.seq + 1,
            cost_nanos=record.cost_nanos,
            tokens=total_tokens(record.tokens),
            payload=_encoder.encode(record),
            by="sweep",
        )
        match answer:
            case Settled():
                self._metrics.orphans["settled"] += 1
                self._outbox.wake(bucket)
                LOG.warning("an orphan was charged", session_id=session_id, cost_nanos=record.cost_nanos)
                return True
            case LedgerMustCharge(stale_epoch=True):
                loan_nanos = min(record.cost_nanos, due.held_nanos)
                await self._ledger.post(
                    [PostingEntry(bucket, due.epoch, record, loan_nanos, past_redis=True)]
                )
                await self._store.settle(
                    ref, seq=due.seq + 1, cost_nanos=0, tokens=0, payload=b"", by="ledger_sweep"
                )
                self._metrics.orphans["settled"] += 1
                return True
            case Fence(cause, seen_epoch):
                self._epochs.suspect(bucket, seen_epoch, cause=cause)
        return False

    async def _release(self, session_id: SessionId, bucket: int, seq: int) -> bool:
        ending = Release(session_id, bucket, seq + 1, "edge_lost")
        answer = await self._store.release(ending, epoch=self._epochs.known(bucket), by="sweep")
        if isinstance(answer, Fence):
            self._epochs.suspect(bucket, answer.seen_epoch, cause=answer.cause)
            return False
        self._metrics.orphans["released"] += 1
        return True
