"""Lending: the one way by which Redis gets money to spend.

A loan moves money from `available` to the escrow of (account, current epoch) before Redis may spend
it. All requests that wait leave in one commit. A request that is sent again, or whose answer was
lost, is answered with the loans that Redis has not applied yet: their `gseq` shows which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.common import logs
from services.common.contracts.lending import FenceRequest, Loan, LoanReply, LoanRequest
from services.common.errors import BadRequest
from services.common.ids import bucket_of
from services.ledger import journal
from services.ledger.batching import Batcher
from services.ledger.database import Connection, Database
from services.ledger.epochs import fence
from services.ledger.loan_sizes import loan_nanos
from services.ledger.metrics import LedgerMetrics
from services.ledger.postings import JournalLine, available_account, escrow_account
from services.ledger.queries import load_queries

LOG = logs.get("ledger.loans")
SQL = load_queries("loans")
STALE_EPOCH = "stale_epoch"
REQUESTS_PER_CALL_MAX = 1_000
REQUESTS_PER_TRANSACTION_MAX = 2_000
REQUESTS_WAITING_MAX = 50_000


@dataclass(slots=True)
class _Borrower:
    """An account as the transaction holds it locked."""

    epoch: int
    available_nanos: int
    lent_nanos: int
    outstanding_nanos: int
    last_gseq: int
    frozen_nanos: int
    loans: list[Loan] = field(default_factory=list)
    new_loans: list[Loan] = field(default_factory=list)


class Lender:
    def __init__(self, database: Database, metrics: LedgerMetrics) -> None:
        self._database = database
        self._metrics = metrics
        self._batcher: Batcher[Sequence[LoanRequest], list[LoanReply]] = Batcher(
            self._lend_calls,
            size_of=len,
            batch_size_max=REQUESTS_PER_TRANSACTION_MAX,
            waiting_size_max=REQUESTS_WAITING_MAX,
        )

    async def lend(self, requests: Sequence[LoanRequest]) -> list[LoanReply]:
        """One reply per request, in their order. Raises BadRequest, or Unavailable (send it again)."""
        if len(requests) > REQUESTS_PER_CALL_MAX:
            raise BadRequest(f"A call may ask for at most {REQUESTS_PER_CALL_MAX} loans. Please split it.")
        if any(
            min(r.wanted_nanos, r.largest_hold_nanos, r.spend_minute_nanos, r.applied_gseq) < 0
            for r in requests
        ):
            raise BadRequest("A loan request has a negative amount.")
        return await self._batcher.submit(requests) if requests else []

    async def close(self) -> None:
        await self._batcher.close()

    async def _lend_calls(self, calls: Sequence[Sequence[LoanRequest]]) -> list[list[LoanReply]]:
        requests = [request for call in calls for request in call]
        replies, lent_nanos = await self._database.transaction(
            lambda connection: _lend_all(connection, requests)
        )
        self._metrics.lent_nanos.inc(lent_nanos)
        await self._fence_ahead(requests, replies)
        self._count(replies)
        answers = iter(replies)
        return [[next(answers) for _request in call] for call in calls]

    async def _fence_ahead(self, requests: Sequence[LoanRequest], replies: Sequence[LoanReply]) -> None:
        """Redis has applied loans that the ledger never made: Postgres was restored from a backup, and
        nothing of these buckets can be trusted."""
        ahead = {
            bucket_of(request.account_id): request.epoch
            for request, reply in zip(requests, replies, strict=True)
            if reply.error == STALE_EPOCH and reply.epoch == request.epoch
        }
        if ahead:
            LOG.error("Redis is ahead of the ledger", buckets=sorted(ahead))
            fenced = FenceRequest(
                buckets=tuple(ahead), seen_epochs=tuple(ahead.values()), run_id="", reason="redis_ahead"
            )
            await fence(self._database, self._metrics, fenced)

    def _count(self, replies: Sequence[LoanReply]) -> None:
        for reply in replies:
            result = "refused" if reply.error else "lent" if reply.loans else "nothing"
            self._metrics.loans.labels(result=result).inc()


async def _lend_all(connection: Connection, requests: Sequence[LoanRequest]) -> tuple[list[LoanReply], int]:
    account_ids = sorted({request.account_id for request in requests})
    epochs = await _current_epochs(connection, account_ids)
    rows = await connection.fetch(SQL["account_states"], account_ids)
    states = {row["id"]: row["state"] for row in rows}
    refusals = [_refuse(request, states.get(request.account_id), epochs) for request in requests]
    accepted: dict[str, int] = {
        r.account_id: epochs[r.account_id]
        for r, refusal in zip(requests, refusals, strict=True)
        if not refusal
    }
    borrowers = await _lock_borrowers(connection, accepted) if accepted else {}
    await _find_unapplied(connection, borrowers, requests)
    replies = [
        refusal or _lend(request, borrowers[request.account_id])
        for request, refusal in zip(requests, refusals, strict=True)
    ]
    await _write(connection, borrowers)
    lent_nanos = sum(loan.nanos for borrower in borrowers.values() for loan in borrower.new_loans)
    return replies, lent_nanos


def _refuse(request: LoanRequest, state: str | None, epochs: dict[str, int]) -> LoanReply | None:
    epoch = epochs[request.account_id]
    if state is None:
        error = "unknown_account"
    elif state != "active":
        error = "suspended"
    elif request.epoch != epoch:
        error = STALE_EPOCH
    else:
        return None
    return LoanReply(account_id=request.account_id, epoch=epoch, error=error)


async def _current_epochs(connection: Connection, account_ids: Sequence[str]) -> dict[str, int]:
    buckets = {account_id: bucket_of(account_id) for account_id in account_ids}
    rows = await connection.fetch(SQL["share_buckets"], sorted(set(buckets.values())))
    epochs = {row["bucket"]: row["epoch"] for row in rows}
    return {account_id: epochs[bucket] for account_id, bucket in buckets.items()}


async def _lock_borrowers(connection: Connection, accepted: dict[str, int]) -> dict[str, _Borrower]:
    account_ids = sorted(accepted)
    epochs = [accepted[account_id] for account_id in account_ids]
    await connection.execute(SQL["insert_escrows"], account_ids, epochs)
    escrows = await connection.fetch(SQL["lock_escrows"], account_ids, epochs)
    balances = await connection.fetch(SQL["lock_balances"], account_ids)
    gseqs = await connection.fetch(SQL["last_loans"], account_ids, epochs)
    frozen = await connection.fetch(SQL["frozen"], account_ids, epochs)
    available = {row["account_id"]: row["available_nanos"] for row in balances}
    last_gseq = {row["account_id"]: row["gseq"] or 0 for row in gseqs}
    frozen_nanos = {row["account_id"]: row["frozen_nanos"] for row in frozen}
    return {
        row["account_id"]: _Borrower(
            epoch=row["epoch"],
            available_nanos=available[row["account_id"]],
            lent_nanos=row["lent_nanos"],
            outstanding_nanos=row["rest_nanos"],
            last_gseq=last_gseq[row["account_id"]],
            frozen_nanos=frozen_nanos.get(row["account_id"], 0),
        )
        for row in escrows
    }


async def _find_unapplied(
    connection: Connection, borrowers: dict[str, _Borrower], requests: Sequence[LoanRequest]
) -> None:
    """Read each borrower's loans from the least that any of its requests has applied."""
    applied: dict[str, int] = {}
    for request in requests:
        if request.account_id in borrowers:
            before = applied.get(request.account_id, request.applied_gseq)
            applied[request.account_id] = min(before, request.applied_gseq)
    if not applied:
        return
    rows = await connection.fetch(
        SQL["loans_after"],
        list(applied),
        [borrowers[account_id].epoch for account_id in applied],
        list(applied.values()),
    )
    for row in rows:
        borrowers[row["account_id"]].loans.append(Loan(gseq=row["gseq"], nanos=row["nanos"]))


