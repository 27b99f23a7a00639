"""A whole ledger on a real Postgres, with a real HTTP meter that remembers what it was told."""

from __future__ import annotations

import base64
import contextlib
import io
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from services.common.contracts.catalogue import Catalogue, Routing
from services.common.contracts.lending import AuditReply, Configure
from services.common.settings import Secret
from services.ledger.app import LedgerApps, open_apps
from services.ledger.settings import LedgerSettings

INTERNAL = "internal-credential-of-the-tests"
TOKEN = "operator-token-of-the-tests"


def new_encryption_key() -> str:
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


@dataclass
class Meter:
    """What a meter at the other end of the wire was told; `failing`: it answers 500."""

    url: str = ""
    catalogues: list[Catalogue] = field(default_factory=list)
    configured: list[Configure] = field(default_factory=list)
    failing: bool = False


@pytest.fixture
async def meter() -> AsyncIterator[Meter]:
    seen = Meter()

    async def catalogue(request: web.Request) -> web.Response:
        if seen.failing:
            return web.Response(status=500)
        seen.catalogues.append(msgspec.json.decode(await request.read(), type=Catalogue))
        return web.json_response({})

    async def configure(request: web.Request) -> web.Response:
        seen.configured.append(msgspec.json.decode(await request.read(), type=Configure))
        return web.json_response({})

    async def audit(_request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(AuditReply(accounts=())))

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/internal/v1/catalogue", catalogue)
    app.router.add_post("/internal/v1/configure", configure)
    app.router.add_post("/internal/v1/audit", audit)
    async with TestServer(app) as server:
        seen.url = str(server.make_url("")).rstrip("/")
        yield seen


@pytest.fixture
def settings(migrated_database_url: str, meter: Meter) -> LedgerSettings:
    return LedgerSettings(
        internal_credential=Secret(INTERNAL),
        database_url=Secret(migrated_database_url),
        operator_token=Secret(TOKEN),
        encryption_key=Secret(new_encryption_key()),
        meter_urls=(meter.url,),
        public_base_urls=("https://api.example.com/v1", "https://direct.example.com/v1"),
        connections_max=5,
    )


@pytest.fixture
async def apps(settings: LedgerSettings) -> AsyncIterator[LedgerApps]:
    async with open_apps(settings, database_wait_s=0) as opened:
        yield opened


@dataclass
class Api:
    """The operators' API as its clients see it."""

    client: TestClient[web.Request, web.Application]
    token: str | None = TOKEN

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> Any:
        sent = dict(headers or {})
        if self.token is not None and "Authorization" not in sent:
            sent["Authorization"] = f"Bearer {self.token}"
        raw = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        data = io.BytesIO(raw) if raw else None
        async with self.client.request(method, f"/api/v1{path}", data=data, headers=sent) as response:
            answer = await response.read()
            assert response.status == status, (response.status, answer)
            return msgspec.json.decode(answer)


@pytest.fixture
async def console(apps: LedgerApps) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    async with TestClient(TestServer(apps.console)) as client:
        yield client


@pytest.fixture
def api(console: TestClient[web.Request, web.Application]) -> Api:
    return Api(console)


@dataclass
class Edge:
    """The internal API as an edge uses it."""

    client: TestClient[web.Request, web.Application]

    async def routing(self, after: int = 0, *, wait_ms: int = 20_000) -> Routing:
        path = f"/internal/v1/routing?after={after}&wait_ms={wait_ms}"
        async with self.client.get(path, headers={"Authorization": f"Bearer {INTERNAL}"}) as response:
            assert response.status == 200
            return msgspec.json.decode(await response.read(), type=Routing)

    async def post(self, path: str, body: object) -> Any:
        async with self.client.post(
            f"/internal/v1{path}",
            data=msgspec.json.encode(body),
            headers={"Authorization": f"Bearer {INTERNAL}"},
        ) as response:
            assert response.status == 200, await response.text()
            return await response.json()


@contextlib.asynccontextmanager
async def edge_of(apps: LedgerApps) -> AsyncIterator[Edge]:
    async with TestClient(TestServer(apps.internal), timeout=aiohttp.ClientTimeout(total=30)) as client:
        yield Edge(client)


@contextlib.asynccontextmanager
async def api_of(apps: LedgerApps) -> AsyncIterator[Api]:
    async with TestClient(TestServer(apps.console)) as client:
        yield Api(client)


@pytest.fixture
async def edge(apps: LedgerApps) -> AsyncIterator[Edge]:
    async with edge_of(apps) as edge:
        yield edge
