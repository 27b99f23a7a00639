"""The whole ledger, with its background work, over HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp.test_utils import TestServer

from services.common.contracts.catalogue import EdgeRegistration
from services.common.contracts.lending import Epochs, FenceRequest, PostingReply, Postings
from services.common.contracts.recovery import Recovered, SessionIds
from services.common.ids import EdgeId, bucket_of
from services.common.internal_http import bearer, call
from services.common.settings import Secret
from services.ledger.app import LedgerApps, open_apps
from services.ledger.database import Database
from tests.integration.ledger.entries import DOLLAR, account_with, entry, lend
from tests.integration.ledger.meter_double import MeterDouble
from tests.integration.ledger.test_internal_api import CREDENTIAL, settings_for
from tests.integration.ledger_recovery.conftest import listed
from tests.integration.ledger_recovery.edge_double import EdgeDouble, running_edges


async def until(condition: Callable[[], Awaitable[object]], *, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Running:
    def __init__(self, apps: LedgerApps, session: aiohttp.ClientSession, url: str, console_url: str) -> None:
        self.ledger = apps.ledger
        self._session = session
        self._url, self._console_url = url, console_url

    async def internal(self, path: str, answer: type[Any], body: object) -> Any:
        return await call(self._session, f"{self._url}/internal/v1/{path}", answer, body=body)

    async def api(self, method: str, path: str, body: object | None = None) -> tuple[int, Any]:
        async with self._session.request(
            method,
            f"{self._console_url}/api/v1{path}",
            data=msgspec.json.encode(body or {}) if method == "POST" else None,
            headers={"Authorization": "Bearer operator-token"},
        ) as response:
            return response.status, msgspec.json.decode(await response.read())

    async def available(self, account_id: str) -> int:
        nanos: int = await self.ledger.database.fetchval(
            "SELECT available_nanos FROM balance WHERE account_id = $1", account_id
        )
        return nanos


@pytest.fixture
async def running(
    migrated_database_url: str, database: Database, meter: MeterDouble
) -> AsyncIterator[Running]:
    async with (
        open_apps(settings_for(migrated_database_url, meter.url), database_wait_s=0) as apps,
        TestServer(apps.internal) as internal,
        TestServer(apps.console) as console,
        aiohttp.ClientSession(headers=bearer(Secret(CREDENTIAL))) as session,
    ):
        urls = [str(server.make_url("")).rstrip("/") for server in (internal, console)]
        yield Running(apps, session, *urls)


async def test_after_a_fence_the_loans_are_back_within_a_moment(
    running: Running, edges: list[EdgeDouble]
) -> None:
    database = running.ledger.database
    account_id = await account_with(database, 4 * DOLLAR)
    await lend(running.ledger.lender, account_id, 4 * DOLLAR)
    session = listed(account_id, DOLLAR)
    edges[0].sessions = [session]
    started = time.monotonic()
    request = FenceRequest(buckets=(bucket_of(account_id),), seen_epochs=(0,), run_id="r", reason="test")
    await running.internal("epochs/fence", Epochs, request)

    async def is_back() -> bool:
        return await running.available(account_id) == 3 * DOLLAR

    await until(is_back)
    assert time.monotonic() - started < 1.0
    # The edge ends, and its log tells.
    charged = entry(account_id, cost=5_000, session_id=session.session_id)
    ids = SessionIds((session.session_id,))
    assert await running.internal("sessions/missing", SessionIds, ids) == ids
    told = Recovered(EdgeId("edge-0"), "log", (charged,), ())
    assert (await running.internal("recovered", PostingReply, told)).posted == 1
    assert await running.internal("sessions/missing", SessionIds, ids) == SessionIds(())

    async def is_all_back() -> bool:
        return await running.available(account_id) == 4 * DOLLAR - 5_000

    await until(is_all_back)


async def test_an_edge_that_registers_must_promise_at_once(running: Running, edges: list[EdgeDouble]) -> None:
    request = FenceRequest(buckets=(3,), seen_epochs=(0,), run_id="r", reason="test")
    await running.internal("epochs/fence", Epochs, request)

    async def have_promised() -> bool:
        return all(edge.promised == {3: 2} for edge in edges)

    await until(have_promised)
    edges[0].promised.clear()
    edges[0].incarnation = "edge-0-2"
    registration = EdgeRegistration(edges[0].edge_id, edges[0].incarnation, edges[0].url)
    await running.internal("edges", dict, registration)
    await until(have_promised)


async def test_edges_are_listed_and_forgotten_by_the_api(running: Running, edges: list[EdgeDouble]) -> None:
    status, answer = await running.api("GET", "/edges")
    assert (status, [edge["state"] for edge in answer["edges"]]) == (200, ["active", "active"])
    assert (await running.api("POST", "/edges/edge-1/forget"))[0] == 200
    status, answer = await running.api("POST", "/edges/nobody/forget")
    assert (status, answer["error"]["code"]) == (404, "edge_not_found")
    _status, answer = await running.api("GET", "/edges")
    assert [edge["state"] for edge in answer["edges"]] == ["active", "gone"]
    _status, log = await running.api("GET", "/audit?target=edge-1")
    assert [entry["action"] for entry in log["entries"]] == ["edge.forget"]


async def test_an_adjustment_and_a_suspension_recall_what_is_not_held(
    running: Running, meter: MeterDouble
) -> None:
    account_id = await account_with(running.ledger.database, 4 * DOLLAR)
    await lend(running.ledger.lender, account_id, 4 * DOLLAR)
    meter.unheld_nanos[account_id] = 3 * DOLLAR
    status, answer = await running.api(
        "POST", f"/accounts/{account_id}/credits", {"usd": "-1", "reason": "refund", "ref": "r"}
    )
    assert (status, answer["moved_nanos"], answer["claimed_nanos"]) == (200, 0, DOLLAR)
    assert answer["balance_nanos"] == 3 * DOLLAR
    assert (await running.api("POST", f"/accounts/{account_id}/suspend"))[0] == 200
    assert await running.available(account_id) == 2 * DOLLAR


async def test_use_that_came_past_redis_is_told_to_redis_even_after_an_outage(
    running: Running, meter: MeterDouble
) -> None:
    database = running.ledger.database
    account_id = await account_with(database, DOLLAR)
    await database.execute(
        "INSERT INTO api_key (id, account_id, key_hash, hint) VALUES ('key_1', $1, 'hash', 'hint')",
        account_id,
    )
    meter.answers_status = 503
    late = msgspec.structs.replace(entry(account_id, cost=9_000, loan=0, key_id="key_1"), past_redis=True)
    in_redis = entry(account_id, cost=4_000, loan=0, key_id="key_1")
    await running.internal("postings", PostingReply, Postings((late, in_redis)))
    await asyncio.sleep(0.2)
    assert meter.configured == []
    meter.answers_status = 200

    async def is_told() -> bool:
        return not await database.fetch("SELECT FROM key_push")

    await until(is_told)
    assert {(told.used_nanos, told.late_nanos) for told in meter.configured} == {(13_000, 9_000)}


async def test_two_ledgers_call_the_roll_without_harm(
    running: Running, migrated_database_url: str, meter: MeterDouble
) -> None:
    database = running.ledger.database
    account_id = await account_with(database, 4 * DOLLAR)
    await lend(running.ledger.lender, account_id, 4 * DOLLAR)
    async with (
        running_edges(database, 2) as edges,
        open_apps(settings_for(migrated_database_url, meter.url), database_wait_s=0),
    ):
        edges[0].sessions = [listed(account_id, DOLLAR)]
        request = FenceRequest(buckets=(bucket_of(account_id),), seen_epochs=(0,), run_id="r", reason="test")
        await running.internal("epochs/fence", Epochs, request)

        async def is_back() -> bool:
            return await running.available(account_id) == 3 * DOLLAR

        await until(is_back)
        await asyncio.sleep(1.2)
        assert await running.available(account_id) == 3 * DOLLAR
