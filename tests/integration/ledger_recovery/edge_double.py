"""Edges as the ledger sees them: HTTP servers that answer roll-calls from what a test put into them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web

from services.common.contracts.recovery import OpenSession, Promise, RollCall
from services.common.ids import EdgeId
from services.ledger.database import Database
from services.ledger.queries import load_queries

REGISTER = load_queries("edges")["register_edge"]


class EdgeDouble:
    def __init__(self, edge_id: str) -> None:
        self.edge_id = EdgeId(edge_id)
        self.incarnation = f"{edge_id}-1"
        self.url = ""
        self.sessions: list[OpenSession] = []
        self.promised: dict[int, int] = {}
        self.calls = 0
        self.answers_status = 200
        self.answer_delay_s = 0.0

    async def register(self, database: Database) -> None:
        await database.fetchval(REGISTER, self.edge_id, self.incarnation, self.url)

    async def roll_call(self, request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read(), type=RollCall)
        self.calls += 1
        await asyncio.sleep(self.answer_delay_s)
        if self.answers_status == 200:
            self.promised |= body.epochs
        return web.Response(body=msgspec.json.encode(self.promise(body.epochs)), status=self.answers_status)

    def promise(self, epochs: dict[int, int]) -> Promise:
        older = tuple(one for one in self.sessions if one.epoch < epochs.get(one.bucket, 0))
        return Promise(self.edge_id, self.incarnation, epochs, older)


@asynccontextmanager
async def running_edges(database: Database, count: int) -> AsyncIterator[list[EdgeDouble]]:
    """Registered, and serving."""
    edges, runners = [], []
    for number in range(count):
        edge = EdgeDouble(f"edge-{number}")
        app = web.Application()
        app.router.add_post("/internal/v1/roll_call", edge.roll_call)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        server = socket.socket()
        server.bind(("127.0.0.1", 0))
        await web.SockSite(runner, server).start()
        edge.url = f"http://127.0.0.1:{server.getsockname()[1]}"
        await edge.register(database)
        edges.append(edge)
    try:
        yield edges
    finally:
        for runner in runners:
            await runner.cleanup()
