"""Verification: is the journal still what was sealed, and do the books balance?

Follows the hash chain beside the journal, both through server-side cursors of one read-only snapshot, so its
memory does not grow with the journal. The snapshot holds back vacuum while it is read. Nothing is changed.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence
from operator import itemgetter
from typing import Any, Final

import asyncpg
import msgspec

from services.common.errors import BadRequest, Conflict
from services.ledger import chain, reconcile
from services.ledger.chain import Block, Transaction
from services.ledger.chain_check import NOTHING, Fault, Link, SealedBlock, check_block, check_link
from services.ledger.database import Row, translated_errors
from services.ledger.journal_rows import read_entry, read_transactions, timestamp_us
from services.ledger.queries import load_queries

SQL = load_queries("verify")
BOOKS = load_queries("reconcile")
FAULTS_MAX: Final = 1_000
BLOCKS_PER_READ: Final = 4
ROWS_PER_READ: Final = 4_000
STATEMENT_TIMEOUT: Final = "30min"
_LOWEST_ID: Final = -(2**63)


class Noted(msgspec.Struct, frozen=True):
    """A block as an earlier verification, or the ledger's log, told it."""

    number: int
    hash: str


class Verification(msgspec.Struct, frozen=True):
    """`ok`: no faults. `blocks`, `transactions`, `entries`: how many were checked against the chain.
    `unsealed_transactions`: newer than the last block. `head`: the last block; note it elsewhere.
    `more_faults`: how many were found beyond those listed."""

    ok: bool
    blocks: int
    transactions: int
    entries: int
    unsealed_transactions: int
    head: Noted | None
    faults: tuple[Fault, ...]
    more_faults: int


async def run(database_url: str, *, from_block: int = 1, noted: Noted | None = None) -> Verification:
    """Check the chain from `from_block`, and all of the books.

    Raises BadRequest (there is no block before `from_block`), Conflict (one is running), Unavailable.
    """
    async with translated_errors(), _snapshot(database_url) as connection:
        if not await connection.fetchval(SQL["try_lock"]):
            raise Conflict("A verification is running already. Please wait for its end.")
        return await _Verifier(connection).run(from_block, noted)


