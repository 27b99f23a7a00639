"""The internal routes that edges use (routing, registration, logs), and the catalogue that meters fetch."""

from __future__ import annotations

import msgspec
from aiohttp import web

from services.common import logs
from services.common.contracts.catalogue import CredentialReport, EdgeRegistration
from services.common.contracts.recovery import Recovered, SessionIds
from services.common.errors import BadRequest
from services.common.internal_http import read_body, typed_response
from services.ledger import channels
from services.ledger.catalogue import load_catalogue
from services.ledger.catalogue_parts import CATALOGUE_PARTS
from services.ledger.context import LEDGER
from services.ledger.queries import load_queries
from services.ledger.routing import COMMAND_LINE_CHANNEL

LOG = logs.get("ledger.edge_routes")
SQL = load_queries("edges")
WAIT_MS_MAX = 20_000


class ReportResult(msgspec.Struct, frozen=True):
    """`set_aside` false: it was already, it is gone, or it is the command line's."""

    set_aside: bool


class Registered(msgspec.Struct, frozen=True):
    edge_id: str


def add_edge_routes(app: web.Application) -> None:
    app.router.add_get("/internal/v1/routing", get_routing)
    app.router.add_get("/internal/v1/catalogue", get_catalogue)
    app.router.add_post("/internal/v1/channels/credential_report", post_credential_report)
    app.router.add_post("/internal/v1/edges", post_edge)
    app.router.add_post("/internal/v1/sessions/missing", post_missing)
    app.router.add_post("/internal/v1/recovered", post_recovered)


async def get_routing(request: web.Request) -> web.Response:
    """`after`: the revision that the edge has. `wait_ms`: at most 20,000, which is the default."""
    after = _whole_number(request, "after", default=0)
    wait_ms = min(_whole_number(request, "wait_ms", default=WAIT_MS_MAX), WAIT_MS_MAX)
    body = await request.app[CATALOGUE_PARTS].routing.routing_after(after, wait_ms=wait_ms)
    return web.Response(body=body, content_type="application/json")


async def get_catalogue(request: web.Request) -> web.Response:
    return typed_response(await load_catalogue(request.app[LEDGER].database))


async def post_credential_report(request: web.Request) -> web.Response:
    report = await read_body(request, CredentialReport)
    ledger = request.app[LEDGER]
    if report.channel_id == COMMAND_LINE_CHANNEL:
        LOG.error("the upstream refuses the key of METERWAY_UPSTREAM_API_KEY", status=report.status)
        return typed_response(ReportResult(set_aside=False))
    set_aside = await channels.set_credential_aside(ledger.database, report)
    if set_aside:
        ledger.metrics.credentials_set_aside.labels(str(report.status)).inc()
        LOG.error(
            "a channel credential was refused by its upstream and set aside",
            channel_id=report.channel_id,
            credential_id=report.credential_id,
            status=report.status,
            edge_id=report.edge_id,
        )
    return typed_response(ReportResult(set_aside=set_aside))


async def post_edge(request: web.Request) -> web.Response:
    """An edge registers before it serves, and again every few seconds. A new process must promise anew."""
    edge = await read_body(request, EdgeRegistration)
    ledger = request.app[LEDGER]
    is_new = await ledger.database.fetchval(
        SQL["register_edge"], edge.edge_id, edge.incarnation, edge.internal_url
    )
    if is_new:
        ledger.roll_calls.wake()
    return typed_response(Registered(edge_id=edge.edge_id))


async def post_missing(request: web.Request) -> web.Response:
    asked = await read_body(request, SessionIds)
    missing = await request.app[LEDGER].recovery.missing(asked.session_ids)
    return typed_response(SessionIds(session_ids=missing))


async def post_recovered(request: web.Request) -> web.Response:
    told = await read_body(request, Recovered)
    return typed_response(await request.app[LEDGER].recovery.recover(told))


def _whole_number(request: web.Request, name: str, *, default: int) -> int:
    text = request.query.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadRequest(f"{name}: a whole number is needed.", param=name)
    return int(text)
