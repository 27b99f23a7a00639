"""The edge's composition root: every part is made and joined here, once.

Outage behaviour: no meter: 503 within two seconds, nothing charged. No ledger: the last routing
stays in use. An edge without routing, a meter or room in its log is not ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry

from services.common import logs
from services.common.contracts.catalogue import CredentialReport, Routing
from services.common.contracts.charging import Release, Settle
from services.common.discovery import Instances
from services.common.ids import EdgeId
from services.common.internal_http import add_health_routes, require_credential, translate_errors
from services.common.metrics import new_registry
from services.edge import metrics
from services.edge.abandoned_logs import AbandonedLogs
from services.edge.account_views import AccountViews
from services.edge.client_address import TrustedProxies
from services.edge.cors import Cors
from services.edge.ending import EndQueue
from services.edge.key_hints import KeyHints
from services.edge.ledger_client import LedgerClient
from services.edge.log_keeper import LogKeeper
from services.edge.meter_client import MeterClient
from services.edge.metrics import EdgeMetrics
from services.edge.parts import PARTS, CurrentRouting, EdgeParts
from services.edge.roll_call import RollCalls
from services.edge.routes import add_routes
from services.edge.session_log import SessionLog
from services.edge.settings import EdgeSettings
from services.edge.upstreams.attempts import Attempt, CredentialRefused, Failover
from services.edge.upstreams.direct_transport import DirectTransport
from services.edge.upstreams.health import Health
from services.edge.upstreams.transport import Transport

LOG = logs.get("edge.app")
FLUSH_SECONDS = 5.0
REGISTRY = web.AppKey("registry", CollectorRegistry)
ROLL_CALLS = web.AppKey("roll_calls", RollCalls)


def make_app(settings: EdgeSettings) -> web.Application:
    """The public app. Needs a running loop; its `cleanup_ctx` connects and, at the end, settles.

    Raises LogUnavailable when the edge's log can't be made.
    """
    app = web.Application(client_max_size=settings.body_bytes_max)
    registry = new_registry()
    edge_metrics = metrics.register(registry)
    meter = MeterClient(Instances(settings.meter_urls), settings.internal_credential)
    routing, health, transport = CurrentRouting(), Health(), DirectTransport()

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
    log = open_log(settings)
    keeper = LogKeeper(log, ledger, edge_metrics)

    def on_ended(call: Settle | Release) -> None:
        keeper.ended(call)
        abandoned.ended(call)

    end_queue = EndQueue(meter, waiting_max=settings.settles_waiting_max, on_ended=on_ended)
    abandoned = AbandonedLogs(settings.log_dir, ledger, end_queue, edge_metrics)
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
        end_queue=end_queue,
        routing=routing,
        failover=make_failover(settings, transport, health, edge_metrics, ledger),
        trusted_proxies=TrustedProxies(settings.trusted_proxies),
        account_views=AccountViews(ledger.account_view),
        log=log,
    )
    _add_gauges(parts)
    _add_log_gauges(edge_metrics, log, keeper, abandoned)
    app[PARTS] = parts
    app[REGISTRY] = registry
    app[ROLL_CALLS] = RollCalls(log, abandoned, ledger.registration, edge_metrics)
    app.cleanup_ctx.append(lambda _app: _log_lifetime(log, abandoned))
    app.cleanup_ctx.append(lambda _app: _lifetime(parts, ledger, transport, keeper, abandoned))
    app.on_response_prepare.append(Cors(settings.cors_origins).add_headers)
    add_routes(app)
    return app


def open_log(settings: EdgeSettings) -> SessionLog:
    return SessionLog.open(
        settings.log_dir,
        EdgeId(settings.edge_id),
        segment_bytes=settings.log_segment_bytes,
        sync_interval_ms=settings.log_sync_ms,
        bytes_max=settings.log_bytes_max,
    )


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


async def _log_lifetime(log: SessionLog, abandoned: AbandonedLogs) -> AsyncIterator[None]:
    """What earlier processes left is read before anything is served."""
    await abandoned.load()
    yield
    abandoned.unlock()
    await asyncio.to_thread(log.close)


async def _lifetime(
    parts: EdgeParts, ledger: LedgerClient, transport: Transport, keeper: LogKeeper, abandoned: AbandonedLogs
) -> AsyncIterator[None]:
    """Links to ledger and meters while the app runs; at its end everything is settled first."""
    async with _running("ledger client", ledger.run), _running("meter client", parts.meter.run):
        async with _running("log keeper", keeper.run), _running("abandoned logs", abandoned.run):
            yield
            await settle_everything(parts)
        await keeper.finish()
    await transport.close()


def make_internal_app(public: web.Application) -> web.Application:
    """`/metrics`, `/healthz` and `/readyz` of the public app, and the ledger's roll-call."""
    parts = public[PARTS]
    credential = require_credential(parts.settings.internal_credential)
    app = web.Application(middlewares=[translate_errors, credential])

    async def ready() -> Mapping[str, bool]:
        return {
            "meter": parts.meter.connected_meters > 0,
            "routing": parts.routing.is_loaded,
            "log": parts.log.is_healthy,
            "serving": not parts.draining,
        }

    add_health_routes(app, public[REGISTRY], ready)
    app.router.add_post("/internal/v1/roll_call", public[ROLL_CALLS].handle)
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


def _add_log_gauges(
    edge_metrics: EdgeMetrics, log: SessionLog, keeper: LogKeeper, abandoned: AbandonedLogs
) -> None:
    edge_metrics.gauges += [
        ("meterway_edge_log_healthy", "1: the log takes new sessions.", lambda: log.is_healthy),
        ("meterway_edge_log_sessions", "Sessions that the log keeps.", lambda: len(log)),
        ("meterway_edge_log_bytes", "Disk space that the log has taken.", lambda: log.allocated_bytes),
        ("meterway_edge_log_unsynced_ms", "What a power loss would lose now.", lambda: log.unsynced_ms),
        ("meterway_edge_log_sync_errors", "Syncs of the log that failed.", lambda: log.sync_errors),
        (
            "meterway_edge_log_allocation_errors",
            "Files of the log that could not be made.",
            lambda: log.allocation_errors,
        ),
        (
            "meterway_edge_log_unconfirmed",
            "Settled sessions that the ledger is not known to have.",
            lambda: keeper.waiting,
        ),
        (
            "meterway_edge_log_abandoned",
            "Sessions of dead processes' logs that the ledger is not known to have.",
            lambda: abandoned.waiting,
        ),
    ]
