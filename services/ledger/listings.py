"""What people look through: the journal and the exception list, newest first, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from services.ledger.database import Database
from services.ledger.queries import load_queries

SQL = load_queries("listings")


class JournalEntry(msgspec.Struct, frozen=True):
    ledger_account: str
    amount_nanos: int


class JournalTransaction(msgspec.Struct, frozen=True):
    """The entries sum to zero."""

    id: int
    created_at_ms: int
    kind: str
    ref: str
    reason: str
    actor: str
    entries: tuple[JournalEntry, ...]


class ExceptionEntry(msgspec.Struct, frozen=True):
    """Something that a person should look at."""

    id: int
    created_at_ms: int
    resolved_at_ms: int | None
    kind: str
    ref: str
    session_id: str | None
    account_id: str | None
    detail: Any


async def list_journal(
    database: Database, *, account_id: str | None, before: int | None, limit: int
) -> Sequence[JournalTransaction]:
    """Transactions that touch `account_id` (None: all), those with an id under `before`."""
    if account_id is None:
        rows = await database.fetch(SQL["journal"], before, limit)
    else:
        rows = await database.fetch(SQL["journal_of_account"], account_id, before, limit)
    return [
        JournalTransaction(
            **{
                **dict(row),
                "entries": tuple(JournalEntry(**entry) for entry in row["entries"] or ()),
            }
        )
        for row in rows
    ]


async def list_exceptions(
    database: Database, *, with_resolved: bool, before: int | None, limit: int
) -> Sequence[ExceptionEntry]:
    rows = await database.fetch(SQL["exceptions"], with_resolved, before, limit)
    return [ExceptionEntry(**dict(row)) for row in rows]
