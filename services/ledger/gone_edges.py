"""Edges: listed, forgotten by an operator, or gone because nothing was heard of them for too long.

A gone edge's sessions are charged at the last checkpoint that Redis has, by a meter; where Redis has lost it,
0: the operator's loss, counted. What they held of ended epochs is free then. Its log may turn up later: that
goes to the exception list (see `recovery`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import msgspec

from services.common import logs
from services.common.contracts.lending import AuditRequest
from services.common.errors import NotFound
from services.common.ids import AccountId, EdgeId
from services.ledger import audit
from services.ledger.database import Connection, Database, Row
from services.ledger.meters import Meters
from services.ledger.metrics import LedgerMetrics
from services.ledger.queries import load_queries

LOG = logs.get("ledger.gone_edges")
SQL = load_queries("edges")
ASK_AGAIN_S: Final = (0.2, 1.0, 5.0, 15.0, 30.0)
SESSIONS_LOGGED_MAX: Final = 20


class EdgeNotFound(NotFound):
    """There is no such edge. Please check its id with `meterway edge list`."""

    code = "edge_not_found"


class Edge(msgspec.Struct, frozen=True):
    """`state`: `active` or `gone`. `open_sessions`: of ended epochs, not known to have ended.
    `buckets_not_promised`: whose current epoch this process has not promised."""

    id: str
    incarnation: str
    internal_url: str
    state: str
    last_seen_ms: int
    gone_at_ms: int | None
    open_sessions: int
    buckets_not_promised: int


async def list_edges(database: Database) -> list[Edge]:
    return [Edge(**dict(row)) for row in await database.fetch(SQL["list_edges"])]


async def forget(database: Database, *, edge_id: str, actor: str) -> None:
    """From now on nothing waits for this edge, and its log charges nothing that began before.

    Raises EdgeNotFound.
    """

    async def work(connection: Connection) -> None:
        row = await connection.fetchrow(SQL["lock_edge"], edge_id)
        if row is None:
            raise EdgeNotFound
        await connection.execute(SQL["set_gone"], edge_id)
        await audit.record(
            connection,
            actor=actor,
            action="edge.forget",
            target=edge_id,
            before={"state": row["state"]},
            after={"state": "gone"},
        )

    await database.transaction(work)
    LOG.warning("an edge is gone", edge_id=edge_id, actor=actor)


class GoneEdges:
    def __init__(
        self, database: Database, meters: Meters, metrics: LedgerMetrics, *, orphan_grace_ms: int
    ) -> None:
        self._database = database
        self._meters = meters
        self._metrics = metrics
        self._orphan_grace_ms = orphan_grace_ms
        self._tries: dict[str, int] = {}
        self._not_before: dict[str, float] = {}

    async def give_up_lost(self) -> None:
        """Edges that have been silent past `orphan_grace`; sessions of processes that were replaced by one
        that knows nothing of them. Raises Unavailable."""
        for row in await self._database.fetch(SQL["silent_edges"], self._orphan_grace_ms):
            self._metrics.edges_forgotten.inc()
            await forget(self._database, edge_id=row["id"], actor="ledger")
        await self._end(await self._database.fetch(SQL["lost_sessions"], self._orphan_grace_ms))

    async def clear(self) -> None:
        """End what is left of gone edges: in Redis, then among the open sessions. Raises Unavailable."""
        for row in await self._database.fetch(SQL["uncleared_edges"]):
            edge_id = row["id"]
            if self._not_before.get(edge_id, 0.0) > time.monotonic():
                continue
            if await self._clear(edge_id):
                await self._database.execute(SQL["set_cleared"], edge_id, row["gone_at"])
                self._tries.pop(edge_id, None)
                self._not_before.pop(edge_id, None)
                continue
            tries = self._tries[edge_id] = self._tries.get(edge_id, 0) + 1
            self._not_before[edge_id] = time.monotonic() + ASK_AGAIN_S[min(tries, len(ASK_AGAIN_S)) - 1]

    async def _clear(self, edge_id: str) -> bool:
        answer = await self._meters.forget_edge(EdgeId(edge_id))
        if answer.running:
            return False
        sessions = await self._database.fetch(SQL["sessions_of_gone_edge"], edge_id)
        return await self._end(sessions) == len(sessions)

    async def _end(self, sessions: Sequence[Row]) -> int:
        """Those of which nothing waits for posting any more; how many."""
        if not sessions:
            return 0
        accounts = tuple({AccountId(row["account_id"]) for row in sessions})
        unposted = (await self._meters.audit(AuditRequest(accounts=accounts))).unposted_by_epoch
        done = [
            row["session_id"]
            for row in sessions
            if not unposted.get(row["account_id"], {}).get(row["epoch"], 0)
        ]
        rows = await self._database.fetch(SQL["resolve_gone"], done)
        if rows:
            self._metrics.lost_sessions.inc(len(rows))
            self._metrics.lost_held_nanos.inc(sum(row["held_nanos"] for row in rows))
            LOG.error(
                "sessions of a lost edge ended uncharged",
                sessions=[row["session_id"] for row in rows[:SESSIONS_LOGGED_MAX]],
                count=len(rows),
            )
        return len(done)
