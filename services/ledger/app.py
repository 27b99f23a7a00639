"""The one place that joins the ledger's parts: two listeners, the internal API and the console's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from services.common import logs
from services.common.discovery import Instances
from services.common.errors import MeterwayError
from services.common.internal_http import add_health_routes, bearer, require_credential, translate_errors
from services.common.metrics import new_registry
from services.ledger.api.routes import add_routes
from services.ledger.background import Background
from services.ledger.catalogue_parts import CATALOGUE_PARTS, CatalogueParts, open_catalogue_parts
from services.ledger.console.routes import add_routes as add_console_routes
from services.ledger.context import LEDGER, Ledger
from services.ledger.database import Connection, Database, DatabaseUnavailable
from services.ledger.edge_routes import add_edge_routes
from services.ledger.frozen_loans import FrozenLoans
from services.ledger.gone_edges import GoneEdges
from services.ledger.handlers.account_view import add_account_view_route
from services.ledger.handlers.internal import add_meter_routes
from services.ledger.late_use import LateUse
from services.ledger.loans import Lender
from services.ledger.meters import Meters
from services.ledger.metrics import LedgerMetrics
from services.ledger.migrate import missing_migrations
from services.ledger.posting import Poster
from services.ledger.recalls import Recalls
from services.ledger.recovery import Recovery
from services.ledger.roll_call import Caller, RollCalls
from services.ledger.sealing import Sealer
from services.ledger.settings import LedgerSettings

LOG = logs.get("ledger.app")
INTERNAL_BODY_BYTES_MAX = 32 * 1024 * 1024
DATABASE_WAIT_S = 120
PARTITIONS_INTERVAL_S = 3_600


class NotMigrated(Exception):
    """The database lacks migrations of this version. Please run `meterway migrate`."""


@dataclass(frozen=True, kw_only=True)
class LedgerApps:
    """`internal`: meters and edges. `console`: people and /api/v1."""

    ledger: Ledger
    internal: web.Application
    console: web.Application


@contextlib.asynccontextmanager
async def open_apps(
    settings: LedgerSettings, *, database_wait_s: float = DATABASE_WAIT_S
) -> AsyncIterator[LedgerApps]:
    """Both apps over one set of parts, which is closed after them.

    Waits for a database that is starting or being migrated. Raises DatabaseUnavailable, NotMigrated.
    """
    async with (
        open_ledger(settings, database_wait_s=database_wait_s) as ledger,
        open_catalogue_parts(ledger) as parts,
    ):
        yield LedgerApps(
            ledger=ledger, internal=_internal_app(ledger, parts), console=_console_app(ledger, parts)
        )


@contextlib.asynccontextmanager
async def open_ledger(
    settings: LedgerSettings, *, database_wait_s: float = DATABASE_WAIT_S
) -> AsyncIterator[Ledger]:
    """The ledger's money parts, with their background work."""
    metrics = LedgerMetrics(new_registry())
    async with contextlib.AsyncExitStack() as stack:
        database = await _open_database(settings, metrics, database_wait_s)
        stack.push_async_callback(database.close)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(headers=bearer(settings.internal_credential), trust_env=False)
        )
        instances = Instances(settings.meter_urls)
        meters = Meters(instances, session, timeout_ms=settings.meter_timeout_ms, metrics=metrics)
        poster = Poster(database, metrics)
        stack.push_async_callback(poster.close)
        lender = Lender(database, metrics)
        stack.push_async_callback(lender.close)
        frozen_loans = FrozenLoans(database, meters, metrics)
        recalls = Recalls(database, meters, metrics)
        roll_calls = RollCalls(
            database,
            metrics,
            caller=Caller(database, session, metrics),
            frozen_loans=frozen_loans,
            gone_edges=GoneEdges(database, meters, metrics, orphan_grace_ms=settings.orphan_grace_ms),
            recalls=recalls,
            edge_grace_ms=settings.edge_grace_ms,
        )
        await poster.prepare()
        background = Background()
        stack.push_async_callback(background.close)
        background.start(roll_calls.run())
        background.start(LateUse(database, meters, poster.late_use_posted).run())
        background.start(_keep_partitions_ahead(poster))
        background.start(Sealer(database, metrics).run())
        yield Ledger(
            settings=settings,
            database=database,
            meters=meters,
            metrics=metrics,
            lender=lender,
            poster=poster,
            frozen_loans=frozen_loans,
            recalls=recalls,
            recovery=Recovery(database, meters, poster, metrics),
            roll_calls=roll_calls,
            background=background,
        )


async def _open_database(settings: LedgerSettings, metrics: LedgerMetrics, wait_s: float) -> Database:
    deadline = asyncio.get_running_loop().time() + wait_s
    while True:
        try:
            return await _open_migrated(settings, metrics)
        except (DatabaseUnavailable, NotMigrated) as error:
            if asyncio.get_running_loop().time() >= deadline:
                raise
            LOG.info("waiting for the database", reason=str(error))
            await asyncio.sleep(0.5)


async def _open_migrated(settings: LedgerSettings, metrics: LedgerMetrics) -> Database:
    database = await Database.open(
        settings.database_url.value,
        connections_max=settings.connections_max,
        observe_seconds=metrics.postgres_seconds.observe,
        observe_retry=lambda cause: metrics.transaction_retries.labels(cause=cause).inc(),
    )
    try:
        missing = await database.transaction(missing_migrations)
        if missing:
            raise NotMigrated(f"{NotMigrated.__doc__} Missing: {', '.join(missing)}")
    except BaseException:
        await database.close()
        raise
    return database


async def _keep_partitions_ahead(poster: Poster) -> None:
    while True:
        await asyncio.sleep(PARTITIONS_INTERVAL_S)
        try:
            await poster.prepare()
        except MeterwayError as error:
            LOG.warning("next months' partitions are not there yet", reason=error.message)


def _internal_app(ledger: Ledger, parts: CatalogueParts) -> web.Application:
    app = web.Application(
        middlewares=[translate_errors, require_credential(ledger.settings.internal_credential)],
        client_max_size=INTERNAL_BODY_BYTES_MAX,
    )
    app[LEDGER] = ledger
    app[CATALOGUE_PARTS] = parts

    async def ready() -> Mapping[str, bool]:
        return {"postgres": await _answers(ledger.database)}

    add_health_routes(app, ledger.metrics.registry, ready)
    add_meter_routes(app)
    add_edge_routes(app)
    add_account_view_route(app)
    return app


def _console_app(ledger: Ledger, parts: CatalogueParts) -> web.Application:
    app = web.Application(middlewares=[translate_errors])
    app[LEDGER] = ledger
    app[CATALOGUE_PARTS] = parts

    async def healthz(_request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    app.router.add_get("/healthz", healthz)
    add_routes(app)
    add_console_routes(app)
    return app


async def _answers(database: Database) -> bool:
    async def work(connection: Connection) -> bool:
        return not await missing_migrations(connection)

    try:
        return await database.transaction(work)
    except DatabaseUnavailable:
        return False
