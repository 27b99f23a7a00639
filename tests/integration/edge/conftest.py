"""The edge as a whole: its real app on a real port, the emulator upstream, doubles of meter and ledger."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from services.common.contracts.account import AccountAnswer, AccountQuery
from services.common.contracts.catalogue import (
    Catalogue,
    Channel,
    ChannelCredential,
    Model,
    PriceVersion,
    Routing,
)
from services.common.contracts.lending import PostingReply
from services.common.contracts.recovery import Recovered, SessionIds
from services.common.ids import ChannelId
from services.common.internal_http import typed_response
from services.common.money import PriceVector
from services.common.settings import Secret
from services.edge.app import make_app, make_internal_app
from services.edge.parts import PARTS, EdgeParts
from services.edge.settings import EdgeSettings
from services.emulator.app import make_app as make_emulator
from tests.integration.edge.meter_double import PRICE, Account, Books, MeterDouble

API_KEY = "sk-mw-test"
MODEL = "gpt-4o"
USD = 1_000_000_000


class LedgerDouble:
    """Serves one routing; a poll for a newer one waits a moment. `account_answer`: for every key."""

    def __init__(self, routing: Routing) -> None:
        self.routing = routing
        self.account_answer: AccountAnswer | None = None
        self.account_delay_s = 0.0
        self.account_queries: list[AccountQuery] = []
        self.registrations: list[dict[str, Any]] = []
        self.posted: set[str] = set()
        self.recovered: list[Recovered] = []
        self.is_away = False

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/internal/v1/routing", self._routing)
        app.router.add_post("/internal/v1/edges", self._edges)
        app.router.add_post("/internal/v1/account_view", self._account_view)
        app.router.add_post("/internal/v1/sessions/missing", self._missing)
        app.router.add_post("/internal/v1/recovered", self._recovered)
        return app

    async def _missing(self, request: web.Request) -> web.Response:
        if self.is_away:
            return web.json_response({}, status=503)
        asked = msgspec.json.decode(await request.read(), type=SessionIds).session_ids
        return typed_response(SessionIds(tuple(one for one in asked if one not in self.posted)))

    async def _recovered(self, request: web.Request) -> web.Response:
        told = msgspec.json.decode(await request.read(), type=Recovered)
        self.recovered.append(told)
        self.posted |= {entry.record.session_id for entry in told.charged} | set(told.released)
        return typed_response(PostingReply(len(told.charged), 0, 0))

    async def _account_view(self, request: web.Request) -> web.Response:
        self.account_queries.append(msgspec.json.decode(await request.read(), type=AccountQuery))
        await asyncio.sleep(self.account_delay_s)
        if self.account_answer is None:
            return web.json_response({}, status=503)
        return typed_response(self.account_answer)

    async def _routing(self, request: web.Request) -> web.Response:
        for _ in range(20):
            if int(request.query["after"]) < self.routing.revision or request.query.get("wait_ms") == "0":
                break
            await asyncio.sleep(0.05)
        return typed_response(self.routing)

    async def _edges(self, request: web.Request) -> web.Response:
        self.registrations.append(await request.json())
        return web.json_response({})


async def serve_app(app: web.Application, **options: Any) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.02, **options)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


class Edge:
    """A running edge and its surroundings. `chat` posts a chat completion."""

    def __init__(
        self, *, url: str, internal_url: str, parts: EdgeParts, upstream_url: str, ledger: LedgerDouble
    ) -> None:
        self.ledger = ledger
        self.url = url
        self.internal_url = internal_url
        self.parts = parts
        self.upstream_url = upstream_url
        self.client = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {API_KEY}"}, timeout=aiohttp.ClientTimeout(total=30)
        )

    def chat(self, script: str = "", *, stream: bool = False, **fields: Any) -> Any:
        content = f"Hello [[emulate {script}]]" if script else "Hello"
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": content}],
            "stream": stream,
            **fields,
        }
        return self.client.post(f"{self.url}/v1/chat/completions", json=body)

    async def emissions(self, count: int = 1) -> list[dict[str, Any]]:
        """The emulator's rows, once there are `count`."""
        rows: list[dict[str, Any]] = []
        for _ in range(200):
            async with self.client.get(f"{self.upstream_url}/emulator/log") as response:
                rows = await response.json()
            if len(rows) >= count:
                return rows
            await asyncio.sleep(0.02)
        raise AssertionError(f"only {len(rows)} emissions")


