import asyncpg
import pytest

from services.ledger import journal
from services.ledger.database import Connection, Database
from services.ledger.postings import JournalLine
from tests.integration.ledger.entries import DOLLAR, account_with


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE journal_entry SET amount_nanos = amount_nanos + 1",
        "DELETE FROM journal_entry",
        "TRUNCATE journal_entry",
        "UPDATE journal_transaction SET reason = 'other'",
        "DELETE FROM journal_transaction",
        "TRUNCATE journal_transaction, journal_entry",
        "DELETE FROM audit_log",
    ],
)
async def test_history_cannot_be_changed(database: Database, statement: str) -> None:
    await account_with(database, DOLLAR)
    with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
        await database.execute(statement)


async def test_a_transaction_that_does_not_sum_to_zero_is_refused_at_commit(database: Database) -> None:
    async def work(connection: Connection) -> None:
        lines = [JournalLine("platform:credit", -5), JournalLine("platform:revenue", 6)]
        await journal.write(connection, kind="test", lines_by_ref={"one": lines})

    with pytest.raises(asyncpg.CheckViolationError, match="off by 1 nanodollars"):
        await database.transaction(work)
    assert await database.fetchval("SELECT count(*) FROM journal_transaction") == 0


async def test_an_entry_added_later_is_refused_too(database: Database) -> None:
    await account_with(database, DOLLAR)
    with pytest.raises(asyncpg.CheckViolationError, match="off by 1"):
        await database.execute(
            "INSERT INTO journal_entry (transaction_id, ledger_account, amount_nanos)"
            " SELECT id, 'platform:revenue', 1 FROM journal_transaction"
        )


async def test_a_balance_cannot_become_negative(database: Database) -> None:
    account_id = await account_with(database, DOLLAR)
    with pytest.raises(asyncpg.CheckViolationError):
        await database.execute(
            "UPDATE balance SET available_nanos = available_nanos - $2 WHERE account_id = $1",
            account_id,
            DOLLAR + 1,
        )
