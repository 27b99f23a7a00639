"""Real upstream servers on 127.0.0.1, one behaviour each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop
from aiohttp import web

from services.common.contracts.catalogue import Channel
from services.edge.upstreams.direct_transport import DirectTransport, TransportLimits
from services.edge.upstreams.transport import Transport
from tests.unit.edge_upstreams.channels import channel


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The edge runs on uvloop, whose transports differ from asyncio's in small things."""
    return {"uvloop": uvloop.new_event_loop}


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Upstream:
    """`closed_at`: loop times at which the connection of a request in work was lost."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    closed_at: list[float] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    def channel(self, name: str = "up", **fields: Any) -> Channel:
        return channel(name, base_url=self.url, **fields)


StartUpstream = Callable[[Handler], Awaitable[Upstream]]


@pytest.fixture
async def start_upstream() -> AsyncIterator[StartUpstream]:
    runners: list[web.AppRunner] = []

    async def start(handler: Handler) -> Upstream:
        upstream = Upstream()

        async def handle(request: web.Request) -> web.StreamResponse:
            upstream.requests.append(
                {"path": request.path, "headers": dict(request.headers), "body": await request.read()}
            )
            upstream.reached.set()
            try:
                return await handler(request)
            except (asyncio.CancelledError, ConnectionError):
                upstream.closed_at.append(asyncio.get_running_loop().time())
                upstream.closed.set()
                raise

        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/{tail:.*}", handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        upstream.url = f"http://127.0.0.1:{port}/v1"
        return upstream

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    transport = DirectTransport(TransportLimits(read_buffer_bytes=32 * 1024))
    yield transport
    await transport.close()