StartEdge = Callable[..., Awaitable[Edge]]


@pytest.fixture
def books() -> Books:
    books = Books(Account(balance_nanos=100 * USD))
    books.add_key(API_KEY)
    return books


@pytest.fixture
async def meter(books: Books) -> AsyncIterator[MeterDouble]:
    meter = MeterDouble(books)
    await meter.start()
    yield meter
    await meter.stop()


@pytest.fixture
async def start_edge(meter: MeterDouble, tmp_path: Path) -> AsyncIterator[StartEdge]:
    """Starts an edge; keyword arguments are settings. `meter_urls` replaces the one meter."""
    closing: list[Callable[[], Awaitable[None]]] = []

    async def start(*, channels: tuple[Channel, ...] | None = None, **settings: Any) -> Edge:
        emulator_runner, upstream_url = await serve_app(make_emulator())
        closing.append(emulator_runner.cleanup)
        ledger = LedgerDouble(routing_to(upstream_url, channels))
        ledger_runner, ledger_url = await serve_app(ledger.app())
        closing.append(ledger_runner.cleanup)
        values = {
            "internal_credential": Secret("internal"),
            "meter_urls": (meter.url,),
            "ledger_urls": (ledger_url,),
            "configured_edge_id": "edge-test",
            "log_dir": tmp_path / "edge-log",
            "log_segment_bytes": 256 * 1024,
            "audit_ppm": 0,
            **settings,
        }
        app = make_app(dataclasses.replace(EdgeSettings(**values)))
        runner, url = await serve_app(app, handler_cancellation=True)
        closing.append(runner.cleanup)
        internal_runner, internal_url = await serve_app(make_internal_app(app))
        closing.append(internal_runner.cleanup)
        edge = Edge(
            url=url, internal_url=internal_url, parts=app[PARTS], upstream_url=upstream_url, ledger=ledger
        )
        closing.append(edge.client.close)
        for _ in range(200):
            if app[PARTS].routing.is_loaded and (
                app[PARTS].meter.connected_meters == len(values["meter_urls"]) or "meter_urls" in settings
            ):
                break
            await asyncio.sleep(0.02)
        return edge

    yield start
    for close in reversed(closing):
        await close()


@pytest.fixture
async def edge(start_edge: StartEdge) -> Edge:
    return await start_edge()


def routing_to(upstream_url: str, channels: tuple[Channel, ...] | None) -> Routing:
    channel = Channel(
        id=ChannelId("chan_emulator"),
        name="emulator",
        base_url=f"{upstream_url}/v1",
        credentials=(ChannelCredential(id="one", secret="sk-upstream"),),
    )
    names = (
        (MODEL, "chat"),
        ("org/model", "chat"),
        ("text-embedding-3-small", "embedding"),
        ("davinci-002", "completion"),
    )
    models = tuple(
        Model(id=name, owner="owner", kind=kind, prices=(PriceVersion(7, 0, PRICE),), context_tokens=128_000)
        for name, kind in names
    )
    free = PriceVersion(1, 0, PriceVector())
    models += (Model(id="omni-moderation-latest", owner="owner", kind="moderation", prices=(free,)),)
    return Routing(revision=1, channels=channels or (channel,), catalogue=Catalogue(1, models))


async def eventually(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    """Wait until `condition` holds; fails when it doesn't within `seconds`."""
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")
