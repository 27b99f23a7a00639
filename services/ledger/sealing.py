"""Seals the journal into the blocks of the hash chain, in the background.

Ids are taken before a transaction commits, so a lower one may turn up after a higher one. A block ends at an
id only when every transaction that was writing to the journal as that id was seen has ended: up to it nothing
can appear any more, and what is missing there never will. A writer that hangs delays sealing, nothing else.
Each block is one short transaction under an advisory lock: a crash leaves it whole or not there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from services.common import logs
from services.common.errors import MeterwayError
from services.ledger import chain
from services.ledger.database import Connection, Database
from services.ledger.journal_rows import POSTGRES_EPOCH, read_transactions
from services.ledger.metrics import LedgerMetrics
from services.ledger.queries import load_queries

LOG = logs.get("ledger.sealing")
SQL = load_queries("sealing")
INTERVAL_MS: Final = 5_000
BLOCK_TRANSACTIONS_MAX: Final = 1_000
BLOCKS_PER_ROUND_MAX: Final = 50
WRITERS_READS_MAX: Final = 10
WRITERS_PAUSE_MS: Final = 20
WAITING_COUNTED_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class _Seen:
    """An id, and who was writing when it was the newest."""

    server_started: datetime
    id: int
    writers: frozenset[str]


class Horizon:
    """Finds ids up to which nothing can appear in the journal any more."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen: _Seen | None = None

    async def final_id(self) -> int | None:
        """The newest such id, or None while a transaction that may still commit below it is running."""
        newest = await self._database.fetchrow(SQL["newest_transaction"])
        assert newest is not None
        seen = self._seen
        # Restored from a backup, or failed over: who was writing there says nothing here.
        if seen is None or seen.server_started != newest["server_started"] or seen.id > newest["id"]:
            # The id first, the writers after it: whoever has taken a lower one is writing, or has ended.
            writers = await self._writers()
            seen = _Seen(newest["server_started"], newest["id"], writers)
        for _read in range(WRITERS_READS_MAX):
            if not seen.writers:
                break
            await asyncio.sleep(WRITERS_PAUSE_MS / 1000)
            seen = _Seen(seen.server_started, seen.id, seen.writers & await self._writers())
        self._seen = seen if seen.writers else None
        return None if seen.writers else seen.id

    async def _writers(self) -> frozenset[str]:
        return frozenset(row["writer"] for row in await self._database.fetch(SQL["writers"]))


class Sealer:
    def __init__(self, database: Database, metrics: LedgerMetrics, *, interval_ms: int = INTERVAL_MS) -> None:
        self._database = database
        self._metrics = metrics
        self._horizon = Horizon(database)
        self._interval_ms = interval_ms

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            sealed = 0
            try:
                sealed = await self.seal_due()
            except MeterwayError as error:
                LOG.warning("the journal is not sealed for now", reason=error.message)
            except Exception:
                LOG.exception("sealing the journal failed")
            is_behind = sealed >= BLOCKS_PER_ROUND_MAX * BLOCK_TRANSACTIONS_MAX
            await asyncio.sleep(0 if is_behind else self._interval_ms / 1000)

    async def seal_due(self) -> int:
        """One round, of bounded work; returns the transactions sealed by this process. Raises Unavailable."""
        sealed = 0
        final_id = await self._horizon.final_id()
        if final_id is not None:
            for _block in range(BLOCKS_PER_ROUND_MAX):
                work = partial(_seal_block, final_id=final_id)
                block = await self._database.transaction(work)
                if block is None:
                    break
                sealed += block.transactions
                self._metrics.sealed_transactions.inc(block.transactions)
                # An altered chain can be told by what was logged elsewhere: `meterway verify --noted`.
                LOG.info("journal sealed", block=block.number, hash=block.hash.hex(), last_id=block.last_id)
        await self._measure()
        return sealed

    async def _measure(self) -> None:
        waiting = await self._database.fetchrow(SQL["waiting"], WAITING_COUNTED_MAX)
        assert waiting is not None
        self._metrics.unsealed_transactions.set(waiting["transactions"])
        self._metrics.seal_lag_seconds.set(waiting["lag_s"] or 0)


async def _seal_block(connection: Connection, *, final_id: int) -> chain.Block | None:
    """The next block, with ids up to `final_id`; None when nothing is left, or another ledger is sealing."""
    if not await connection.fetchval(SQL["try_lock"]):
        return None
    head = await connection.fetchrow(SQL["head"])
    after_id = head["last_id"] if head else 0
    rows = await connection.fetch(SQL["transactions"], after_id, final_id, BLOCK_TRANSACTIONS_MAX)
    if not rows:
        return None
    entries = await connection.fetch(SQL["entries"], after_id, rows[-1]["id"])
    sealed_at = datetime.now(UTC)
    # Off the loop: hashing a block takes milliseconds that posting shouldn't wait for.
    block, content = await asyncio.to_thread(
        lambda: chain.seal(
            read_transactions(rows, entries),
            number=head["number"] + 1 if head else 1,
            first_id=after_id + 1,
            prev_hash=head["hash"] if head else chain.GENESIS_HASH,
            sealed_at_us=(sealed_at - POSTGRES_EPOCH) // timedelta(microseconds=1),
        )
    )
    await connection.execute(
        SQL["insert_block"],
        block.number,
        block.first_id,
        block.last_id,
        block.transactions,
        block.entries,
        block.moved_nanos,
        sealed_at,
        block.prev_hash,
        block.hash,
        content,
    )
    return block
