"""Posting: finished sessions become usage rows and journal entries, each session once.

Calls that wait while a transaction runs are posted together in the next one. A transaction locks
the escrows it charges in account order, drops the sessions that are in the ledger already, charges
the rest and writes all of it, or nothing. An entry that can't be posted goes to the exception list
as it came; the rest posts.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import asyncpg

from services.common import logs
from services.common.contracts.lending import PostingEntry, PostingReply
from services.common.errors import BadRequest
from services.common.ids import bucket_of, uuid7_ms
from services.ledger import journal, postings
from services.ledger.batching import Batcher
from services.ledger.database import Connection, Database, DatabaseUnavailable
from services.ledger.exception_list import write_exceptions
from services.ledger.metrics import LedgerMetrics
from services.ledger.partitions import Partitions
from services.ledger.postings import Charge, EscrowKey, ExceptionRow, Finding
from services.ledger.price_book import PriceBook
from services.ledger.queries import load_queries
from services.ledger.usage_rows import COLUMNS, usage_rows

LOG = logs.get("ledger.posting")
SQL = load_queries("posting")
ENTRIES_PER_CALL_MAX = 500
ENTRIES_PER_TRANSACTION_MAX = 2_000
ENTRIES_WAITING_MAX = 50_000
CHECKPOINT = "checkpoint"


class Result(Enum):
    POSTED = "posted"
    DUPLICATE = "duplicate"
    EXCEPTION = "exception"


@dataclass(slots=True)
class _Batch:
    """One transaction's work. `pending`: what still has no result, by its place in the call."""

    results: dict[int, Result] = field(default_factory=dict)
    pending: dict[int, PostingEntry] = field(default_factory=dict)
    charges: list[Charge] = field(default_factory=list)
    late_use: dict[str, int] = field(default_factory=dict)
    findings: list[ExceptionRow] = field(default_factory=list)

    def finish(self, place: int, result: Result) -> None:
        self.results[place] = result
        del self.pending[place]

    def set_aside(self, place: int, kind: Finding, reason: str) -> None:
        entry = self.pending[place]
        self.findings.append(postings.finding(kind, entry, postings.raw_detail(entry, reason)))
        self.finish(place, Result.EXCEPTION)


