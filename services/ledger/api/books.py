"""The books: reconciliation, journal, exceptions, audit log."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from services.ledger import accounts, audit, listings, reconcile
from services.ledger.api.caller import MONEY
from services.ledger.api.endpoint import Call, Nothing, endpoint

Limit = Annotated[int, Meta(ge=1, le=1000)]
Before = Annotated[int, Meta(ge=1, le=2**62)]


class DifferenceView(msgspec.Struct, frozen=True):
    """`what` was compared, of which `subject`; `expected` is what the books say."""

    what: str
    subject: str
    expected: str
    found: str


class ReviewView(msgspec.Struct, frozen=True):
    """Something that a person may want to look at; the books are right about it."""

    kind: str
    subject: str
    account_id: str | None
    detail: Any


class Reconciliation(msgspec.Struct, frozen=True):
    """`is_clean`: no differences. `moving_accounts`: changed at each reading, and within what they moved."""

    is_clean: bool
    differences: tuple[DifferenceView, ...]
    review: tuple[ReviewView, ...]
    accounts_compared: int
    moving_accounts: int


class JournalQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`account`: an account id; all when it isn't given. `before`: a transaction id; only older ones."""

    account: str | None = None
    before: Before | None = None
    limit: Limit = 100


class Journal(msgspec.Struct, frozen=True):
    transactions: tuple[listings.JournalTransaction, ...]
    next_before: int | None


class ExceptionsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`all`: the resolved ones, too. `before`: an exception's id; only older ones."""

    all: bool = False
    before: Before | None = None
    limit: Limit = 100


class Exceptions(msgspec.Struct, frozen=True):
    exceptions: tuple[listings.ExceptionEntry, ...]
    next_before: int | None


class AuditQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`target`: an account, key, channel or model id, or an email. `before`: an entry's id."""

    target: str | None = None
    before: Before | None = None
    limit: Limit = 100


class AuditLog(msgspec.Struct, frozen=True):
    entries: tuple[audit.AuditEntry, ...]
    next_before: int | None


async def reconcile_stores(call: Call[Nothing, Nothing]) -> Reconciliation:
    result = await reconcile.run(call.ledger.database, call.ledger.meters)
    return Reconciliation(
        is_clean=result.is_clean,
        differences=tuple(
            DifferenceView(what=row.what, subject=row.subject, expected=row.expected, found=row.found)
            for row in result.differences
        ),
        review=tuple(
            ReviewView(kind=row.kind, subject=row.subject, account_id=row.account_id, detail=row.detail)
            for row in result.review
        ),
        accounts_compared=result.accounts_compared,
        moving_accounts=result.moving_accounts,
    )


async def list_journal(call: Call[Nothing, JournalQuery]) -> Journal:
    query, database = call.query, call.ledger.database
    if query.account is not None:
        await accounts.get_account(database, query.account)
    found = await listings.list_journal(
        database, account_id=query.account, before=query.before, limit=query.limit
    )
    return Journal(transactions=tuple(found), next_before=found[-1].id if len(found) == query.limit else None)


async def list_exceptions(call: Call[Nothing, ExceptionsQuery]) -> Exceptions:
    query = call.query
    found = await listings.list_exceptions(
        call.ledger.database, with_resolved=query.all, before=query.before, limit=query.limit
    )
    return Exceptions(
        exceptions=tuple(found), next_before=found[-1].id if len(found) == query.limit else None
    )


async def list_audit_log(call: Call[Nothing, AuditQuery]) -> AuditLog:
    query = call.query
    found = await audit.list_entries(
        call.ledger.database, limit=query.limit, before=query.before, target=query.target
    )
    return AuditLog(entries=tuple(found), next_before=found[-1].id if len(found) == query.limit else None)


ENDPOINTS = (
    endpoint(
        "POST",
        "/reconcile",
        "Compare the books with themselves and with Redis, to the nanodollar. Changes nothing.",
        reconcile_stores,
        Reconciliation,
        roles=MONEY,
    ),
    endpoint(
        "GET",
        "/journal",
        "Journal transactions, the newest first.",
        list_journal,
        Journal,
        query=JournalQuery,
    ),
    endpoint(
        "GET",
        "/exceptions",
        "What a person should look at, the newest first.",
        list_exceptions,
        Exceptions,
        query=ExceptionsQuery,
    ),
    endpoint(
        "GET", "/audit", "Who changed what, the newest first.", list_audit_log, AuditLog, query=AuditQuery
    ),
)
