import asyncio

import asyncpg
import pytest

from services.ledger.database import TRANSACTION_ATTEMPTS, Connection, Database, DatabaseUnavailable
from tests.integration.ledger.entries import DOLLAR, account_with

LOCK = "SELECT available_nanos FROM balance WHERE account_id = $1 FOR UPDATE"


async def test_a_deadlock_is_tried_again_until_both_get_through(database: Database) -> None:
    first, second = await account_with(database, DOLLAR), await account_with(database, DOLLAR)
    both_hold = asyncio.Barrier(2)
    attempts = 0

    async def lock(one: str, other: str) -> None:
        waited = False

        async def work(connection: Connection) -> None:
            nonlocal attempts, waited
            attempts += 1
            await connection.execute("SET LOCAL deadlock_timeout = '20ms'")
            await connection.fetch(LOCK, one)
            if not waited:
                waited = True
                await both_hold.wait()
            await connection.fetch(LOCK, other)

        await database.transaction(work)

    await asyncio.gather(lock(first, second), lock(second, first))
    assert attempts == 3


async def test_a_connection_that_was_cut_before_commit_is_replaced(database: Database) -> None:
    cut = 0

    async def work(connection: Connection) -> str:
        nonlocal cut
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        if cut == 0:
            cut += 1
            await database.execute("SELECT pg_terminate_backend($1)", pid)
        return str(await connection.fetchval("SELECT 'fine'"))

    assert await database.transaction(work) == "fine"
    assert cut == 1


async def test_a_conflict_without_end_is_given_up(database: Database) -> None:
    attempts = 0

    async def work(_connection: Connection) -> None:
        nonlocal attempts
        attempts += 1
        raise asyncpg.SerializationError("again")

    with pytest.raises(DatabaseUnavailable):
        await database.transaction(work)
    assert attempts == TRANSACTION_ATTEMPTS


async def test_a_fault_of_our_own_is_not_hidden_and_leaves_nothing(database: Database) -> None:
    account_id = await account_with(database, DOLLAR)

    async def work(connection: Connection) -> None:
        await connection.execute("UPDATE balance SET available_nanos = 5 WHERE account_id = $1", account_id)
        raise KeyError("ours")

    with pytest.raises(KeyError):
        await database.transaction(work)
    assert await database.fetchval(LOCK, account_id) == DOLLAR


async def test_without_postgres_the_database_is_unavailable() -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        await Database.open("postgresql://nobody@127.0.0.1:1/none")
    assert caught.value.status == 503
    assert caught.value.retry_after_ms


async def test_json_goes_in_and_comes_out_as_objects(database: Database) -> None:
    assert await database.fetchval("SELECT $1::jsonb", {"a": [1, None]}) == {"a": [1, None]}
