"""The internal routes that meters use: keys, loans, postings, epochs."""

from __future__ import annotations

from aiohttp import web

from services.common.contracts.lending import (
    Epochs,
    FenceRequest,
    KeyUnknown,
    LoanReplies,
    LoanRequests,
    Postings,
    ResolveKey,
)
from services.common.internal_http import read_body, typed_response
from services.ledger import epochs, snapshots
from services.ledger.context import LEDGER


def add_meter_routes(app: web.Application) -> None:
    app.router.add_post("/internal/v1/keys/resolve", post_resolve)
    app.router.add_post("/internal/v1/loans", post_loans)
    app.router.add_post("/internal/v1/postings", post_postings)
    app.router.add_post("/internal/v1/epochs/fence", post_fence)
    app.router.add_get("/internal/v1/epochs", get_epochs)


async def post_resolve(request: web.Request) -> web.Response:
    body = await read_body(request, ResolveKey)
    found = await snapshots.resolve(request.app[LEDGER].database, body.key_hash)
    return typed_response(KeyUnknown(), status=404) if found is None else typed_response(found)


async def post_loans(request: web.Request) -> web.Response:
    body = await read_body(request, LoanRequests)
    replies = await request.app[LEDGER].lender.lend(body.requests)
    return typed_response(LoanReplies(replies=tuple(replies)))


async def post_postings(request: web.Request) -> web.Response:
    body = await read_body(request, Postings)
    return typed_response(await request.app[LEDGER].poster.post(body.entries))


async def post_fence(request: web.Request) -> web.Response:
    body = await read_body(request, FenceRequest)
    ledger = request.app[LEDGER]
    opened = await epochs.fence(ledger.database, ledger.metrics, body)
    ledger.roll_calls.wake()
    # Not waited for: the meter that asked may wait for this very answer before it takes the next call.
    ledger.background.start(epochs.push_epochs(ledger.meters, opened))
    return typed_response(Epochs(epochs=await epochs.current_epochs(ledger.database)))


async def get_epochs(request: web.Request) -> web.Response:
    return typed_response(Epochs(epochs=await epochs.current_epochs(request.app[LEDGER].database)))
