"""Recalls: the unheld part of a current loan comes back from Redis before its epoch ends.

A recall is a row, committed before Redis is asked, with an `rseq` that is dense per (account, epoch). One is
open at a time: when its answer is lost it is asked again with the same `rseq`, and Redis gives the same
answer. Outage behaviour: without a meter it stays open and is asked again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.common import logs
from services.common.contracts.lending import FenceRequest, Recall, RecallReply
from services.common.errors import MeterwayError
from services.common.ids import AccountId, bucket_of
from services.ledger import claims, journal
from services.ledger.database import Connection, Database
from services.ledger.epochs import fence
from services.ledger.meters import Meters
from services.ledger.metrics import LedgerMetrics
from services.ledger.postings import JournalLine, available_account, escrow_account
from services.ledger.queries import load_queries

LOG = logs.get("ledger.recalls")
SQL = load_queries("recalls")
CLAIMS = load_queries("claims")
FROZEN = load_queries("frozen_loans")
ROWS_PER_ROUND_MAX: Final = 200
OUT_OF_ORDER: Final = "out_of_order"


@dataclass(frozen=True, slots=True)
class _Posted:
    moved_nanos: int
    is_contradiction: bool


class Recalls:
    def __init__(self, database: Database, meters: Meters, metrics: LedgerMetrics) -> None:
        self._database = database
        self._meters = meters
        self._metrics = metrics

    async def recall(self, account_id: str, wanted_nanos: int | None = None) -> int:
        """Take back up to `wanted_nanos` (None: all) of what nothing holds; the nanodollars that came.

        Raises Unavailable; what was asked then is asked again by `ask_due`.
        """
        came_nanos = 0
        # The first may be one that was open already.
        for _number in range(2):
            opened = await self._open(account_id, wanted_nanos)
            if opened is None:
                return came_nanos
            recall, is_new = opened
            came_nanos += await self._carry_out(recall)
            if is_new:
                break
        return came_nanos

    async def ask_due(self) -> int:
        """Ask what is unanswered again, and for what claims still miss; how much came. Raises Unavailable."""
        came_nanos = 0
        for row in await self._database.fetch(SQL["all_unanswered"], ROWS_PER_ROUND_MAX):
            came_nanos += await self._carry_out(
                Recall(AccountId(row["account_id"]), row["epoch"], row["rseq"], row["wanted_nanos"])
            )
        for row in await self._database.fetch(CLAIMS["due_claims"], ROWS_PER_ROUND_MAX):
            came_nanos += await self.serve_claims(row["account_id"])
        return came_nanos

    async def serve_claims(self, account_id: str) -> int:
        """Recall what the account's claims miss; the nanodollars that came. Raises Unavailable."""
        open_nanos = await self._database.fetchval(CLAIMS["open_claims"], account_id)
        if not open_nanos:
            return 0
        await self._database.execute(CLAIMS["note_asked"], account_id)
        return await self.recall(account_id, open_nanos)

    async def try_recall(self, account_id: str, *, all_unheld: bool = False) -> None:
        """At once, for as much as can be had now; whatever hinders it is tried again later."""
        try:
            if all_unheld:
                await self.recall(account_id)
            else:
                await self.serve_claims(account_id)
        except MeterwayError as error:
            LOG.warning("a recall waits", account_id=account_id, reason=error.message)

    async def _open(self, account_id: str, wanted_nanos: int | None) -> tuple[Recall, bool] | None:
        """The recall to carry out, and whether it is a new one. None: nothing is lent."""

        async def work(connection: Connection) -> tuple[Recall, bool] | None:
            epoch = await connection.fetchval(SQL["share_bucket"], bucket_of(account_id))
            rest_nanos = await connection.fetchval(SQL["lock_escrow"], account_id, epoch)
            row = await connection.fetchrow(SQL["unanswered"], account_id, epoch)
            if row is not None:
                return Recall(AccountId(account_id), epoch, row["rseq"], row["wanted_nanos"]), False
            if not rest_nanos:
                return None
            wanted = rest_nanos if wanted_nanos is None else min(wanted_nanos, rest_nanos)
            if wanted <= 0:
                return None
            rseq = await connection.fetchval(SQL["last_rseq"], account_id, epoch) + 1
            await connection.execute(SQL["insert_recall"], account_id, epoch, rseq, wanted)
            return Recall(AccountId(account_id), epoch, rseq, wanted), True

        return await self._database.transaction(work)

    async def _carry_out(self, recall: Recall) -> int:
        reply = await self._meters.recall(recall)
        posted = await self._database.transaction(lambda connection: post(connection, recall, reply))
        self._metrics.recalls.labels(result=reply.error or "recalled").inc()
        self._metrics.recalled_nanos.inc(posted.moved_nanos)
        if posted.is_contradiction:
            await self._fence(recall, reply)
        return posted.moved_nanos

    async def _fence(self, recall: Recall, reply: RecallReply) -> None:
        """Redis or Postgres was set back: nothing of the bucket can be trusted."""
        LOG.error(
            "a recall contradicts Redis",
            account_id=recall.account_id,
            epoch=recall.epoch,
            rseq=recall.rseq,
            rseq_in_redis=reply.rseq,
        )
        request = FenceRequest(
            buckets=(bucket_of(recall.account_id),),
            seen_epochs=(recall.epoch,),
            run_id="",
            reason="recall_out_of_order",
        )
        await fence(self._database, self._metrics, request)


async def post(connection: Connection, recall: Recall, reply: RecallReply) -> _Posted:
    """Close the recall with what Redis says; a repeated answer changes nothing."""
    account_id, epoch = recall.account_id, recall.epoch
    rest_nanos = await connection.fetchval(SQL["lock_escrow"], account_id, epoch) or 0
    before = await connection.fetchrow(SQL["lock_recall"], account_id, epoch, recall.rseq)
    if before is None or before["recalled_nanos"] is not None:
        return _Posted(0, is_contradiction=False)
    recalled_nanos = 0 if reply.error else min(reply.recalled_nanos, recall.wanted_nanos)
    # More than the books have: Redis had forgotten spending. What the books have is the truth.
    moved_nanos = max(0, min(recalled_nanos, rest_nanos))
    await connection.execute(SQL["answer_recall"], account_id, epoch, recall.rseq, moved_nanos)
    if moved_nanos:
        await connection.fetch(FROZEN["lock_balances"], [account_id])
        await connection.execute(FROZEN["return_escrows"], [account_id], epoch, [moved_nanos])
        await connection.execute(FROZEN["return_to_balances"], [account_id], [moved_nanos])
        lines = (
            JournalLine(escrow_account(account_id), -moved_nanos, account_id, epoch),
            JournalLine(available_account(account_id), moved_nanos, account_id),
        )
        ref = f"{account_id}:{epoch}:{recall.rseq}"
        await journal.write(connection, kind="recall", lines_by_ref={ref: lines})
        await claims.serve(connection, {account_id: moved_nanos})
    return _Posted(moved_nanos, reply.error == OUT_OF_ORDER or moved_nanos < recalled_nanos)
