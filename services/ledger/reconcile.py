"""Reconciliation: do the books balance, and do Redis and Postgres agree, to the nanodollar?

It may run under traffic: an account that seems to differ, or moved while it was read, is read again
before it counts. Nothing is ever changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.common.contracts.lending import AccountAudit, AuditRequest
from services.common.ids import BUCKETS, AccountId
from services.ledger.database import Connection, Database
from services.ledger.meters import Meters, MetersAway
from services.ledger.postings import Finding
from services.ledger.queries import load_queries
from services.ledger.reconcile_meters import (
    KEY_USE,
    KEY_USE_WAITING,
    Comparison,
    Difference,
    Position,
    Positions,
    compare,
)

SQL = load_queries("reconcile")
BUCKETS_PER_PAGE: Final = 16
ACCOUNTS_PER_READ_MAX: Final = 500
READS_MAX: Final = 12
WAIT_MS_MAX: Final = 400
ROWS_PER_CHECK_MAX: Final = 1_000
REVIEW_MAX: Final = 200
AUDIT_TIMEOUT_MS: Final = 30_000
BOOK_CHECKS: Final = {
    "journal transaction sums to zero": "unbalanced_transactions",
    "balance is the sum of its entries": "wrong_balances",
    "escrow is the sum of its entries": "wrong_escrows",
    "lent is the sum of the loans": "wrong_lent",
    "settled is the sum of the usage": "wrong_settled",
    "key use is the sum of the usage": "wrong_key_use",
    "platform account is the sum of the usage": "platform_totals",
    "what came back of a loan is the sum of its returns": "wrong_returned",
    "recalled is the sum of the recalls": "wrong_recalled",
    "the receivable is the sum of the claims": "wrong_receivable",
}
REVIEW_KINDS: Final = frozenset({Finding.OVERRUN.value, Finding.ESCROW_SHORT.value, Finding.LATE_LOG.value})
"""Findings that the books are right about: for a person to look at, but no difference."""


@dataclass(frozen=True, kw_only=True)
class Review:
    """Something that a person may want to look at; the books are right about it."""

    kind: str
    subject: str
    account_id: str
    detail: Any


@dataclass(frozen=True, kw_only=True)
class Reconciliation:
    """`moving_accounts`: changed at each reading, and within what they moved."""

    differences: tuple[Difference, ...]
    review: tuple[Review, ...]
    accounts_compared: int
    moving_accounts: int

    @property
    def is_clean(self) -> bool:
        return not self.differences


async def run(database: Database, meters: Meters) -> Reconciliation:
    """Raises Unavailable when the database is away; meters away is a difference (`not compared`)."""
    differences, review = await database.transaction(_check_books, isolation="repeatable_read")
    compared, moving = 0, 0
    try:
        for first in range(0, BUCKETS, BUCKETS_PER_PAGE):
            last = first + BUCKETS_PER_PAGE - 1
            page = await _PageCheck(database, meters, first, last).run()
            differences += page.differences
            review += page.review
            compared += page.compared
            moving += page.moving
    except MetersAway:
        differences.append(
            Difference(
                what="Redis", subject="meters", expected="compared", found="not compared: no meter answers"
            )
        )
    return Reconciliation(
        differences=tuple(differences),
        review=tuple(review),
        accounts_compared=compared,
        moving_accounts=moving,
    )


async def _check_books(connection: Connection) -> tuple[list[Difference], list[Review]]:
    differences = []
    for what, query in BOOK_CHECKS.items():
        for row in await connection.fetch(SQL[query], ROWS_PER_CHECK_MAX):
            differences.append(
                Difference(
                    what=what, subject=row["subject"], expected=str(row["expected"]), found=str(row["found"])
                )
            )
    review = []
    for row in await connection.fetch(SQL["open_exceptions"], ROWS_PER_CHECK_MAX):
        subject = row["session_id"] or f"exception {row['id']}"
        if row["kind"] in REVIEW_KINDS:
            review.append(
                Review(kind=row["kind"], subject=subject, account_id=row["account_id"], detail=row["detail"])
            )
        else:
            differences.append(
                Difference(
                    what=f"exception: {row['kind']}",
                    subject=subject,
                    expected="none",
                    found=str(row["detail"]),
                )
            )
    for row in await connection.fetch(SQL["flagged_usage"], REVIEW_MAX):
        flags = list(row["flags"])
        review.append(
            Review(
                kind="flagged_usage", subject=row["session_id"], account_id=row["account_id"], detail=flags
            )
        )
    review += await _still_open(connection)
    return differences, review[:REVIEW_MAX]


async def _still_open(connection: Connection) -> list[Review]:
    """Claims, and what the last roll-call still waits for."""
    found = [
        Review(
            kind="open_claim",
            subject=row["account_id"],
            account_id=row["account_id"],
            detail={"reason": row["reason"], "nanos": row["nanos"], "open_nanos": row["open_nanos"]},
        )
        for row in await connection.fetch(SQL["open_claims"], REVIEW_MAX)
    ]
    found += [
        Review(
            kind="holds_beyond_escrow",
            subject=f"{row['account_id']} epoch {row['epoch']}",
            account_id=row["account_id"],
            detail={"held_nanos": row["held_nanos"], "rest_nanos": row["rest_nanos"]},
        )
        for row in await connection.fetch(SQL["holds_beyond_escrow"], REVIEW_MAX)
    ]
    found += [
        Review(
            kind="promise_awaited", subject=row["edge_id"], account_id="", detail={"buckets": row["buckets"]}
        )
        for row in await connection.fetch(SQL["waits_for_promise"], REVIEW_MAX)
    ]
    return found


class _PageCheck:
    """Compares the accounts of some buckets."""

    def __init__(self, database: Database, meters: Meters, first_bucket: int, last_bucket: int) -> None:
        self._database = database
        self._meters = meters
        self._first_bucket = first_bucket
        self._last_bucket = last_bucket
        self.differences: list[Difference] = []
        self.review: list[Review] = []
        self.compared = 0
        self.moving = 0

    async def run(self) -> _PageCheck:
        """Raises MetersAway."""
        request = AuditRequest(bucket_from=self._first_bucket, bucket_to=self._last_bucket)
        audit = await self._meters.audit(request, timeout_ms=AUDIT_TIMEOUT_MS)
        rows = await self._database.fetch(SQL["lent_accounts"], self._first_bucket, self._last_bucket)
        account_ids = sorted(
            {account.account_id for account in audit.accounts}
            | {AccountId(row["account_id"]) for row in rows}
            | {AccountId(account_id) for account_id in audit.unposted_nanos}
        )
        for start in range(0, len(account_ids), ACCOUNTS_PER_READ_MAX):
            await self._check(account_ids[start : start + ACCOUNTS_PER_READ_MAX], audit.accounts)
        return self

    async def _check(self, account_ids: Sequence[AccountId], known: Sequence[AccountAudit]) -> None:
        self.compared += len(account_ids)
        unsure, audited = list(account_ids), {account.account_id: account for account in known}
        comparison = Comparison()
        for attempt in range(READS_MAX):
            if attempt:
                await asyncio.sleep(min(WAIT_MS_MAX, 10 * 2**attempt) / 1000)
            comparison, found = await self._compare_once(unsure, audited)
            audited |= found
            unsure = [account_id for account_id in unsure if account_id in comparison.unsure]
            if not unsure:
                return
        self.moving += len(comparison.moving - set(comparison.differences))
        for account_id, rows in comparison.differences.items():
            await self._judge(account_id, rows)

    async def _judge(self, account_id: str, rows: Sequence[Difference]) -> None:
        """A key that Redis is about to be told of is still moving."""
        about_keys = [row for row in rows if row.what in (KEY_USE, KEY_USE_WAITING)]
        self.differences += [row for row in rows if row not in about_keys]
        if not about_keys:
            return
        waiting = {row["key_id"] for row in await self._database.fetch(SQL["waiting_pushes"], account_id)}
        told = [row for row in about_keys if row.subject not in waiting]
        if waiting:
            told = [row for row in told if row.what != KEY_USE_WAITING]
            self.moving += len(told) < len(about_keys)
        self.differences += told

    async def _compare_once(
        self, account_ids: Sequence[AccountId], audited: dict[AccountId, AccountAudit]
    ) -> tuple[Comparison, dict[AccountId, AccountAudit]]:
        before = await self._read(account_ids, audited)
        request = AuditRequest(accounts=tuple(account_ids))
        audit = await self._meters.audit(request, timeout_ms=AUDIT_TIMEOUT_MS)
        found = {account.account_id: account for account in audit.accounts}
        same_place = {
            account_id
            for account_id, account in found.items()
            if account_id in audited and _place(audited[account_id]) == _place(account)
        }
        after = await self._read(account_ids, found)
        # A position is for one epoch, gseq and rseq: a reading of another one says nothing.
        usable = {account_id: at for account_id, at in before.accounts.items() if account_id in same_place}
        before = Positions(accounts=usable, key_use_nanos=before.key_use_nanos)
        comparison = compare(before=before, audit=audit, after=after)
        missing = set(account_ids) - set(found)
        if missing:
            await self._note_missing(comparison, missing)
        return comparison, found

    async def _note_missing(self, comparison: Comparison, missing: set[AccountId]) -> None:
        """An account that has settled in this epoch is in Redis, unless Redis has lost it."""
        rows = await self._database.fetch(SQL["lent_accounts"], self._first_bucket, self._last_bucket)
        for account_id in sorted(missing & {row["account_id"] for row in rows}):
            comparison.add(account_id, "account", account_id, expected="in Redis", found="missing")

    async def _read(
        self, account_ids: Sequence[AccountId], audited: dict[AccountId, AccountAudit]
    ) -> Positions:
        present = [audited[account_id] for account_id in account_ids if account_id in audited]

        async def work(connection: Connection) -> Positions:
            accounts = await connection.fetch(
                SQL["account_positions"],
                [account.account_id for account in present],
                [account.epoch for account in present],
                [account.gseq for account in present],
                [account.rseq for account in present],
            )
            keys = await connection.fetch(SQL["key_positions"], list(account_ids))
            return Positions(
                accounts={
                    row["account_id"]: Position(
                        row["is_known"],
                        row["settled_nanos"],
                        row["applied_nanos"],
                        row["last_gseq"],
                        row["last_rseq"],
                        row["is_recalling"],
                    )
                    for row in accounts
                },
                key_use_nanos={row["key_id"]: row["used_nanos"] for row in keys},
            )

        return await self._database.transaction(work, isolation="repeatable_read")


def _place(account: AccountAudit) -> tuple[int, int, int]:
    return account.epoch, account.gseq, account.rseq
