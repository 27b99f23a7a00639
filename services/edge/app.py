"""The edge's composition root: every part is made and joined here, once.

Outage behaviour: no meter: 503 within two seconds, nothing charged. No ledger: the last routing
stays in use. An edge without routing or a meter is not ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry

from services.common import logs
from services.common.contracts.catalogue import CredentialReport, Routing
from services.common.discovery import Instances
from services.common.ids import EdgeId
from services.common.internal_http import add_health_routes
from services.common.metrics import new_registry
from services.edge import metrics
from services.edge.client_address import TrustedProxies
from services.edge.ending import EndQueue
from services.edge.key_hints import KeyHints
from services.edge.ledger_client import LedgerClient
from services.edge.meter_client import MeterClient
from services.edge.metrics import EdgeMetrics
from services.edge.parts import PARTS, CurrentRouting, EdgeParts
from services.edge.routes import add_routes
from services.edge.settings import EdgeSettings
from services.edge.upstreams.aiohttp_transport import AiohttpTransport
from services.edge.upstreams.attempts import Attempt, CredentialRefused, Failover
from services.edge.upstreams.health import Health
from services.edge.upstreams.transport import Transport

LOG = logs.get("edge.app")
FLUSH_SECONDS = 5.0
REGISTRY = web.AppKey("registry", CollectorRegistry)


def make_app(settings: EdgeSettings) -> web.Application:
    """The public app. Needs a running loop; its `cleanup_ctx` connects and, at the end, settles."""
    app = web.Application(client_max_size=settings.body_bytes_max)
    registry = new_registry()
    edge_metrics = metrics.register(registry)
    meter = MeterClient(Instances(settings.meter_urls), settings.internal_credential)
    routing, health, transport = CurrentRouting(), Health(), AiohttpTransport()

    def on_routing(new: Routing) -> None:
        routing.replace(new)
        health.retain(new.channels)

    ledger = LedgerClient(
        Instances(settings.ledger_urls),
        settings.internal_credential,
        edge_id=settings.edge_id,
        internal_url=settings.internal_url,
        on_routing=on_routing,
    )
    parts = EdgeParts(
        settings=settings,
        metrics=edge_metrics,
        meter=meter,
        key_hints=KeyHints(
            meter,
            keys_max=settings.key_hints_max,
            ttl_ms=settings.key_hint_ttl_ms,
            timeout_ms=settings.open_timeout_ms,
        ),
        end_queue=EndQueue(meter, waiting_max=settings.settles_waiting_max),
        routing=routing,
        failover=make_failover(settings, transport, health, edge_metrics, ledger),
        trusted_proxies=TrustedProxies(settings.trusted_proxies),
    )
    _add_gauges(parts)
    app[PARTS] = parts
    app[REGISTRY] = registry
    app.cleanup_ctx.append(lambda _app: _lifetime(parts, ledger, transport))
    add_routes(app)
    return app


def make_failover(
    settings: EdgeSettings,
    transport: Transport,
    health: Health,
    edge_metrics: EdgeMetrics,
    ledger: LedgerClient,
) -> Failover:
    def on_attempt(attempt: Attempt) -> None:
        if attempt.outcome not in ("answered", "rejected", "abandoned"):
            edge_metrics.upstream_failures[attempt.channel_id, attempt.outcome] += 1

    def on_credential_refused(refused: CredentialRefused) -> None:
        LOG.error("upstream refused a credential", channel_id=refused.channel_id, status=refused.status)
        ledger.report(
            CredentialReport(
                channel_id=refused.channel_id,
                credential_id=refused.credential_id,
                status=refused.status,
                edge_id=EdgeId(settings.edge_id),
            )
        )

    return Failover(
        transport=transport,
        health=health,
        plain_reply_bytes_max=settings.reply_bytes_max,
        on_attempt=on_attempt,
        on_credential_refused=on_credential_refused,
    )


async def _lifetime(
    parts: EdgeParts, ledger: LedgerClient, transport: AiohttpTransport
) -> AsyncIterator[None]:
    """Links to ledger and meters while the app runs; at its end everything is settled first."""
    async with _running("ledger client", ledger.run), _running("meter client", parts.meter.run):
        yield
        await settle_everything(parts)
    await transport.close()


def make_internal_app(public: web.Application) -> web.Application:
    """`/metrics`, `/healthz` and `/readyz` of the public app."""
    parts = public[PARTS]
    app = web.Application()

    async def ready() -> Mapping[str, bool]:
        return {
            "meter": parts.meter.connected_meters > 0,
            "routing": parts.routing.is_loaded,
            "serving": not parts.draining,
        }

    add_health_routes(app, public[REGISTRY], ready)
    return app


async def drain(parts: EdgeParts) -> None:
    """New requests on kept connections are the last of their connection; running ones go on to their end."""
    parts.draining = True
    while parts.metrics.sessions:  # noqa: ASYNC110 (a plain counter: the hot path sets no event)
        await asyncio.sleep(0.05)
    await settle_everything(parts)


async def settle_everything(parts: EdgeParts) -> None:
    """Every ended session reaches a meter, unless none answers for FLUSH_SECONDS."""
    try:
        async with asyncio.timeout(FLUSH_SECONDS):
            await parts.background.finish()
            await parts.end_queue.flush()
    except TimeoutError:
        LOG.error("sessions left unsettled", waiting=parts.end_queue.size, counting=len(parts.background))
        await parts.background.cancel()


@asynccontextmanager
async def _running(name: str, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """`work` beside the block, started again if it should ever fail, cancelled at the block's end."""

    async def keep() -> None:
        while True:
            try:
                await work()
            except Exception:
                LOG.exception("background work failed", work=name)
            await asyncio.sleep(1)

    task = asyncio.create_task(keep())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _add_gauges(parts: EdgeParts) -> None:
    meter, queue = parts.meter, parts.end_queue
    parts.metrics.gauges += [
        (
            "meterway_edge_settles_waiting",
            "Ended sessions that no meter has confirmed yet.",
            lambda: queue.size,
        ),
        ("meterway_edge_settles_refused", "Ends that a meter refused for good.", lambda: queue.refused),
        ("meterway_edge_counts_waiting", "Ended sessions being counted.", lambda: len(parts.background)),
        ("meterway_edge_connected_meters", "Meters with a link.", lambda: meter.connected_meters),
        (
            "meterway_edge_meter_calls_outstanding",
            "Calls no meter answered yet.",
            lambda: meter.calls_outstanding,
        ),
        (
            "meterway_edge_meter_calls_resent",
            "Calls that were sent to a meter again.",
            lambda: meter.resent_calls,
        ),
    ]