class Poster:
    def __init__(self, database: Database, metrics: LedgerMetrics) -> None:
        self._database = database
        self._metrics = metrics
        self._prices = PriceBook()
        self._partitions = Partitions(database)
        self._batcher: Batcher[Sequence[PostingEntry], PostingReply] = Batcher(
            self._post_calls,
            size_of=len,
            batch_size_max=ENTRIES_PER_TRANSACTION_MAX,
            waiting_size_max=ENTRIES_WAITING_MAX,
        )
        self.late_use_posted = asyncio.Event()
        """Set when use came past Redis, which must be told of it."""

    async def post(self, entries: Sequence[PostingEntry]) -> PostingReply:
        """Afterwards every entry is in the ledger: posted, seen before, or on the exception list.

        Raises BadRequest (more than 500 entries) and Unavailable (nothing is sure: send it again).
        """
        if len(entries) > ENTRIES_PER_CALL_MAX:
            raise BadRequest(f"A call may post at most {ENTRIES_PER_CALL_MAX} entries. Please split it.")
        if not entries:
            return PostingReply(posted=0, duplicates=0, exceptions=0)
        return await self._batcher.submit(entries)

    async def prepare(self) -> None:
        """Create the partitions of this month and the next ones."""
        await self._partitions.create_ahead()

    async def close(self) -> None:
        await self._batcher.close()

    async def _post_calls(self, calls: Sequence[Sequence[PostingEntry]]) -> list[PostingReply]:
        results = iter(await self._post_isolated([entry for call in calls for entry in call]))
        replies = []
        for call in calls:
            counts = Counter(next(results) for _entry in call)
            replies.append(
                PostingReply(
                    posted=counts[Result.POSTED],
                    duplicates=counts[Result.DUPLICATE],
                    exceptions=counts[Result.EXCEPTION],
                )
            )
        return replies

    async def _post_isolated(self, entries: Sequence[PostingEntry]) -> list[Result]:
        """Post all at once; when the database refuses that, find the entry it refuses by halving."""
        try:
            return await self._post_together(entries)
        except DatabaseUnavailable:
            raise
        except (asyncpg.PostgresError, ValueError, OverflowError) as error:
            if len(entries) == 1:
                return [await self._list_refused(entries[0], error)]
        middle = len(entries) // 2
        first = await self._post_isolated(entries[:middle])
        return first + await self._post_isolated(entries[middle:])

    async def _post_together(self, entries: Sequence[PostingEntry]) -> list[Result]:
        faults = [postings.find_fault(entry) for entry in entries]
        sound = [entry for entry, fault in zip(entries, faults, strict=True) if fault is None]
        await self._partitions.ensure(uuid7_ms(entry.record.session_id) for entry in sound)

        async def work(connection: Connection) -> _Batch:
            batch = _Batch(pending=dict(enumerate(entries)))
            for place, fault in enumerate(faults):
                if fault is not None:
                    batch.set_aside(place, Finding.BAD_ENTRY, fault)
            await self._charge(connection, batch)
            await self._write(connection, batch)
            return batch

        batch = await self._database.transaction(work)
        self._count(batch)
        if batch.late_use:
            self.late_use_posted.set()
        return [batch.results[place] for place in range(len(entries))]

    async def _charge(self, connection: Connection, batch: _Batch) -> None:
        current_epochs = await _share_epochs(connection, batch.pending.values())
        rests = await self._lock_escrows(connection, batch.pending.values())
        await _set_aside_unknown_accounts(connection, batch, rests)
        await _drop_posted_before(connection, batch)
        entries = list(batch.pending.values())
        available = await _lock_balances(connection, entries, rests)
        await self._prices.load(
            connection, {(entry.record.model, entry.record.price_version) for entry in entries}
        )
        batch.charges, findings = postings.charge_all(entries, rests, available)
        batch.findings += findings
        batch.late_use = postings.late_use(batch.charges, current_epochs)
        for place, entry in list(batch.pending.items()):
            price = self._prices.get(entry.record.model, entry.record.price_version)
            mismatch = postings.check_price(entry, price)
            if mismatch is not None:
                batch.findings.append(mismatch)
            batch.finish(place, Result.POSTED)

    async def _lock_escrows(
        self, connection: Connection, entries: Iterable[PostingEntry]
    ) -> dict[EscrowKey, int]:
        keys = postings.escrow_keys(list(entries))
        rows = await connection.fetch(
            SQL["lock_escrows"], [account for account, _epoch in keys], [epoch for _account, epoch in keys]
        )
        return {(row["account_id"], row["epoch"]): row["rest_nanos"] for row in rows}

    async def _write(self, connection: Connection, batch: _Batch) -> None:
        if batch.charges:
            await _insert_usage(connection, batch.charges)
            await _move_money(connection, batch.charges, batch.late_use)
        await write_exceptions(connection, batch.findings)

    async def _list_refused(self, entry: PostingEntry, error: Exception) -> Result:
        LOG.error("posting refused by the database", error=repr(error), session_id=entry.record.session_id)
        row = postings.finding(
            Finding.BAD_ENTRY, entry, postings.raw_detail(entry, f"refused: {type(error).__name__}")
        )
        await self._database.transaction(lambda connection: write_exceptions(connection, [row]))
        self._metrics.exceptions.labels(kind=row.kind).inc()
        return Result.EXCEPTION

    def _count(self, batch: _Batch) -> None:
        metrics = self._metrics
        counts = Counter(batch.results.values())
        metrics.posting_batch_sessions.observe(len(batch.results))
        metrics.posted_sessions.inc(counts[Result.POSTED])
        metrics.duplicate_sessions.inc(counts[Result.DUPLICATE])
        metrics.charged_nanos.inc(sum(charge.entry.record.cost_nanos for charge in batch.charges))
        metrics.overrun_nanos.inc(sum(charge.overrun_nanos for charge in batch.charges))
        for row in batch.findings:
            metrics.exceptions.labels(kind=row.kind).inc()


async def _share_epochs(connection: Connection, entries: Iterable[PostingEntry]) -> dict[int, int]:
    """The current epochs by bucket. No fence can commit until this transaction ends."""
    await connection.execute(SQL["share_epochs"])
    buckets = sorted({bucket_of(entry.record.account_id) for entry in entries})
    rows = await connection.fetch(SQL["epochs_of"], buckets)
    return {row["bucket"]: row["epoch"] for row in rows}


