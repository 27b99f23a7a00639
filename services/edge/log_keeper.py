"""Keeps the edge's log short and true: a settled session leaves it only when the ledger has it.

    ended       a meter acknowledged the end: a release is done, a settle waits to be posted
    confirm     the ledger is asked which of those it still lacks; the others are done
    tell again  what it lacks for LOST_S after its settle (Redis lost the outbox) is told from the log

Outage behaviour: without a ledger nothing leaves the log, whose size is bounded: full, it makes the
edge refuse new requests. Nothing is dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import islice
from typing import Final

from services.common import logs
from services.common.contracts.charging import Release, Settle
from services.common.contracts.lending import PostingEntry
from services.common.contracts.recovery import Recovered
from services.common.ids import SessionId
from services.common.internal_http import InternalCallError
from services.edge.ledger_client import LedgerClient
from services.edge.metrics import EdgeMetrics
from services.edge.session_log import SessionLog

LOG = logs.get("edge.log_keeper")
ROUND_S: Final = 2.0
RETRY_MAX_S: Final = 10.0
BACKLOG_PAUSE_S: Final = 0.1
SETTLED_FOR_S: Final = 1.0
"""A settle is posted within milliseconds: no use in asking sooner."""
LOST_S: Final = 10.0
IDS_MAX: Final = 10_000
ENTRIES_MAX: Final = 500
LAST_CONFIRM_MS: Final = 500


def posting_entry(settle: Settle) -> PostingEntry:
    """The loan of the session's epoch pays up to its hold."""
    record, ref = settle.record, settle.ref
    return PostingEntry(ref.bucket, ref.epoch, record, min(record.cost_nanos, record.held_nanos))


class LogKeeper:
    """`ended` is told of every acknowledged end; `run` works until it is cancelled."""

    def __init__(self, log: SessionLog, ledger: LedgerClient, metrics: EdgeMetrics) -> None:
        self._log = log
        self._ledger = ledger
        self._metrics = metrics
        # By the time of their settle, or of the last time they were told: oldest first.
        self._settled: dict[SessionId, tuple[float, Settle]] = {}

    @property
    def waiting(self) -> int:
        """Settled sessions that are not known to be in the ledger."""
        return len(self._settled)

    def ended(self, call: Settle | Release) -> None:
        if isinstance(call, Release):
            self._log.done(call.session_id)
        elif self._log.has(call.ref.session_id):
            self._settled.setdefault(call.ref.session_id, (time.monotonic(), call))

    async def run(self) -> None:
        pause_s = ROUND_S
        while True:
            await asyncio.sleep(pause_s)
            try:
                asked = await self.confirm(older_than_s=SETTLED_FOR_S)
            except InternalCallError as error:
                LOG.warning("settled sessions are not confirmed", waiting=self.waiting, status=error.status)
                pause_s = min(pause_s * 2, RETRY_MAX_S)
                continue
            # A backlog is worked off without long pauses.
            pause_s = ROUND_S if asked < IDS_MAX else BACKLOG_PAUSE_S

    async def confirm(self, *, older_than_s: float, timeout_ms: int = 10_000) -> int:
        """One round; how many sessions were asked for. Raises InternalCallError."""
        now_s = time.monotonic()
        due = {
            session_id: settle
            for session_id, (at_s, settle) in islice(self._settled.items(), IDS_MAX)
            if at_s <= now_s - older_than_s
        }
        if not due:
            return 0
        missing = set(await self._ledger.missing(tuple(due), timeout_ms=timeout_ms))
        for session_id in due:
            if session_id not in missing:
                del self._settled[session_id]
                self._log.done(session_id)
        lost = [due[session_id] for session_id in missing if self._settled[session_id][0] <= now_s - LOST_S]
        for start in range(0, len(lost), ENTRIES_MAX):
            await self._tell(lost[start : start + ENTRIES_MAX])
        return len(due)

    async def _tell(self, settles: Sequence[Settle]) -> None:
        registration = self._ledger.registration
        await self._ledger.recovered(
            Recovered(
                edge_id=registration.edge_id,
                log_id=f"{self._log.path.name}/{registration.incarnation}",
                charged=tuple(posting_entry(settle) for settle in settles),
                released=(),
            )
        )
        now_s = time.monotonic()
        for settle in settles:
            # To the end, so that it is told again no sooner than LOST_S from now.
            del self._settled[settle.ref.session_id]
            self._settled[settle.ref.session_id] = (now_s, settle)
        self._metrics.recovered["told_again"] += len(settles)
        LOG.warning(
            "settled sessions never reached the ledger; they were told from the log",
            sessions=[settle.ref.session_id for settle in settles[:20]],
            count=len(settles),
        )

    async def finish(self) -> None:
        """At the end of the process: what is posted already leaves the log."""
        try:
            await self.confirm(older_than_s=0, timeout_ms=LAST_CONFIRM_MS)
        except InternalCallError:
            LOG.info("settled sessions stay in the log for the next start", waiting=self.waiting)
