"""The meter's internal HTTP: what the ledger pushes, and the audit."""

from __future__ import annotations

import asyncio

from aiohttp import web

from services.common.contracts.catalogue import Catalogue
from services.common.contracts.charging import Ended
from services.common.contracts.lending import (
    AllSettled,
    AuditRequest,
    Configure,
    ForgetEdge,
    InitEpochs,
    KeySnapshot,
    Recall,
    RecallReply,
    SettleAll,
)
from services.common.ids import BUCKETS, bucket_of
from services.common.internal_http import read_body, typed_response
from services.meter import refusals
from services.meter.ledger_client import LedgerUnavailable
from services.meter.parts import METER, Meter
from services.meter.quota_answers import Fence, LoansStale
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


async def recall(request: web.Request) -> web.Response:
    """Raises Unavailable when Redis can't say: the ledger asks again with the same rseq."""
    body = await read_body(request, Recall)
    meter, bucket = request.app[METER], bucket_of(body.account_id)
    try:
        answer = await meter.store.recall(body, bucket=bucket, known_epoch=meter.epochs.known(bucket))
    except StoreUnavailable as error:
        raise refusals.unavailable("Redis is away: nothing is recalled yet.") from error
    if isinstance(answer, Fence):
        meter.epochs.suspect(bucket, answer.seen_epoch, cause=answer.cause)
        raise refusals.unavailable("The store is being checked.")
    if isinstance(answer, LoansStale):
        if answer.epoch < body.epoch:
            # The ledger's newest epoch has not begun here.
            raise refusals.unavailable("The store is being checked.")
        return typed_response(RecallReply(body.account_id, body.epoch, body.rseq, error="stale_epoch"))
    return typed_response(
        RecallReply(
            body.account_id,
            body.epoch,
            answer.rseq,
            answer.recalled_nanos,
            answer.granted_nanos,
            error="out_of_order" if answer.is_out_of_order else "",
        )
    )


async def settle(request: web.Request) -> web.Response:
    """What an edge's log knows to have ended. Raises Unavailable when one could not be settled."""
    body = await read_body(request, SettleAll)
    meter = request.app[METER]
    replies = await asyncio.gather(*(meter.running.settle(call) for call in body.settles))
    if not all(isinstance(reply, Ended) for reply in replies):
        raise refusals.unavailable("Some sessions could not be settled. Please send all of them again.")
    return typed_response(AllSettled(ended=len(replies)))


async def forget_edge(request: web.Request) -> web.Response:
    body = await read_body(request, ForgetEdge)
    try:
        return typed_response(await request.app[METER].sweeper.forget_edge(body.edge_id))
    except (StoreUnavailable, LedgerUnavailable) as error:
        raise refusals.unavailable(f"Not all sessions could be ended: {error}.") from error
