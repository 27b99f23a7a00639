"""The ledger's recovery parts on a real Postgres, with edges and a meter of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import pytest

from services.common.contracts.lending import FenceRequest
from services.common.contracts.recovery import OpenSession
from services.common.ids import AccountId, SessionId, bucket_of, new_session_id
from services.common.metrics import new_registry
from services.ledger import epochs
from services.ledger.database import Database
from services.ledger.frozen_loans import FrozenLoans
from services.ledger.gone_edges import GoneEdges
from services.ledger.loans import Lender
from services.ledger.meters import Meters
from services.ledger.metrics import LedgerMetrics
from services.ledger.posting import Poster
from services.ledger.recalls import Recalls
from services.ledger.recovery import Recovery
from services.ledger.roll_call import Caller, RollCalls
from tests.integration.ledger.entries import set_price
from tests.integration.ledger.meter_double import MeterDouble, meters_client, running_meters
from tests.integration.ledger_recovery.edge_double import EdgeDouble, running_edges


@dataclass(kw_only=True)
class Books:
    """One ledger; `restart` gives another on the same database."""

    database: Database
    meters: Meters
    session: aiohttp.ClientSession
    metrics: LedgerMetrics
    edge_grace_ms: int = 60_000
    orphan_grace_ms: int = 3_600_000

    def __post_init__(self) -> None:
        self.lender = Lender(self.database, self.metrics)
        self.poster = Poster(self.database, self.metrics)
        self.recalls = Recalls(self.database, self.meters, self.metrics)
        self.recovery = Recovery(self.database, self.meters, self.poster, self.metrics)
        self.frozen_loans = FrozenLoans(self.database, self.meters, self.metrics)
        self.gone_edges = GoneEdges(
            self.database, self.meters, self.metrics, orphan_grace_ms=self.orphan_grace_ms
        )
        self.roll_calls = RollCalls(
            self.database,
            self.metrics,
            caller=Caller(self.database, self.session, self.metrics),
            frozen_loans=self.frozen_loans,
            gone_edges=self.gone_edges,
            recalls=self.recalls,
            edge_grace_ms=self.edge_grace_ms,
        )

    def restart(self, *, edge_grace_ms: int = 60_000, orphan_grace_ms: int = 3_600_000) -> Books:
        return Books(
            database=self.database,
            meters=self.meters,
            session=self.session,
            metrics=LedgerMetrics(new_registry()),
            edge_grace_ms=edge_grace_ms,
            orphan_grace_ms=orphan_grace_ms,
        )

    async def fence(self, account_id: str) -> int:
        bucket = bucket_of(account_id)
        request = FenceRequest(buckets=(bucket,), seen_epochs=(0,), run_id="r", reason="test")
        return (await epochs.fence(self.database, self.metrics, request))[bucket]

    async def round(self) -> bool:
        self.roll_calls.wake()
        return await self.roll_calls.round()

    async def available(self, account_id: str) -> int:
        nanos: int = await self.database.fetchval(
            "SELECT available_nanos FROM balance WHERE account_id = $1", account_id
        )
        return nanos


def listed(
    account_id: str, held_nanos: int, *, epoch: int = 1, session_id: SessionId | None = None
) -> OpenSession:
    return OpenSession(
        session_id=session_id or new_session_id(),
        account_id=AccountId(account_id),
        bucket=bucket_of(account_id),
        epoch=epoch,
        held_nanos=held_nanos,
    )


@pytest.fixture
async def database(migrated_database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(migrated_database_url, connections_max=10)
    await set_price(opened)
    yield opened
    await opened.close()


@pytest.fixture
async def meter() -> AsyncIterator[MeterDouble]:
    async with running_meters(1) as meters:
        yield meters[0]


@pytest.fixture
async def edges(database: Database) -> AsyncIterator[list[EdgeDouble]]:
    """Two."""
    async with running_edges(database, 2) as running:
        yield running


@pytest.fixture
async def books(database: Database, meter: MeterDouble) -> AsyncIterator[Books]:
    async with meters_client(meter.url) as meters, aiohttp.ClientSession() as session:
        yield Books(database=database, meters=meters, session=session, metrics=LedgerMetrics(new_registry()))
