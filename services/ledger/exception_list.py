"""The exception list: findings that a person should look at, each once."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from services.ledger.database import Connection
from services.ledger.postings import ExceptionRow
from services.ledger.queries import load_queries

SQL = load_queries("posting")


async def write_exceptions(connection: Connection, rows: Sequence[ExceptionRow]) -> None:
    if not rows:
        return
    await connection.execute(
        SQL["insert_exceptions"],
        [row.kind.value for row in rows],
        [row.ref for row in rows],
        [row.session_id for row in rows],
        [row.account_id for row in rows],
        [msgspec.json.encode(row.detail).decode() for row in rows],
    )
