"""Accounts: create, credit, adjust, suspend. A balance is never set, only moved, with a journal entry."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from services.common.errors import BadRequest, Conflict, NotFound
from services.common.ids import AccountId, bucket_of, new_account_id
from services.common.money import NANOS_MAX
from services.ledger import audit, claims, journal
from services.ledger.database import Connection, Database, Row
from services.ledger.meters import Meters
from services.ledger.postings import JournalLine, available_account
from services.ledger.queries import load_queries
from services.ledger.snapshots import push_account

SQL = load_queries("accounts")
JOURNAL = load_queries("journal")
PAGE_MAX = 1_000
REASON_CHARS_MAX = 500


class AccountNotFound(NotFound):
    """There is no such account. Please check its id."""

    code = "account_not_found"


@dataclass(frozen=True, kw_only=True)
class Account:
    id: AccountId
    email: str | None
    state: str
    group_name: str
    ratio_ppm: int
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Movement:
    """`moved_nanos`: what was added, or taken at once, before any claim was served. `claimed_nanos`: what an
    adjustment down found missing; it is taken from whatever comes to the account next. `is_new`: False when
    this `ref` had been carried out before."""

    transaction_id: int
    moved_nanos: int
    is_new: bool
    claimed_nanos: int = 0


async def create_account(database: Database, *, email: str | None = None, actor: str = "ledger") -> AccountId:
    """A new account with a balance of 0. Raises Conflict when the email has one already."""
    account_id = new_account_id()

    async def work(connection: Connection) -> None:
        await connection.execute(SQL["insert_account"], account_id, email, bucket_of(account_id))
        await audit.record(
            connection, actor=actor, action="account.create", target=account_id, after={"email": email}
        )

    try:
        await database.transaction(work)
    except asyncpg.UniqueViolationError as error:
        raise Conflict(
            "This e-mail address has an account already. Please use another.", param="email"
        ) from error
    return account_id


async def get_account(database: Database, account_id: str) -> Account:
    """Raises AccountNotFound."""
    row = await database.fetchrow(SQL["account"], account_id)
    if row is None:
        raise AccountNotFound
    return _account(row)


async def list_accounts(database: Database, *, after: str = "", limit: int = 100) -> list[Account]:
    """In the order of their ids, those after `after`."""
    rows = await database.fetch(SQL["accounts"], after, max(1, min(limit, PAGE_MAX)))
    return [_account(row) for row in rows]


async def credit(
    database: Database, *, account_id: str, nanos: int, reason: str, actor: str, ref: str
) -> Movement:
    """Credit `nanos`, or adjust down by `-nanos`: what is not available becomes a claim. Once per `ref`.

    Raises AccountNotFound, BadRequest, and Conflict: the `ref` was used for something else.
    """
    if nanos == 0 or abs(nanos) > NANOS_MAX:
        raise BadRequest("The amount must not be 0 and must be under $9,000,000.", param="amount")
    if not reason.strip() or len(reason) > REASON_CHARS_MAX or not ref:
        raise BadRequest(f"Please give a reason of at most {REASON_CHARS_MAX} characters.", param="reason")

    async def work(connection: Connection) -> Movement:
        available_nanos = await connection.fetchval(SQL["lock_balance"], account_id)
        if available_nanos is None:
            raise AccountNotFound
        before = await connection.fetchval(JOURNAL["find_transaction"], "credit", ref)
        if before is not None:
            return await _repeated(connection, before, account_id, nanos)
        moved_nanos = max(nanos, -available_nanos)
        await _move(connection, account_id, nanos, moved_nanos, reason=reason, actor=actor, ref=ref)
        transaction_id = await connection.fetchval(JOURNAL["find_transaction"], "credit", ref)
        return Movement(
            transaction_id=transaction_id,
            moved_nanos=moved_nanos,
            is_new=True,
            claimed_nanos=moved_nanos - nanos,
        )

    try:
        return await database.transaction(work)
    except asyncpg.UniqueViolationError as error:
        # Another account's credit took this ref between our look and our insert.
        raise Conflict("This reference was used for another credit.", param="ref") from error


async def _move(
    connection: Connection,
    account_id: str,
    nanos: int,
    moved_nanos: int,
    *,
    reason: str,
    actor: str,
    ref: str,
) -> None:
    claimed_nanos = moved_nanos - nanos
    await connection.execute(SQL["add_to_balance"], account_id, moved_nanos)
    lines = [JournalLine("platform:credit", -nanos)]
    if moved_nanos:
        lines.append(JournalLine(available_account(account_id), moved_nanos, account_id))
    if claimed_nanos:
        lines.append(JournalLine(claims.RECEIVABLE, -claimed_nanos))
        await claims.insert(
            connection, account_id=account_id, nanos=claimed_nanos, reason=reason, actor=actor, ref=ref
        )
    await journal.write(connection, kind="credit", lines_by_ref={ref: lines}, reason=reason, actor=actor)
    if moved_nanos > 0:
        await claims.serve(connection, {account_id: moved_nanos})
    moved = {"nanos": nanos, "claimed_nanos": claimed_nanos, "reason": reason, "ref": ref}
    await audit.record(connection, actor=actor, action="account.credit", target=account_id, after=moved)


async def _repeated(connection: Connection, transaction_id: int, account_id: str, nanos: int) -> Movement:
    moved_nanos = await connection.fetchval(
        JOURNAL["account_amount"], transaction_id, available_account(account_id)
    )
    credited_nanos = -await connection.fetchval(JOURNAL["account_amount"], transaction_id, "platform:credit")
    owner = await connection.fetchval(SQL["owner_of_credit"], transaction_id)
    if credited_nanos != nanos or owner != account_id:
        raise Conflict("This reference was used for another credit.", param="ref")
    return Movement(
        transaction_id=transaction_id,
        moved_nanos=moved_nanos,
        is_new=False,
        claimed_nanos=moved_nanos - nanos,
    )


async def suspend(database: Database, meters: Meters, *, account_id: str, actor: str) -> None:
    """In force on every meter when it returns. Raises AccountNotFound, MeterNotConfirmed."""
    await _set_state(database, meters, account_id=account_id, state="suspended", actor=actor)


async def resume(database: Database, meters: Meters, *, account_id: str, actor: str) -> None:
    """In force on every meter when it returns. Raises AccountNotFound, MeterNotConfirmed."""
    await _set_state(database, meters, account_id=account_id, state="active", actor=actor)


async def _set_state(database: Database, meters: Meters, *, account_id: str, state: str, actor: str) -> None:
    async def work(connection: Connection) -> None:
        row = await connection.fetchrow(SQL["lock_account"], account_id)
        if row is None:
            raise AccountNotFound
        # Pushed again when it is so already: the last push may not have been confirmed.
        await connection.execute(SQL["set_account_state"], account_id, state)
        await audit.record(
            connection,
            actor=actor,
            action="account.set_state",
            target=account_id,
            before={"state": row["state"]},
            after={"state": state},
        )

    await database.transaction(work)
    await push_account(database, meters, account_id=account_id)


def _account(row: Row) -> Account:
    return Account(
        id=AccountId(row["id"]),
        email=row["email"],
        state=row["state"],
        group_name=row["group_name"],
        ratio_ppm=row["ratio_ppm"],
        created_at=row["created_at"],
    )
