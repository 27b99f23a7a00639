"""The meter's internal HTTP: what the ledger pushes, and the audit."""

from __future__ import annotations

import asyncio

from aiohttp import web

from services.common.contracts.catalogue import Catalogue
from services.common.contracts.lending import AuditRequest, Configure, InitEpochs, KeySnapshot
from services.common.ids import BUCKETS
from services.common.internal_http import read_body, typed_response
from services.meter import refusals
from services.meter.parts import METER, Meter
from services.meter.quota_answers import Fence
from services.meter.redis_link import StoreUnavailable


async def configure(request: web.Request) -> web.Response:
    body = await read_body(request, Configure)
    meter = request.app[METER]
    await asyncio.gather(*(_configure(meter, snapshot) for snapshot in body.keys))
    return typed_response({"configured": len(body.keys)})


async def _configure(meter: Meter, snapshot: KeySnapshot) -> None:
    """Raises Unavailable when it is not in force in Redis."""
    try:
        answer = await meter.store.configure(snapshot, epoch=meter.epochs.known(snapshot.bucket))
    except StoreUnavailable as error:
        raise refusals.unavailable("Redis is away: the change is not in force yet.") from error
    if isinstance(answer, Fence):
        # Nothing is admitted in a bucket without an epoch, and its keys are read anew afterwards.
        meter.epochs.suspect(snapshot.bucket, answer.seen_epoch, cause=answer.cause)
    meter.keys.put(snapshot)


async def catalogue(request: web.Request) -> web.Response:
    meter = request.app[METER]
    meter.catalogue.put(await read_body(request, Catalogue))
    return typed_response({"revision": meter.catalogue.revision})


async def init_epoch(request: web.Request) -> web.Response:
    """The higher epoch wins, whoever comes first."""
    body = await read_body(request, InitEpochs)
    meter = request.app[METER]
    if any(not 0 <= bucket < BUCKETS or epoch < 1 for bucket, epoch in body.epochs.items()):
        raise web.HTTPBadRequest(text="a bucket or an epoch is out of bounds")
    try:
        in_force = await meter.store.init_epochs(body.epochs)
    except StoreUnavailable as error:
        raise refusals.unavailable("Redis is away: the epochs have not begun.") from error
    for bucket, epoch in in_force.items():
        meter.epochs.learn(bucket, epoch)
    return typed_response(InitEpochs(in_force))


async def audit(request: web.Request) -> web.Response:
    body = await read_body(request, AuditRequest)
    return typed_response(await request.app[METER].audit.look(body))
