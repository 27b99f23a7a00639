"""Claims: what an account owes because its balance did not cover an adjustment.

The adjustment is booked in full when it is made: what `available` covers is taken at once, the rest is a
receivable. Whatever comes to the account afterwards serves its claims first, oldest first: loans that return
or are recalled, and credits. A balance never becomes negative.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.ledger import journal
from services.ledger.database import Connection
from services.ledger.postings import JournalLine, available_account
from services.ledger.queries import load_queries

SQL = load_queries("claims")
RECEIVABLE = "platform:receivable"


async def insert(
    connection: Connection, *, account_id: str, nanos: int, reason: str, actor: str, ref: str
) -> None:
    """In the transaction that books `nanos` to the receivable."""
    await connection.execute(SQL["insert_claim"], account_id, nanos, reason, actor, ref)


async def serve(connection: Connection, came_nanos: Mapping[str, int]) -> int:
    """Serve the claims of these accounts from what has just come to each one's balance, in the same
    transaction, which has their balances locked. Returns the nanodollars taken."""
    rows = await connection.fetch(SQL["lock_claims"], sorted(came_nanos))
    if not rows:
        return 0
    left = dict(came_nanos)
    served: dict[int, int] = {}
    taken: dict[str, int] = {}
    lines: dict[str, tuple[JournalLine, JournalLine]] = {}
    for row in rows:
        account_id = row["account_id"]
        nanos = min(row["open_nanos"], left[account_id])
        if nanos <= 0:
            continue
        left[account_id] -= nanos
        served[row["id"]] = nanos
        taken[account_id] = taken.get(account_id, 0) + nanos
        lines[f"{row['id']}:{row['served_nanos']}"] = (
            JournalLine(available_account(account_id), -nanos, account_id),
            JournalLine(RECEIVABLE, nanos),
        )
    await connection.execute(SQL["serve_claims"], list(served), list(served.values()))
    await connection.execute(SQL["take_from_balances"], list(taken), list(taken.values()))
    await journal.write(connection, kind="claim", lines_by_ref=lines)
    return sum(taken.values())