async def _set_aside_unknown_accounts(
    connection: Connection, batch: _Batch, rests: Mapping[EscrowKey, int]
) -> None:
    """An account without escrow may still be known: a free model needs no loan."""
    doubtful = {
        entry.record.account_id
        for entry in batch.pending.values()
        if (entry.record.account_id, entry.epoch) not in rests
    }
    if not doubtful:
        return
    known = {row["id"] for row in await connection.fetch(SQL["known_accounts"], sorted(doubtful))}
    for place, entry in list(batch.pending.items()):
        if entry.record.account_id in doubtful - known:
            batch.set_aside(place, Finding.UNKNOWN_ACCOUNT, "there is no such account")


async def _drop_posted_before(connection: Connection, batch: _Batch) -> None:
    if not batch.pending:
        return
    ids = sorted({entry.record.session_id for entry in batch.pending.values()})
    rows = await connection.fetch(SQL["posted_sessions"], ids, ids[0], ids[-1])
    seen = {row["session_id"]: (row["account_id"], row["cost_nanos"]) for row in rows}
    for place, entry in list(batch.pending.items()):
        record = entry.record
        before = seen.get(record.session_id)
        if before is None:
            seen[record.session_id] = (record.account_id, record.cost_nanos)
        elif before == (record.account_id, record.cost_nanos) or (
            # A checkpoint is what is charged for want of better: the session's own record came first.
            record.usage_source == CHECKPOINT and before[0] == record.account_id
        ):
            batch.finish(place, Result.DUPLICATE)
        else:
            reason = f"posted before for account {before[0]} at {before[1]} nanodollars"
            batch.set_aside(place, Finding.CHARGE_MISMATCH, reason)


async def _lock_balances(
    connection: Connection, entries: Sequence[PostingEntry], rests: Mapping[EscrowKey, int]
) -> dict[str, int]:
    """Lock only the balances that are charged beyond their loans: a top-up needn't wait for posting."""
    loan_parts: dict[EscrowKey, int] = {}
    beyond: set[str] = set()
    for entry in entries:
        key = (entry.record.account_id, entry.epoch)
        loan_parts[key] = loan_parts.get(key, 0) + entry.loan_nanos
        if entry.record.cost_nanos > entry.loan_nanos:
            beyond.add(entry.record.account_id)
    beyond |= {
        account_id
        for (account_id, epoch), part in loan_parts.items()
        if part > rests.get((account_id, epoch), 0)
    }
    if not beyond:
        return {}
    rows = await connection.fetch(SQL["lock_balances"], sorted(beyond))
    return {row["account_id"]: row["available_nanos"] for row in rows}


async def _insert_usage(connection: Connection, charges: Sequence[Charge]) -> None:
    """COPY costs a third of INSERT. It has no ON CONFLICT, and needs none: what was posted before has been
    dropped, under the lock of its escrow."""
    try:
        await connection.copy_records_to_table("usage", records=usage_rows(charges), columns=COLUMNS)
    except asyncpg.UniqueViolationError as error:
        # The same session came with another epoch or account at this very moment: look again.
        raise asyncpg.SerializationError("a session was posted meanwhile") from error


async def _move_money(connection: Connection, charges: Sequence[Charge], late_use: Mapping[str, int]) -> None:
    totals = postings.add_up(charges)
    settled = [
        (account_id, epoch, nanos)
        for account_id, total in totals.items()
        for epoch, nanos in total.escrow_nanos.items()
    ]
    if settled:
        await connection.execute(SQL["settle_escrows"], *map(list, zip(*settled, strict=True)))
    charged = [
        (account_id, total.available_nanos) for account_id, total in totals.items() if total.available_nanos
    ]
    if charged:
        await connection.execute(SQL["charge_balances"], *map(list, zip(*charged, strict=True)))
    lines = {total.ref: postings.journal_lines(account_id, total) for account_id, total in totals.items()}
    await journal.write(
        connection, kind="usage", lines_by_ref={ref: entries for ref, entries in lines.items() if entries}
    )
    used = postings.key_use(charges)
    used |= {(key_id, postings.LATE_WINDOW): nanos for key_id, nanos in late_use.items()}
    if used:
        await connection.execute(
            SQL["add_key_use"],
            [postings.clean_text(key_id) for key_id, _window in used],
            [window for _key_id, window in used],
            list(used.values()),
        )
    if late_use:
        await connection.execute(SQL["wish_push"], [postings.clean_text(key_id) for key_id in late_use])
