"""Rows of the journal as the chain's transactions."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from services.ledger.chain import Entry, Transaction
from services.ledger.database import Row

POSTGRES_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)


def read_transactions(rows: Iterable[Row], entries: Iterable[Row]) -> list[Transaction]:
    """`rows` in their order, each with those of the `entries` that are its own."""
    by_transaction: dict[int, list[Entry]] = {}
    for row in entries:
        by_transaction.setdefault(row["transaction_id"], []).append(read_entry(row))
    return [
        Transaction(
            row["id"],
            timestamp_us(row["timestamptz_send"]),
            row["kind"],
            row["ref"],
            row["reason"],
            row["actor"],
            tuple(by_transaction.get(row["id"], ())),
        )
        for row in rows
    ]


def read_entry(row: Row) -> Entry:
    return Entry(row["ledger_account"], row["amount_nanos"], row["account_id"], row["epoch"])


def timestamp_us(sent: bytes) -> int:
    """What `timestamptz_send` answers: exact, and defined for the infinite ones too."""
    return int.from_bytes(sent, "big", signed=True)
