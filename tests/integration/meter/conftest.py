"""A meter on real Redis, beside a ledger of this test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import redis.asyncio
from aiohttp import web

from services.common.settings import Secret
from services.meter.app import make_app
from services.meter.parts import METER, Meter
from services.meter.settings import MeterSettings
from tests.integration.meter.edge_line import CREDENTIAL, EdgeLine
from tests.integration.meter.fake_ledger import FakeLedger


@dataclass
class RunningMeter:
    url: str
    parts: Meter
    line: EdgeLine


StartMeter = Callable[..., Awaitable[RunningMeter]]


async def serve(stack: AsyncExitStack, app: web.Application) -> str:
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


async def until(condition: Callable[[], object], *, seconds: float = 8.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


@pytest.fixture
async def ledger_url(stack: AsyncExitStack, ledger: FakeLedger) -> str:
    return await serve(stack, ledger.make_app())


@pytest.fixture
async def start_meter(stack: AsyncExitStack, ledger_url: str, redis_url: str) -> StartMeter:
    """`await start_meter(lease_ms=200)`: one more meter on the same Redis, ready."""

    async def start(*, url: str = "", is_ready: bool = True, **settings: int) -> RunningMeter:
        given = MeterSettings(
            internal_credential=Secret(CREDENTIAL),
            redis_url=Secret(url or redis_url),
            ledger_urls=(ledger_url,),
            **settings,
        )
        app = make_app(given)
        meter_url = await serve(stack, app)
        parts = app[METER]
        if is_ready:
            await until(lambda: parts.epochs.live_buckets == 256 and parts.catalogue.is_usable)
        line = await stack.enter_async_context(EdgeLine(meter_url))
        return RunningMeter(meter_url, parts, line)

    return start


@pytest.fixture
async def meter(start_meter: StartMeter) -> RunningMeter:
    return await start_meter()


@pytest.fixture
async def admin(redis_admin_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """Redis as a user who may do everything."""
    async with redis.asyncio.from_url(redis_admin_url) as client:
        yield client
