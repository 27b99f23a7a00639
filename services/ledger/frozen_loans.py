"""The loans of ended epochs go back to their balances: at once, but for what sessions still hold of them.

Decided by `promises`, bucket by bucket, in a transaction in which no edge can register anew. What is posted
later all the same is charged to `available`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from services.common import logs
from services.common.contracts.lending import AuditRequest
from services.common.ids import AccountId
from services.ledger import claims, journal, promises
from services.ledger.database import Connection, Database
from services.ledger.meters import Meters, MetersAway
from services.ledger.metrics import LedgerMetrics
from services.ledger.postings import JournalLine, available_account, escrow_account
from services.ledger.promises import Standing
from services.ledger.queries import load_queries

LOG = logs.get("ledger.frozen_loans")
SQL = load_queries("frozen_loans")
FENCES_PER_ROUND_MAX: Final = 256
ACCOUNTS_PER_TRANSACTION_MAX: Final = 500
OUTBOX_ENTRIES_READ_MAX: Final = 10_000
"""A meter adds up that many entries of a bucket: with more, nobody knows what waits."""


class FrozenLoans:
    def __init__(self, database: Database, meters: Meters, metrics: LedgerMetrics) -> None:
        self._database = database
        self._meters = meters
        self._metrics = metrics

    async def return_due(self) -> int:
        """One round; returns the nanodollars that went back. Raises Unavailable."""
        returned_nanos = 0
        for row in await self._database.fetch(SQL["open_fences"], FENCES_PER_ROUND_MAX):
            returned_nanos += await self._return_epoch(row["bucket"], row["epoch"])
        self._metrics.open_fences.set(await self._database.fetchval(SQL["count_open_fences"]))
        return returned_nanos

    async def _return_epoch(self, bucket: int, epoch: int) -> int:
        if await self._database.transaction(partial(edges_waited_for, bucket=bucket, epoch=epoch)):
            return 0
        # Nothing more is lent in this epoch: who has nothing out now never will.
        rows = await self._database.fetch(SQL["frozen_accounts"], bucket, epoch)
        account_ids = [AccountId(row["account_id"]) for row in rows]
        unposted = await self._unposted(bucket, epoch, account_ids) if account_ids else {}
        returned_nanos, left_nanos = 0, 0
        for start in range(0, len(account_ids), ACCOUNTS_PER_TRANSACTION_MAX):
            work = partial(
                return_escrows,
                account_ids=account_ids[start : start + ACCOUNTS_PER_TRANSACTION_MAX],
                bucket=bucket,
                epoch=epoch,
                unposted_nanos=unposted,
            )
            back, left = await self._database.transaction(work)
            returned_nanos, left_nanos = returned_nanos + back, left_nanos + left
        if not left_nanos:
            await self._database.execute(SQL["close_fence"], bucket, epoch)
        if returned_nanos:
            LOG.info("frozen loans returned", bucket=bucket, epoch=epoch, nanos=returned_nanos)
        self._metrics.returned_nanos.inc(returned_nanos)
        return returned_nanos

    async def _unposted(self, bucket: int, epoch: int, account_ids: Sequence[AccountId]) -> dict[str, int]:
        """What waits in the outbox of this epoch, by account. Raises MetersAway."""
        request = AuditRequest(accounts=tuple(account_ids), bucket_from=bucket, bucket_to=bucket)
        try:
            audit = await self._meters.audit(request)
        except MetersAway:
            raise MetersAway("No meter can say whether the outbox is empty.", retry_after_ms=1_000) from None
        if audit.outbox_entries >= OUTBOX_ENTRIES_READ_MAX:
            raise MetersAway("Too much waits in the outbox to be added up.", retry_after_ms=1_000)
        return {
            account_id: by_epoch.get(epoch, 0) for account_id, by_epoch in audit.unposted_by_epoch.items()
        }


async def edges_waited_for(connection: Connection, *, bucket: int, epoch: int) -> list[str]:
    """Ids of the edges without whose promise this epoch's loans stay frozen."""
    rows = await connection.fetch(SQL["lock_edges"], bucket)
    standings = [
        Standing(row["id"], row["incarnation"], row["promised_by"], row["promised_epoch"], row["gone_epoch"])
        for row in rows
    ]
    return promises.waits_for(standings, epoch)


async def return_escrows(
    connection: Connection,
    *,
    account_ids: Sequence[str],
    bucket: int,
    epoch: int,
    unposted_nanos: Mapping[str, int],
) -> tuple[int, int]:
    """Move what may go back of these loans to `available`; (nanodollars moved, those left in escrow)."""
    locked = await connection.fetch(SQL["lock_frozen"], account_ids, epoch)
    left_nanos = sum(row["rest_nanos"] for row in locked)
    # Asked again under lock: an edge may have been registered since.
    if await edges_waited_for(connection, bucket=bucket, epoch=epoch):
        return 0, left_nanos
    held = {
        row["account_id"]: row["held_nanos"]
        for row in await connection.fetch(SQL["holds"], account_ids, epoch)
    }
    returns: dict[str, int] = {}
    refs: dict[str, str] = {}
    for row in locked:
        account_id = row["account_id"]
        nanos = promises.returnable_nanos(
            rest=row["rest_nanos"],
            held=held.get(account_id, 0),
            unposted=unposted_nanos.get(account_id, 0),
        )
        if nanos > 0:
            returns[account_id] = nanos
            # A loan goes back in parts: what had gone back before tells them apart.
            refs[account_id] = f"{account_id}:{epoch}:{row['returned_nanos']}"
    if returns:
        await _move_back(connection, epoch, returns, refs)
    moved_nanos = sum(returns.values())
    return moved_nanos, left_nanos - moved_nanos


async def _move_back(
    connection: Connection, epoch: int, returns: Mapping[str, int], refs: Mapping[str, str]
) -> None:
    owners, nanos = list(returns), list(returns.values())
    await connection.fetch(SQL["lock_balances"], owners)
    await connection.execute(SQL["return_escrows"], owners, epoch, nanos)
    await connection.execute(SQL["return_to_balances"], owners, nanos)
    lines = {
        refs[account_id]: (
            JournalLine(escrow_account(account_id), -amount, account_id, epoch),
            JournalLine(available_account(account_id), amount, account_id),
        )
        for account_id, amount in returns.items()
    }
    await journal.write(connection, kind="loan_return", lines_by_ref=lines)
    await claims.serve(connection, returns)
