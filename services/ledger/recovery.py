"""What edges' logs tell: which sessions the ledger lacks, and what those cost.

A session of an ended epoch is posted here; one of the current epoch is settled through a meter, which ends
its hold too. Either way it is charged once. A log of an edge that was given up comes too late: its sessions
are on the operator, and on the exception list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from services.common import logs
from services.common.contracts.charging import SessionRef, Settle
from services.common.contracts.lending import PostingEntry, PostingReply
from services.common.contracts.recovery import Recovered
from services.common.errors import BadRequest
from services.common.ids import SessionId, bucket_of, uuid7_ms
from services.ledger import postings
from services.ledger.database import Connection, Database
from services.ledger.exception_list import write_exceptions
from services.ledger.meters import Meters
from services.ledger.metrics import LedgerMetrics
from services.ledger.posting import Poster
from services.ledger.postings import Finding, is_session_id
from services.ledger.queries import load_queries

LOG = logs.get("ledger.recovery")
SQL = load_queries("recovery")
IDS_PER_CALL_MAX: Final = 10_000
ENTRIES_PER_CALL_MAX: Final = 500
RECOVERY_SEQ: Final = 2**31
"""Above every `seq` that an edge has used for the session."""


@dataclass(slots=True)
class _Sorted:
    """`posted`: in the ledger already. `late`: of an edge that was given up. `current`: of the bucket's
    current epoch. `others`: for the poster."""

    posted: list[PostingEntry]
    late: list[PostingEntry]
    current: list[PostingEntry]
    others: list[PostingEntry]


class Recovery:
    def __init__(self, database: Database, meters: Meters, poster: Poster, metrics: LedgerMetrics) -> None:
        self._database = database
        self._meters = meters
        self._poster = poster
        self._metrics = metrics

    async def missing(self, session_ids: Sequence[SessionId]) -> tuple[SessionId, ...]:
        """Those that are neither usage nor known to have ended otherwise, in their order.

        Raises BadRequest (more than 10,000), Unavailable.
        """
        if len(session_ids) > IDS_PER_CALL_MAX:
            raise BadRequest(f"A call may ask for at most {IDS_PER_CALL_MAX} sessions. Please split it.")
        posted = await self._posted(session_ids)
        rows = await self._database.fetch(SQL["ended_among"], list(session_ids))
        known = posted.keys() | {row["session_id"] for row in rows}
        return tuple(session_id for session_id in session_ids if session_id not in known)

    async def recover(self, told: Recovered) -> PostingReply:
        """Afterwards all of it is in the ledger, or settled in Redis and on its way.

        Raises BadRequest (more than 500), and Unavailable: send it again.
        """
        if len(told.charged) + len(told.released) > ENTRIES_PER_CALL_MAX:
            raise BadRequest(f"A call may tell of at most {ENTRIES_PER_CALL_MAX} sessions. Please split it.")
        sorted_ = await self._sort(told.charged)
        await self._list_late(told, sorted_.late)
        await self._meters.settle([_settle(entry) for entry in sorted_.current])
        reply = await self._poster.post(
            [msgspec.structs.replace(entry, past_redis=True) for entry in sorted_.others]
        )
        await self._note_ended(sorted_.others, told.released)
        LOG.info(
            "a log was read",
            edge_id=told.edge_id,
            log_id=told.log_id,
            charged=len(told.charged),
            released=len(told.released),
            late=len(sorted_.late),
        )
        return PostingReply(
            posted=reply.posted + len(sorted_.current),
            duplicates=reply.duplicates + len(sorted_.posted),
            exceptions=reply.exceptions + len(sorted_.late),
        )

    async def _posted(self, session_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Usage source and cost of those that are usage."""
        ids = sorted(session_id for session_id in session_ids if is_session_id(session_id))
        if not ids:
            return {}
        rows = await self._database.fetch(SQL["posted_among"], ids, ids[0], ids[-1])
        return {row["session_id"]: (row["usage_source"], row["cost_nanos"]) for row in rows}

    async def _sort(self, entries: Sequence[PostingEntry]) -> _Sorted:
        found = _Sorted([], [], [], [])
        sound = [entry for entry in entries if postings.find_fault(entry) is None]
        sound_ids = {entry.record.session_id for entry in sound}
        posted = await self._posted([entry.record.session_id for entry in sound])
        late = await self._too_late(sound)
        buckets = sorted({bucket_of(entry.record.account_id) for entry in sound})
        epochs = {
            row["bucket"]: row["epoch"] for row in await self._database.fetch(SQL["epochs_of"], buckets)
        }
        for entry in entries:
            session_id, cost_nanos = entry.record.session_id, entry.record.cost_nanos
            source, charged_nanos = posted.get(session_id, ("", -1))
            epoch = epochs.get(bucket_of(entry.record.account_id), 0)
            if source and charged_nanos == cost_nanos:
                found.posted.append(entry)
            elif source == "checkpoint" or (session_id in late and not source):
                found.late.append(entry)
            elif not source and session_id in sound_ids and entry.epoch >= epoch:
                found.current.append(entry)
            else:
                found.others.append(entry)
        return found

    async def _too_late(self, entries: Sequence[PostingEntry]) -> set[str]:
        rows = await self._database.fetch(
            SQL["too_late"],
            [entry.record.session_id for entry in entries],
            [postings.clean_text(entry.record.edge_id) for entry in entries],
            [bucket_of(entry.record.account_id) for entry in entries],
            [entry.epoch for entry in entries],
            [uuid7_ms(entry.record.session_id) for entry in entries],
        )
        return {row["session_id"] for row in rows}

    async def _list_late(self, told: Recovered, entries: Sequence[PostingEntry]) -> None:
        if not entries:
            return
        reason = f"edge {entries[0].record.edge_id} was given up; its log {told.log_id} came later"
        rows = [
            postings.finding(Finding.LATE_LOG, entry, postings.raw_detail(entry, reason)) for entry in entries
        ]

        async def work(connection: Connection) -> None:
            await write_exceptions(connection, rows)
            ids = [postings.clean_text(entry.record.session_id) for entry in entries]
            await connection.execute(SQL["insert_ended"], ids, "exception")

        await self._database.transaction(work)
        self._metrics.exceptions.labels(kind=Finding.LATE_LOG).inc(len(entries))
        LOG.error(
            "a log came too late",
            edge_id=told.edge_id,
            log_id=told.log_id,
            sessions=[entry.record.session_id for entry in entries[:20]],
        )

    async def _note_ended(self, entries: Sequence[PostingEntry], released: Sequence[str]) -> None:
        """Released sessions, and those on the exception list: no log need tell of them again."""
        charged = [entry.record.session_id for entry in entries]
        posted = await self._posted(charged)
        refused = [postings.clean_text(one) for one in charged if one not in posted]
        ended = [postings.clean_text(one) for one in released]

        async def work(connection: Connection) -> None:
            await connection.execute(SQL["insert_ended"], refused, "exception")
            await connection.execute(SQL["insert_ended"], ended, "released")
            ids = [one for one in released if is_session_id(one)]
            await connection.execute(SQL["resolve_released"], ids)

        if refused or ended:
            await self._database.transaction(work)


def _settle(entry: PostingEntry) -> Settle:
    record = entry.record
    ref = SessionRef(
        session_id=record.session_id,
        account_id=record.account_id,
        key_id=record.key_id,
        bucket=bucket_of(record.account_id),
        epoch=entry.epoch,
    )
    return Settle(ref=ref, seq=RECOVERY_SEQ, record=record)
