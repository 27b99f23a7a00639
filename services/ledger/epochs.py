"""Epochs: the fencing tokens of the buckets.

A fence ends a bucket's epoch: its loans are frozen, until the roll-call has told what they still pay for.
"""

from __future__ import annotations

from services.common import logs
from services.common.contracts.lending import FenceRequest
from services.common.errors import BadRequest
from services.common.ids import BUCKETS
from services.ledger.database import Connection, Database
from services.ledger.meters import MeterNotConfirmed, Meters
from services.ledger.metrics import LedgerMetrics
from services.ledger.queries import load_queries

LOG = logs.get("ledger.epochs")
SQL = load_queries("epochs")


async def current_epochs(database: Database) -> tuple[int, ...]:
    """`[bucket]`: its epoch."""
    return tuple(row["epoch"] for row in await database.fetch(SQL["all_epochs"]))


async def fence(database: Database, metrics: LedgerMetrics, request: FenceRequest) -> dict[int, int]:
    """Open max(current, seen) + 1 for each bucket, all in one transaction; returns the new epochs.

    Raises BadRequest.
    """
    if len(request.buckets) != len(request.seen_epochs) or len(set(request.buckets)) != len(request.buckets):
        raise BadRequest("Each bucket must come once, with the epoch seen.")
    if not all(0 <= bucket < BUCKETS for bucket in request.buckets) or any(
        e < 0 for e in request.seen_epochs
    ):
        raise BadRequest(f"Buckets are numbered 0 to {BUCKETS - 1}, epochs from 0.")
    seen = dict(zip(request.buckets, request.seen_epochs, strict=True))

    async def work(connection: Connection) -> dict[int, int]:
        await connection.execute(SQL["wait_for_postings"])
        rows = await connection.fetch(SQL["lock_buckets"], sorted(seen))
        opened = {row["bucket"]: max(row["epoch"], seen[row["bucket"]]) + 1 for row in rows}
        buckets, ended = [row["bucket"] for row in rows], [row["epoch"] for row in rows]
        await connection.execute(SQL["insert_fences"], buckets, ended, request.run_id, request.reason)
        await connection.execute(SQL["set_epochs"], buckets, list(opened.values()), request.run_id)
        return opened

    opened = await database.transaction(work)
    metrics.fenced_buckets.inc(len(opened))
    LOG.warning("buckets fenced", buckets=len(opened), reason=request.reason, run_id=request.run_id)
    return opened


async def push_epochs(meters: Meters, epochs: dict[int, int]) -> None:
    """Tell the meters. One that misses it finds the newer epoch in Redis and asks for all of them."""
    try:
        await meters.init_epochs(epochs)
    except MeterNotConfirmed as error:
        LOG.warning("a meter did not confirm new epochs", urls=error.urls)
