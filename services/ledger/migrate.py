"""Forward-only migrations: each file of `sql/migrations/` once, in order, in its own transaction.

Old code keeps running beside a migration, so none may wait long for a lock: `lock_timeout` is 4 s.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from importlib import resources

import asyncpg

from services.common import logs
from services.common.settings import Secret, read_settings, setting

LOG = logs.get("ledger.migrate")
_ADVISORY_LOCK = 0x6D657465
_LOCK_TIMEOUT = "4s"

_CREATE_HISTORY = """
CREATE TABLE IF NOT EXISTS schema_migration (
    name text PRIMARY KEY,
    sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


@dataclass(frozen=True, kw_only=True)
class MigrateSettings:
    database_url: Secret = setting(
        "DATABASE_URL", "The Postgres to migrate, postgresql://user:password@host/name."
    )


class MigrationError(Exception):
    """The database and this version's migrations don't fit together."""


def migrations() -> dict[str, str]:
    """SQL by file name, in order."""
    folder = resources.files("services.ledger.sql.migrations")
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda e: e.name)
    return {file.name: file.read_text(encoding="utf-8") for file in files}


async def migrate(database_url: str) -> list[str]:
    """Apply what is missing; returns the names applied now.

    Raises MigrationError when an applied migration has another content here.
    """
    connection = await asyncpg.connect(database_url, timeout=10)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _ADVISORY_LOCK)
        await connection.execute(_CREATE_HISTORY)
        return await _apply_missing(connection)
    finally:
        await connection.close()


async def _apply_missing(connection: asyncpg.Connection) -> list[str]:
    rows = await connection.fetch("SELECT name, sha256 FROM schema_migration")
    applied = {row["name"]: row["sha256"] for row in rows}
    done: list[str] = []
    for name, sql in migrations().items():
        checksum = hashlib.sha256(sql.encode()).hexdigest()
        if name in applied:
            if applied[name] != checksum:
                raise MigrationError(f"{name} was applied with another content: migrations are never edited")
            continue
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            await connection.execute(sql)
            await connection.execute(
                "INSERT INTO schema_migration (name, sha256) VALUES ($1, $2)", name, checksum
            )
        LOG.info("migrated", migration=name)
        done.append(name)
    return done


async def missing_migrations(connection: asyncpg.Connection) -> list[str]:
    """Names that this version needs and the database doesn't have yet."""
    if await connection.fetchval("SELECT to_regclass('schema_migration')") is None:
        return list(migrations())
    rows = await connection.fetch("SELECT name FROM schema_migration")
    applied = {row["name"] for row in rows}
    return [name for name in migrations() if name not in applied]


async def main() -> None:
    """`meterway migrate`."""
    done = await migrate(read_settings(MigrateSettings, os.environ).database_url.value)
    LOG.info("schema is up to date", applied_now=done)
