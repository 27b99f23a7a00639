import asyncpg
import pytest

from services.ledger import migrate as migrations
from services.ledger.migrate import MigrationError, migrate, missing_migrations


async def test_migrating_twice_changes_nothing_the_second_time(postgres_database_url: str) -> None:
    first = await migrate(postgres_database_url)
    assert first[0] == "0001_accounts_and_journal.sql"
    assert await migrate(postgres_database_url) == []
    connection = await asyncpg.connect(postgres_database_url)
    try:
        assert await missing_migrations(connection) == []
    finally:
        await connection.close()


async def test_an_empty_database_lacks_every_migration(postgres_database_url: str) -> None:
    connection = await asyncpg.connect(postgres_database_url)
    try:
        assert await missing_migrations(connection) == list(migrations.migrations())
    finally:
        await connection.close()


async def test_a_migration_that_was_edited_after_it_ran_is_refused(
    postgres_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "migrations", lambda: {"0001_a.sql": "CREATE TABLE a (b int)"})
    await migrate(postgres_database_url)
    monkeypatch.setattr(migrations, "migrations", lambda: {"0001_a.sql": "CREATE TABLE a (b bigint)"})
    with pytest.raises(MigrationError, match="never edited"):
        await migrate(postgres_database_url)


async def test_a_failing_migration_leaves_nothing_behind(
    postgres_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"0001_a.sql": "CREATE TABLE a (b int); SELECT 1 / 0;"}
    monkeypatch.setattr(migrations, "migrations", lambda: broken)
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(postgres_database_url)
    connection = await asyncpg.connect(postgres_database_url)
    try:
        assert await connection.fetchval("SELECT to_regclass('a')") is None
    finally:
        await connection.close()
