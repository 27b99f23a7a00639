"""Which buckets can be trusted, and their epochs.

A bucket is live when its epoch in Redis is the ledger's. Anything else (missing after a FLUSHALL,
ahead of the ledger, an account's hash gone) makes it suspect: new sessions are refused with 503, the
ledger commits a new epoch, Redis begins it, and the bucket is live again.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.common import logs
from services.common.contracts.lending import FenceRequest
from services.common.ids import BUCKETS
from services.meter.ledger_client import LedgerClient, LedgerUnavailable
from services.meter.metrics import MeterMetrics
from services.meter.quota_store import QuotaStore
from services.meter.redis_link import StoreUnavailable

LOG = logs.get("meter.epochs")
FENCE_LOCK_MS: Final = 3_000
RETRY_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Judgement:
    """By bucket: live in this epoch; begin the ledger's epoch; fence, having seen this epoch."""

    live: Mapping[int, int]
    begin: Mapping[int, int]
    fence: Mapping[int, int]


def judge(
    seen_epochs: Sequence[int],
    ledger_epochs: Sequence[int],
    *,
    run_id_known: bool,  # noqa: ARG001
    suspects: Mapping[int, int],
) -> Judgement:
    """What to do about each bucket. `suspects`: the epoch in which something of a bucket was lost."""
    live, begin, fence = {}, {}, {}
    for bucket, (seen, current) in enumerate(zip(seen_epochs, ledger_epochs, strict=True)):
        if seen == 0 or seen > current or (seen == current and suspects.get(bucket) == seen):
            fence[bucket] = seen
        elif seen < current:
            begin[bucket] = current
        else:
            live[bucket] = current
    return Judgement(live, begin, fence)


class Epochs:
    def __init__(self, store: QuotaStore, ledger: LedgerClient, metrics: MeterMetrics) -> None:
        self._store = store
        self._ledger = ledger
        self._metrics = metrics
        self._holder = secrets.token_hex(8)
        self._known = [0] * BUCKETS
        self._live = [False] * BUCKETS
        self._suspects: dict[int, int] = {}
        self._run_id = ""
        self._trusted_run_id = ""
        self._is_connected = False
        self._wake = asyncio.Event()

    @property
    def live_buckets(self) -> int:
        return sum(self._live)

    def is_live(self, bucket: int) -> bool:
        return self._live[bucket]

    def known(self, bucket: int) -> int:
        """The newest epoch heard of, 0: none."""
        return self._known[bucket]

    def learn(self, bucket: int, epoch: int) -> None:
        """Redis answered in this epoch: another meter may have begun it."""
        self._known[bucket] = max(self._known[bucket], epoch)

    def suspect(self, bucket: int, seen_epoch: int, *, cause: str) -> None:
        """A script could not trust the bucket."""
        if cause == "account_lost":
            if seen_epoch < self._known[bucket]:
                return
            self._suspects[bucket] = seen_epoch
        self.distrust(bucket, cause=cause)

    def distrust(self, bucket: int, *, cause: str) -> None:
        """No new sessions in this bucket until it has been compared with the ledger again."""
        if self._live[bucket]:
            LOG.error("a bucket can't be trusted", bucket=bucket, cause=cause)
            self._metrics.fences[cause] += 1
        self._live[bucket] = False
        self._wake.set()

    async def on_connected(self, run_id: str) -> None:
        self._run_id, self._is_connected = run_id, True
        self._wake.set()

    def on_lost(self) -> None:
        self._is_connected = False
        self._live = [False] * BUCKETS

    async def keep_trusted(self) -> None:
        """Compare with the ledger whenever something is suspect. Runs until cancelled."""
        failures = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not self._is_connected:
                continue
            try:
                await self._compare()
                failures = 0
            except (StoreUnavailable, LedgerUnavailable) as error:
                LOG.warning("epochs could not be compared with the ledger's", error=str(error))
                await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                failures += 1
                self._wake.set()

    async def _compare(self) -> None:
        run_id, suspects = self._run_id, dict(self._suspects)
        # Redis first: an epoch that begins in between is then only older here, never ahead of the ledger.
        seen = await self._store.read_epochs()
        try:
            ledger_epochs = (await self._ledger.epochs()).epochs
        except LedgerUnavailable:
            # The same Redis with the same epochs as before: nothing was lost.
            if run_id != self._trusted_run_id or seen != self._known or suspects:
                raise
            ledger_epochs = tuple(seen)
        judgement = judge(seen, ledger_epochs, run_id_known=run_id == self._trusted_run_id, suspects=suspects)
        in_force = dict(judgement.live)
        if judgement.begin:
            in_force |= await self._store.init_epochs(dict(judgement.begin))
        if judgement.fence:
            in_force |= await self._fence(judgement.fence, run_id)
        if run_id != self._run_id or not self._is_connected:
            self._wake.set()
            return
        for bucket, epoch in in_force.items():
            self._known[bucket] = epoch
            # What was found missing meanwhile is judged in the next round.
            if bucket in suspects or self._suspects.get(bucket) != epoch:
                self._live[bucket] = True
                self._suspects.pop(bucket, None)
        if len(in_force) < BUCKETS:
            raise StoreUnavailable("some buckets are being fenced by another meter")
        self._trusted_run_id = run_id
        LOG.info(
            "all buckets are live", run_id=run_id, begun=len(judgement.begin), fenced=len(judgement.fence)
        )

    async def _fence(self, suspects: Mapping[int, int], run_id: str) -> dict[int, int]:
        """One meter at a time; the epochs in force then. Empty while another one is at it."""
        if not await self._store.take_fence_lock(self._holder, ttl_ms=FENCE_LOCK_MS):
            return {}
        try:
            seen = await self._store.read_epochs()
            still = {bucket: epoch for bucket, epoch in suspects.items() if seen[bucket] == epoch}
            if not still:
                return {}
            answer = await self._ledger.fence(
                FenceRequest(
                    buckets=tuple(still),
                    seen_epochs=tuple(still.values()),
                    run_id=run_id,
                    reason="epoch missing, ahead of the ledger, or an account lost",
                )
            )
            LOG.warning("buckets were fenced", buckets=len(still), run_id=run_id)
            return await self._store.init_epochs({bucket: answer.epochs[bucket] for bucket in still})
        finally:
            await self._store.drop_fence_lock()
