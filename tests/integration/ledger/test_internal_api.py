"""The internal API over HTTP, with the whole ledger behind it."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import TypeVar

import aiohttp
import msgspec
import pytest
from aiohttp.test_utils import TestServer

from services.common.contracts.lending import (
    Epochs,
    FenceRequest,
    KeySnapshot,
    LoanReplies,
    LoanRequests,
    PostingReply,
    Postings,
    ResolveKey,
)
from services.common.ids import bucket_of, hash_api_key
from services.common.internal_http import InternalCallError, bearer, call
from services.common.settings import Secret, read_settings
from services.ledger import keys
from services.ledger.app import LedgerApps, NotMigrated, open_apps
from services.ledger.database import DatabaseUnavailable
from services.ledger.settings import LedgerSettings
from tests.integration.ledger.entries import DOLLAR, account_with, entry
from tests.integration.ledger.meter_double import MeterDouble
from tests.integration.ledger.test_loans import ask

T = TypeVar("T")
CREDENTIAL = "internal-credential"


def settings_for(database_url: str, *meter_urls: str) -> LedgerSettings:
    environ = {
        "DATABASE_URL": database_url,
        "METERWAY_INTERNAL_CREDENTIAL": CREDENTIAL,
        "METERWAY_OPERATOR_TOKEN": "operator-token",
        "METERWAY_ENCRYPTION_KEY": base64.urlsafe_b64encode(b"k" * 32).decode(),
        "METERWAY_METER_URLS": ",".join(meter_urls),
    }
    return read_settings(LedgerSettings, environ)


@pytest.fixture
async def apps(migrated_database_url: str, meter: MeterDouble) -> AsyncIterator[LedgerApps]:
    async with open_apps(settings_for(migrated_database_url, meter.url), database_wait_s=0) as opened:
        yield opened


class Client:
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def call(self, path: str, answer: type[T], body: object | None = None) -> T:
        return await call(self.session, f"{self.url}{path}", answer, body=body)


@pytest.fixture
async def client(apps: LedgerApps) -> AsyncIterator[Client]:
    server = TestServer(apps.internal)
    await server.start_server()
    async with aiohttp.ClientSession(headers=bearer(Secret(CREDENTIAL))) as session:
        yield Client(session, str(server.make_url("")).rstrip("/"))
    await server.close()


async def test_a_key_is_lent_to_and_posted_over_http(apps: LedgerApps, client: Client) -> None:
    ledger = apps.ledger
    account_id = await account_with(ledger.database, 10 * DOLLAR)
    key = await keys.create(ledger.database, ledger.meters, account_id=account_id)
    snapshot = await client.call(
        "/internal/v1/keys/resolve", KeySnapshot, ResolveKey(key_hash=hash_api_key(key.api_key))
    )
    assert (snapshot.account_id, snapshot.key_state) == (account_id, "active")
    lent = await client.call("/internal/v1/loans", LoanReplies, LoanRequests(requests=(ask(account_id),)))
    assert lent.replies[0].loans[0].nanos == DOLLAR
    sessions = Postings(entries=(entry(account_id, cost=1_000), entry("acct_nobody", cost=0)))
    posted = await client.call("/internal/v1/postings", PostingReply, sessions)
    assert posted == PostingReply(posted=1, duplicates=0, exceptions=1)


async def test_an_unknown_key_is_404_and_a_bad_body_400(client: Client) -> None:
    with pytest.raises(InternalCallError) as unknown:
        await client.call(
            "/internal/v1/keys/resolve", KeySnapshot, ResolveKey(key_hash=hash_api_key("sk-no"))
        )
    assert unknown.value.status == 404
    assert msgspec.json.decode(unknown.value.body) == {"code": "invalid_api_key"}
    with pytest.raises(InternalCallError) as malformed:
        await client.call("/internal/v1/postings", PostingReply, {"entries": [{}]})
    assert malformed.value.status == 400


async def test_nothing_is_answered_without_the_credential(client: Client) -> None:
    async with aiohttp.ClientSession() as stranger:
        for path in ("keys/resolve", "loans", "postings", "epochs/fence"):
            async with stranger.post(f"{client.url}/internal/v1/{path}", data=b"{}") as response:
                assert response.status == 401
        async with stranger.get(f"{client.url}/readyz") as response:
            assert response.status == 200
        async with stranger.get(f"{client.url}/metrics") as response:
            assert "meterway_ledger_posted_sessions_total" in await response.text()


async def test_a_fence_answers_all_epochs_and_tells_the_meters(client: Client, meter: MeterDouble) -> None:
    assert await client.call("/internal/v1/epochs", Epochs) == Epochs(epochs=(1,) * 256)
    bucket = bucket_of("acct_a")
    request = FenceRequest(buckets=(bucket,), seen_epochs=(0,), run_id="r", reason="test")
    answer = await client.call("/internal/v1/epochs/fence", Epochs, request)
    assert answer.epochs[bucket] == 2
    assert sum(answer.epochs) == 257
    await asyncio.wait_for(meter.epochs_begun.wait(), 5)
    assert meter.epochs == {bucket: 2}


async def test_a_ledger_does_not_start_on_a_database_that_is_not_migrated(postgres_database_url: str) -> None:
    with pytest.raises(NotMigrated, match="0001_accounts_and_journal"):
        async with open_apps(settings_for(postgres_database_url), database_wait_s=0):
            pass


async def test_a_ledger_does_not_start_without_a_database() -> None:
    with pytest.raises(DatabaseUnavailable):
        async with open_apps(settings_for("postgresql://nobody@127.0.0.1:1/none"), database_wait_s=0):
            pass
