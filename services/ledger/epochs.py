"""Epochs: the fencing tokens of the buckets, and what happens to the loans of one that has ended.

A fence ends a bucket's epoch: its loans are frozen. They go back to their balances when the grace
time is over and nothing of the old epoch waits in the outbox; until then they are never lent again.
What is posted later still is charged to `available`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from services.common import logs
from services.common.contracts.lending import AuditReply, AuditRequest, FenceRequest
from services.common.errors import BadRequest, MeterwayError
from services.common.ids import BUCKETS, AccountId
from services.ledger import journal
from services.ledger.database import Connection, Database
from services.ledger.meters import MeterNotConfirmed, Meters, MetersAway
from services.ledger.metrics import LedgerMetrics
from services.ledger.posting import Poster
from services.ledger.postings import JournalLine, available_account, escrow_account
from services.ledger.queries import load_queries

LOG = logs.get("ledger.epochs")
SQL = load_queries("epochs")
FENCES_PER_ROUND_MAX = 256
ACCOUNTS_PER_TRANSACTION_MAX = 500


async def current_epochs(database: Database) -> tuple[int, ...]:
    """`[bucket]`: its epoch."""
    return tuple(row["epoch"] for row in await database.fetch(SQL["all_epochs"]))


async def fence(database: Database, metrics: LedgerMetrics, request: FenceRequest) -> dict[int, int]:
    """Open max(current, seen) + 1 for each bucket, all in one transaction; returns the new epochs.

    Raises BadRequest.
    """
    if len(request.buckets) != len(request.seen_epochs) or len(set(request.buckets)) != len(request.buckets):
        raise BadRequest("Each bucket must come once, with the epoch seen.")
    if not all(0 <= bucket < BUCKETS for bucket in request.buckets) or any(
        e < 0 for e in request.seen_epochs
    ):
        raise BadRequest(f"Buckets are numbered 0 to {BUCKETS - 1}, epochs from 0.")
    seen = dict(zip(request.buckets, request.seen_epochs, strict=True))

    async def work(connection: Connection) -> dict[int, int]:
        rows = await connection.fetch(SQL["lock_buckets"], sorted(seen))
        opened = {row["bucket"]: max(row["epoch"], seen[row["bucket"]]) + 1 for row in rows}
        buckets, ended = [row["bucket"] for row in rows], [row["epoch"] for row in rows]
        await connection.execute(SQL["insert_fences"], buckets, ended, request.run_id, request.reason)
        await connection.execute(SQL["set_epochs"], buckets, list(opened.values()), request.run_id)
        return opened

    opened = await database.transaction(work)
    metrics.fenced_buckets.inc(len(opened))
    LOG.warning("buckets fenced", buckets=len(opened), reason=request.reason, run_id=request.run_id)
    return opened


async def push_epochs(meters: Meters, epochs: dict[int, int]) -> None:
    """Tell the meters. One that misses it finds the newer epoch in Redis and asks for all of them."""
    try:
        await meters.init_epochs(epochs)
    except MeterNotConfirmed as error:
        LOG.warning("a meter did not confirm new epochs", urls=error.urls)


def may_return_early(_bucket: int, _epoch: int) -> bool:
    """Whether every edge has promised to deliver nothing more of this epoch (the roll-call).

    There is no roll-call yet, so nobody has: the grace time decides.
    """
    return False


class FrozenLoans:
    """Returns the loans of ended epochs to their balances."""

    def __init__(
        self, database: Database, meters: Meters, poster: Poster, metrics: LedgerMetrics, *, grace_ms: int
    ) -> None:
        self._database = database
        self._meters = meters
        self._poster = poster
        self._metrics = metrics
        self._grace_ms = grace_ms
        self._interval_ms = min(5_000, max(50, grace_ms // 4))

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await asyncio.sleep(self._interval_ms / 1000)
            try:
                await self.return_due()
            except MeterwayError as error:
                LOG.warning("frozen loans stay frozen for now", reason=error.message)
            except Exception:
                LOG.exception("returning frozen loans failed")

    async def return_due(self) -> int:
        """One round; returns the nanodollars that went back. Raises Unavailable."""
        fences = await self._database.fetch(SQL["open_fences"], self._grace_ms, FENCES_PER_ROUND_MAX)
        returned_nanos = 0
        for row in fences:
            returned_nanos += await self._return_epoch(row["bucket"], row["epoch"])
        self._metrics.open_fences.set(await self._database.fetchval(SQL["count_open_fences"]))
        return returned_nanos

    async def _return_epoch(self, bucket: int, epoch: int) -> int:
        rows = await self._database.fetch(SQL["frozen_accounts"], bucket, epoch)
        account_ids = [AccountId(row["account_id"]) for row in rows]
        due = await self._nothing_unposted(bucket, epoch, account_ids) if account_ids else []
        returned_nanos = 0
        for start in range(0, len(due), ACCOUNTS_PER_TRANSACTION_MAX):
            chunk = due[start : start + ACCOUNTS_PER_TRANSACTION_MAX]
            work = partial(return_escrows, account_ids=chunk, epoch=epoch)
            returned_nanos += await self._database.transaction(work)
        if len(due) == len(account_ids):
            await self._database.execute(SQL["close_fence"], bucket, epoch)
        if returned_nanos:
            LOG.info("frozen loans returned", bucket=bucket, epoch=epoch, nanos=returned_nanos)
        self._metrics.returned_nanos.inc(returned_nanos)
        return returned_nanos

    async def _nothing_unposted(
        self, bucket: int, epoch: int, account_ids: Sequence[AccountId]
    ) -> list[AccountId]:
        """The accounts that have nothing of the old epoch in the outbox. Raises MetersAway."""
        if self._poster.posted_epochs.get(bucket, 0) > epoch:
            return list(account_ids)
        try:
            audit = await self._audit(bucket, account_ids)
        except MetersAway:
            raise MetersAway("No meter can say whether the outbox is empty.", retry_after_ms=1_000) from None
        return [account_id for account_id in account_ids if not audit.unposted_nanos.get(account_id)]

    async def _audit(self, bucket: int, account_ids: Sequence[AccountId]) -> AuditReply:
        request = AuditRequest(accounts=tuple(account_ids), bucket_from=bucket, bucket_to=bucket)
        return await self._meters.audit(request)


async def return_escrows(connection: Connection, *, account_ids: Sequence[str], epoch: int) -> int:
    """Move what is left of these loans to `available`; returns the nanodollars moved."""
    locked = await connection.fetch(SQL["lock_frozen"], account_ids, epoch)
    rests = {row["account_id"]: row["rest_nanos"] for row in locked if row["rest_nanos"] > 0}
    if not rests:
        return 0
    owners, nanos = list(rests), list(rests.values())
    await connection.fetch(SQL["lock_balances"], owners)
    await connection.execute(SQL["return_escrows"], owners, epoch, nanos)
    await connection.execute(SQL["return_to_balances"], owners, nanos)
    lines = {
        f"{account_id}:{epoch}": (
            JournalLine(escrow_account(account_id), -rest, account_id, epoch),
            JournalLine(available_account(account_id), rest, account_id),
        )
        for account_id, rest in rests.items()
    }
    await journal.write(connection, kind="loan_return", lines_by_ref=lines)
    return sum(nanos)