@contextlib.asynccontextmanager
async def _snapshot(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of its own: the pool's give up a statement too soon for a large journal."""
    connection = await asyncpg.connect(
        database_url,
        timeout=5,
        server_settings={
            "application_name": "meterway-verify",
            "statement_timeout": STATEMENT_TIMEOUT,
            "timezone": "UTC",
        },
    )
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            yield connection
    finally:
        await connection.close(timeout=5)


class _Cursor:
    """Rows in the order of an id, read piece by piece up to a given one."""

    def __init__(self, cursor: Any, column: str) -> None:
        self._cursor = cursor
        self._id = itemgetter(column)
        self._rows: list[Row] = []
        self._is_over = False

    async def piece(self) -> list[Row]:
        """Whatever comes next; empty at the end."""
        if not self._rows and not self._is_over:
            self._rows = await self._cursor.fetch(ROWS_PER_READ)
            self._is_over = len(self._rows) < ROWS_PER_READ
        piece, self._rows = self._rows, []
        return piece

    async def take(self, last_id: int) -> list[Row]:
        """All that comes up to `last_id`."""
        return [row async for piece in self.pieces(last_id) for row in piece]

    async def pieces(self, last_id: int) -> AsyncIterator[list[Row]]:
        """The same, without keeping it."""
        while piece := await self.piece():
            count = bisect_right(piece, last_id, key=self._id)
            self._rows = piece[count:]
            yield piece[:count]
            if self._rows:
                return


class _Verifier:
    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._faults: list[Fault] = []
        self._more_faults = 0
        self._blocks = self._transactions = self._entries = 0

    async def run(self, from_block: int, noted: Noted | None) -> Verification:
        link, first_id = await self._start(from_block)
        await self._check_noted(noted)
        transactions = await self._connection.cursor(SQL["transactions"], first_id)
        entries = await self._connection.cursor(SQL["entries"], first_id)
        self._transaction_rows = _Cursor(transactions, "id")
        self._entry_rows = _Cursor(entries, "transaction_id")
        link = await self._follow(link, from_block)
        unsealed = await self._read_unsealed()
        await self._check_books()
        head = await self._connection.fetchrow(SQL["block_hash"], link.number)
        return Verification(
            ok=not self._faults,
            blocks=self._blocks,
            transactions=self._transactions,
            entries=self._entries,
            unsealed_transactions=unsealed,
            head=Noted(number=link.number, hash=head["hash"].hex()) if head else None,
            faults=tuple(self._faults),
            more_faults=self._more_faults,
        )

    async def _start(self, from_block: int) -> tuple[Link, int]:
        if from_block <= 1:
            return Link(0, 0, frozenset({chain.GENESIS_HASH})), _LOWEST_ID
        before = await self._connection.fetchrow(SQL["block_hash"], from_block - 1)
        if before is None:
            raise BadRequest(
                f"There is no block {from_block - 1} to begin behind. Please give a lower number.",
                param="from_block",
            )
        return Link(from_block - 1, before["last_id"], frozenset({before["hash"]})), before["last_id"] + 1

    async def _check_noted(self, noted: Noted | None) -> None:
        if noted is None:
            return
        row = await self._connection.fetchrow(SQL["block_hash"], noted.number)
        found = row["hash"].hex() if row else NOTHING
        if found != noted.hash:
            fault = Fault(
                what="block is not the one noted",
                subject=f"block {noted.number}",
                block=noted.number,
                field="hash",
                expected=noted.hash,
                found=found,
            )
            self._add([fault])

    async def _follow(self, link: Link, from_block: int) -> Link:
        cursor = await self._connection.cursor(SQL["blocks"], from_block)
        rows = await cursor.fetch(BLOCKS_PER_READ)
        while rows:
            if len(rows) == 1:
                rows += await cursor.fetch(BLOCKS_PER_READ)
            next_first_id = rows[1]["first_id"] if len(rows) > 1 else None
            link = await self._check_block(rows.pop(0), link, next_first_id)
        return link

    async def _check_block(self, row: Row, link: Link, next_first_id: int | None) -> Link:
        block = _block(row)
        # Off the loop: the ledger serves meanwhile.
        stored = await asyncio.to_thread(SealedBlock, block, row["content"])
        faults, link = check_link(link, block)
        self._add(faults)
        if faults:
            await self._pass_over(link.last_id)
        last_id = stored.last_id(next_first_id)
        found = await self._read_journal(last_id)
        self._add(await asyncio.to_thread(check_block, stored, link, found))
        self._blocks += 1
        self._transactions += len(found)
        self._entries += sum(len(transaction.entries) for transaction in found)
        hashes = {block.hash} if stored.hash is None else {block.hash, stored.hash}
        return Link(block.number, last_id, frozenset(hashes))

    async def _pass_over(self, last_id: int) -> None:
        """What a deleted block had: nothing is left to compare it with."""
        for cursor in (self._transaction_rows, self._entry_rows):
            async for _piece in cursor.pieces(last_id):
                pass

    async def _read_journal(self, last_id: int) -> list[Transaction]:
        rows = await self._transaction_rows.take(last_id)
        entries = await self._entry_rows.take(last_id)
        self._add(_orphans(entries, {row["id"] for row in rows}))
        return await asyncio.to_thread(read_transactions, rows, entries)

    async def _read_unsealed(self) -> int:
        """What comes behind the last block; returns how many transactions. Their sums are checked with the
        books."""
        unsealed = 0
        while rows := await self._transaction_rows.piece():
            unsealed += len(rows)
            entries = await self._entry_rows.take(rows[-1]["id"])
            self._add(_orphans(entries, {row["id"] for row in rows}))
        while entries := await self._entry_rows.piece():
            self._add(_orphans(entries, set()))
        return unsealed

    async def _check_books(self) -> None:
        total = await self._connection.fetchval(SQL["total"])
        if total != "0":
            fault = Fault(what="sum of all entries is zero", subject="journal", expected="0", found=total)
            self._add([fault])
        for what, query in reconcile.BOOK_CHECKS.items():
            self._add(await self._check_book(what, BOOKS[query]))
        for row in await self._connection.fetch(SQL["stray_entries"], FAULTS_MAX):
            self._add([_entry_fault("entry stands where it can't belong", row)])
        for row in await self._connection.fetch(SQL["accounts_without_balance"], FAULTS_MAX):
            fault = Fault(
                what="account has a balance",
                subject=row["account_id"],
                expected="a balance row",
                found=NOTHING,
            )
            self._add([fault])

    async def _check_book(self, what: str, sql: str) -> Sequence[Fault]:
        try:
            # A savepoint: an absurd amount overflows the sum, and the other checks go on.
            async with self._connection.transaction():
                rows = await self._connection.fetch(sql, FAULTS_MAX)
        except asyncpg.NumericValueOutOfRangeError:
            return [Fault(what=what, subject="books", expected="a sum", found="a number out of range")]
        return [
            Fault(
                what=what,
                subject=row["subject"],
                transaction_id=int(row["subject"]) if what.startswith("journal transaction") else None,
                expected=str(row["expected"]),
                found=str(row["found"]),
            )
            for row in rows
        ]

    def _add(self, faults: Sequence[Fault]) -> None:
        room = FAULTS_MAX - len(self._faults)
        self._faults += faults[:room]
        self._more_faults += len(faults[room:])


def _orphans(entries: Sequence[Row], transaction_ids: set[int]) -> list[Fault]:
    return [
        _entry_fault("entry without its transaction", row)
        for row in entries
        if row["transaction_id"] not in transaction_ids
    ]


def _entry_fault(what: str, row: Row) -> Fault:
    number = row["transaction_id"]
    return Fault(
        what=what,
        subject=f"transaction {number}",
        transaction_id=number,
        expected=NOTHING,
        found=chain.describe(read_entry(row)),
    )


def _block(row: Row) -> Block:
    return Block(
        number=row["number"],
        first_id=row["first_id"],
        last_id=row["last_id"],
        transactions=row["transactions"],
        entries=row["entries"],
        moved_nanos=int(row["moved_nanos"]),
        sealed_at_us=timestamp_us(row["sealed_at"]),
        prev_hash=bytes(row["prev_hash"]),
        hash=bytes(row["hash"]),
    )
