"""The ledger's money parts on a real Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.common.metrics import new_registry
from services.ledger.database import Database
from services.ledger.loans import Lender
from services.ledger.metrics import LedgerMetrics
from services.ledger.posting import Poster
from tests.integration.ledger.meter_double import MeterDouble, running_meters


@pytest.fixture
async def database(migrated_database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(migrated_database_url, connections_max=20)
    yield opened
    await opened.close()


@pytest.fixture
def metrics() -> LedgerMetrics:
    return LedgerMetrics(new_registry())


@pytest.fixture
def poster(database: Database, metrics: LedgerMetrics) -> Poster:
    return Poster(database, metrics)


@pytest.fixture
def lender(database: Database, metrics: LedgerMetrics) -> Lender:
    return Lender(database, metrics)


@pytest.fixture
async def meter() -> AsyncIterator[MeterDouble]:
    """One meter over HTTP, whose Redis the test fills by hand."""
    async with running_meters(1) as meters:
        yield meters[0]
