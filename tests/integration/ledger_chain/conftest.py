"""A journal on a real Postgres, sealed, and somebody who changes it by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from services.ledger.database import Database
from services.ledger.metrics import LedgerMetrics
from services.ledger.sealing import Sealer

# The fixtures of the money tests: the same database, lender and poster.
from tests.integration.ledger.conftest import database, lender, meter, metrics, poster

__all__ = ["database", "lender", "meter", "metrics", "poster"]
ByHand = Callable[..., Awaitable[None]]


@pytest.fixture
def sealer(database: Database, metrics: LedgerMetrics) -> Sealer:
    return Sealer(database, metrics, interval_ms=10)


@pytest.fixture
async def by_hand(migrated_database_url: str) -> AsyncIterator[ByHand]:
    """Executes one statement past every trigger and foreign key, as a superuser can."""
    connection = await asyncpg.connect(migrated_database_url)
    await connection.execute("SET session_replication_role = replica")

    async def change(statement: str, *values: object) -> None:
        status = await connection.execute(statement, *values)
        assert int(status.split()[-1]) > 0, f"{statement} changed nothing"

    yield change
    await connection.close()
