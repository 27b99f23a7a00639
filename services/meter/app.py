"""Joins the meter's parts. Nothing is built at import."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping

import aiohttp
from aiohttp import web

from services.common import logs
from services.common.discovery import Instances
from services.common.ids import BUCKETS
from services.common.internal_http import (
    add_health_routes,
    bearer,
    require_credential,
    translate_errors,
)
from services.meter import handlers
from services.meter.admission import Admission
from services.meter.audit import Audit
from services.meter.catalogue import CatalogueCache
from services.meter.charging_socket import SOCKETS, charging
from services.meter.counting import Counter
from services.meter.counting_desk import CountingDesk
from services.meter.epochs import Epochs
from services.meter.key_cache import KeyCache
from services.meter.ledger_client import LedgerClient, LedgerUnavailable
from services.meter.lending import Lending
from services.meter.metrics import MeterMetrics
from services.meter.outbox import Outbox
from services.meter.parts import METER, Meter
from services.meter.quota_store import QuotaStore
from services.meter.redis_address import RedisAddress
from services.meter.redis_link import RedisLink, StoreUnavailable
from services.meter.running import RunningSessions
from services.meter.scripts import load_scripts
from services.meter.settings import MeterSettings
from services.meter.sweeper import Sweeper

LOG = logs.get("meter.app")
REQUEST_BYTES_MAX = 64 * 1024 * 1024
RESTART_PAUSE_S = 0.5


def make_app(settings: MeterSettings) -> web.Application:
    app = web.Application(
        middlewares=[require_credential(settings.internal_credential), translate_errors],
        client_max_size=REQUEST_BYTES_MAX,
    )
    metrics = MeterMetrics()
    app[SOCKETS] = []
    app.router.add_get("/internal/v1/charging", charging)
    app.router.add_post("/internal/v1/configure", handlers.configure)
    app.router.add_post("/internal/v1/catalogue", handlers.catalogue)
    app.router.add_post("/internal/v1/init_epoch", handlers.init_epoch)
    app.router.add_post("/internal/v1/audit", handlers.audit)
    app.router.add_post("/internal/v1/recall", handlers.recall)
    app.router.add_post("/internal/v1/settle", handlers.settle)
    app.router.add_post("/internal/v1/edges/forget", handlers.forget_edge)

    async def ready() -> Mapping[str, bool]:
        meter = app[METER]
        return {
            "redis": meter.link.is_up,
            "epochs": meter.epochs.live_buckets == BUCKETS,
            "catalogue": meter.catalogue.revision >= 0 and meter.catalogue.is_usable,
        }

    add_health_routes(app, metrics.registry, ready)

    async def run_parts(app: web.Application) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            instances = Instances(settings.ledger_urls)
            await instances.refresh()
            session = await stack.enter_async_context(
                aiohttp.ClientSession(
                    headers=bearer(settings.internal_credential), connector=aiohttp.TCPConnector(limit=64)
                )
            )
            counter = await stack.enter_async_context(Counter())
            ledger = LedgerClient(instances, session, timeout_ms=settings.ledger_timeout_ms)
            app[METER] = meter = _join(settings, metrics, ledger, counter)
            async with _background(meter, instances):
                yield

    app.cleanup_ctx.append(run_parts)
    app.on_shutdown.append(_close_sockets)
    return app


def _join(settings: MeterSettings, metrics: MeterMetrics, ledger: LedgerClient, counter: Counter) -> Meter:
    scripts = load_scripts()
    link = RedisLink(
        RedisAddress.parse(settings.redis_url.value),
        scripts.values(),
        metrics,
        timeout_ms=settings.redis_timeout_ms,
    )
    store = QuotaStore(link, scripts)
    epochs = Epochs(store, ledger, metrics)
    keys = KeyCache(ledger)
    catalogue = CatalogueCache(ledger, usable_ms=settings.catalogue_usable_ms)
    counting = CountingDesk(counter, metrics)
    lending = Lending(store, ledger, epochs, metrics)
    outbox = Outbox(link, scripts["quarantine"], ledger, metrics)
    metrics.store_is_up = lambda: link.is_up
    metrics.buckets_live = lambda: epochs.live_buckets
    metrics.catalogue_age_s = lambda: catalogue.age_s
    return Meter(
        settings=settings,
        metrics=metrics,
        link=link,
        store=store,
        epochs=epochs,
        keys=keys,
        catalogue=catalogue,
        counting=counting,
        admission=Admission(
            settings=settings,
            store=store,
            epochs=epochs,
            keys=keys,
            catalogue=catalogue,
            lending=lending,
            counting=counting,
            metrics=metrics,
        ),
        running=RunningSessions(
            settings=settings,
            store=store,
            epochs=epochs,
            ledger=ledger,
            lending=lending,
            outbox=outbox,
            metrics=metrics,
        ),
        outbox=outbox,
        sweeper=Sweeper(
            settings=settings, store=store, epochs=epochs, ledger=ledger, outbox=outbox, metrics=metrics
        ),
        audit=Audit(link, scripts["audit"], epochs),
    )


@contextlib.asynccontextmanager
async def _background(meter: Meter, instances: Instances) -> AsyncIterator[None]:
    """What runs beside the calls, for as long as the app runs."""
    work: dict[str, Callable[[], Coroutine[None, None, None]]] = {
        "redis": lambda: meter.link.keep_connected(meter.epochs.on_connected, meter.epochs.on_lost),
        "epochs": meter.epochs.keep_trusted,
        "catalogue": meter.catalogue.keep_fresh,
        "outbox": meter.outbox.keep_shipping,
        "sweeper": meter.sweeper.keep_sweeping,
        "discovery": instances.watch,
    }
    tasks = [asyncio.create_task(_keep_running(name, run)) for name, run in work.items()]
    try:
        yield
    finally:
        with contextlib.suppress(StoreUnavailable, LedgerUnavailable, TimeoutError):
            async with asyncio.timeout(2.0):
                await meter.outbox.drain()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep_running(name: str, run: Callable[[], Coroutine[None, None, None]]) -> None:
    """A fault in one round must not end this work for good."""
    while True:
        try:
            await run()
        except Exception:
            LOG.exception("background work failed and starts again", work=name)
            await asyncio.sleep(RESTART_PAUSE_S)


async def _close_sockets(app: web.Application) -> None:
    sockets = app[SOCKETS]
    await asyncio.gather(
        *(socket.close(code=1001, message=b"meter stops") for socket in list(sockets)),
        return_exceptions=True,
    )
