"""Writing to the journal: every move of money is one transaction of entries that sum to zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.ledger.database import Connection
from services.ledger.postings import JournalLine
from services.ledger.queries import load_queries

SQL = load_queries("journal")


async def write(
    connection: Connection,
    *,
    kind: str,
    lines_by_ref: Mapping[str, Sequence[JournalLine]],
    reason: str = "",
    actor: str = "",
) -> None:
    """One transaction per ref. (kind, ref) is unique: a ref that is there already raises
    asyncpg.UniqueViolationError and nothing moves."""
    if not lines_by_ref:
        return
    rows = await connection.fetch(SQL["insert_transactions"], kind, list(lines_by_ref), reason, actor)
    ids = {row["ref"]: row["id"] for row in rows}
    entries = [(ids[ref], line) for ref, lines in lines_by_ref.items() for line in lines]
    await connection.execute(
        SQL["insert_entries"],
        [transaction_id for transaction_id, _line in entries],
        [line.ledger_account for _id, line in entries],
        [line.amount_nanos for _id, line in entries],
        [line.account_id for _id, line in entries],
        [line.epoch for _id, line in entries],
    )