def _lend(request: LoanRequest, borrower: _Borrower) -> LoanReply:
    if request.applied_gseq > borrower.last_gseq:
        return LoanReply(account_id=request.account_id, epoch=borrower.epoch, error=STALE_EPOCH)
    unapplied = [loan for loan in borrower.loans if loan.gseq > request.applied_gseq]
    nanos = loan_nanos(
        request,
        available_nanos=borrower.available_nanos,
        unapplied_nanos=sum(loan.nanos for loan in unapplied),
        outstanding_nanos=borrower.outstanding_nanos,
        lent_nanos=borrower.lent_nanos,
    )
    if nanos:
        borrower.last_gseq += 1
        loan = Loan(gseq=borrower.last_gseq, nanos=nanos)
        borrower.available_nanos -= nanos
        borrower.lent_nanos += nanos
        borrower.outstanding_nanos += nanos
        borrower.loans.append(loan)
        borrower.new_loans.append(loan)
        unapplied.append(loan)
    return LoanReply(
        account_id=request.account_id,
        epoch=borrower.epoch,
        loans=tuple(unapplied),
        available_nanos=borrower.available_nanos,
        frozen_nanos=borrower.frozen_nanos,
    )


async def _write(connection: Connection, borrowers: dict[str, _Borrower]) -> None:
    new = [
        (account_id, borrower.epoch, loan.gseq, loan.nanos)
        for account_id, borrower in borrowers.items()
        for loan in borrower.new_loans
    ]
    if not new:
        return
    await connection.execute(SQL["insert_loans"], *map(list, zip(*new, strict=True)))
    lent = [
        (account_id, borrower.epoch, sum(loan.nanos for loan in borrower.new_loans))
        for account_id, borrower in borrowers.items()
        if borrower.new_loans
    ]
    account_ids, epochs, nanos = map(list, zip(*lent, strict=True))
    await connection.execute(SQL["lend_from_escrows"], account_ids, epochs, nanos)
    await connection.execute(SQL["take_from_balances"], account_ids, nanos)
    lines = {
        f"{account_id}:{epoch}:{gseq}": (
            JournalLine(available_account(account_id), -amount, account_id),
            JournalLine(escrow_account(account_id), amount, account_id, epoch),
        )
        for account_id, epoch, gseq, amount in new
    }
    await journal.write(connection, kind="loan", lines_by_ref=lines)
