"""Meters as the ledger sees them: HTTP servers that record what is pushed and answer audits from what a
test put into them. The real meter has its own tests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from aiohttp import web

from services.common.contracts.charging import Settle
from services.common.contracts.lending import (
    AccountAudit,
    AllSettled,
    AuditReply,
    AuditRequest,
    Configure,
    EdgeForgotten,
    ForgetEdge,
    InitEpochs,
    KeyAudit,
    KeySnapshot,
    Recall,
    RecallReply,
    SettleAll,
)
from services.common.discovery import Instances
from services.common.ids import bucket_of
from services.common.metrics import new_registry
from services.ledger.meters import Meters
from services.ledger.metrics import LedgerMetrics


class MeterDouble:
    def __init__(self) -> None:
        self.url = ""
        self.configured: list[KeySnapshot] = []
        self.epochs: dict[int, int] = {}
        self.epochs_begun = asyncio.Event()
        self.accounts: dict[str, AccountAudit] = {}
        self.keys: list[KeyAudit] = []
        self.unposted: dict[str, dict[int, int]] = {}
        """By account and epoch."""
        self.recalls: list[Recall] = []
        self.unheld_nanos: dict[str, int] = {}
        self.recall_error = ""
        self.is_recall_answer_lost = False
        self._recalled: dict[tuple[str, int, int], RecallReply] = {}
        self.settled: list[Settle] = []
        self.forgotten: list[str] = []
        self.running_sessions = 0
        self.answers_status = 200
        self.answer_delay_s = 0.0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/internal/v1/configure", self._configure)
        app.router.add_post("/internal/v1/init_epoch", self._init_epoch)
        app.router.add_post("/internal/v1/catalogue", self._catalogue)
        app.router.add_post("/internal/v1/audit", self._audit)
        app.router.add_post("/internal/v1/recall", self._recall)
        app.router.add_post("/internal/v1/settle", self._settle)
        app.router.add_post("/internal/v1/edges/forget", self._forget_edge)
        return app

    async def _recall(self, request: web.Request) -> web.Response:
        """As recall.lua does: the last rseq again gets the same answer."""
        body = msgspec.json.decode(await request.read(), type=Recall)
        self.recalls.append(body)
        place = (body.account_id, body.epoch, body.rseq)
        if place not in self._recalled and not self.recall_error:
            unheld = self.unheld_nanos.get(body.account_id, 0)
            nanos = min(unheld, body.wanted_nanos)
            self.unheld_nanos[body.account_id] = unheld - nanos
            self._recalled[place] = RecallReply(body.account_id, body.epoch, body.rseq, nanos)
        if self.is_recall_answer_lost:
            return web.Response(status=503)
        refusal = RecallReply(body.account_id, body.epoch, body.rseq, error=self.recall_error)
        return await self._answer(self._recalled.get(place, refusal))

    async def _settle(self, request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read(), type=SettleAll)
        if self.answers_status == 200:
            self.settled += body.settles
        return await self._answer(AllSettled(ended=len(body.settles)))

    async def _forget_edge(self, request: web.Request) -> web.Response:
        self.forgotten.append(msgspec.json.decode(await request.read(), type=ForgetEdge).edge_id)
        return await self._answer(EdgeForgotten(ended=0, running=self.running_sessions))

    async def _answer(self, body: object) -> web.Response:
        await asyncio.sleep(self.answer_delay_s)
        return web.Response(body=msgspec.json.encode(body), status=self.answers_status)

    async def _configure(self, request: web.Request) -> web.Response:
        if self.answers_status == 200:
            self.configured += msgspec.json.decode(await request.read(), type=Configure).keys
        return await self._answer({})

    async def _init_epoch(self, request: web.Request) -> web.Response:
        self.epochs |= msgspec.json.decode(await request.read(), type=InitEpochs).epochs
        self.epochs_begun.set()
        return await self._answer({})

    async def _catalogue(self, _request: web.Request) -> web.Response:
        return await self._answer({})

    async def _audit(self, request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read(), type=AuditRequest)

        def is_wanted(account_id: str) -> bool:
            if body.accounts is not None:
                return account_id in body.accounts
            return body.bucket_from <= bucket_of(account_id) <= body.bucket_to

        unposted = {account: nanos for account, nanos in self.unposted.items() if is_wanted(account)}
        return await self._answer(
            AuditReply(
                accounts=tuple(
                    account for account in self.accounts.values() if is_wanted(account.account_id)
                ),
                keys=tuple(key for key in self.keys if is_wanted(key.account_id)),
                outbox_entries=len(unposted),
                unposted_nanos={account: sum(nanos.values()) for account, nanos in unposted.items()},
                unposted_by_epoch=unposted,
            )
        )


@asynccontextmanager
async def running_meters(count: int) -> AsyncIterator[list[MeterDouble]]:
    meters, runners = [], []
    for _number in range(count):
        meter = MeterDouble()
        runner = web.AppRunner(meter.app(), shutdown_timeout=0.1)
        await runner.setup()
        server = socket.socket()
        server.bind(("127.0.0.1", 0))
        await web.SockSite(runner, server).start()
        meter.url = f"http://127.0.0.1:{server.getsockname()[1]}"
        meters.append(meter)
        runners.append(runner)
    try:
        yield meters
    finally:
        for runner in runners:
            await runner.cleanup()


@asynccontextmanager
async def meters_client(*urls: str, timeout_ms: int = 2_000) -> AsyncIterator[Meters]:
    async with aiohttp.ClientSession() as session:
        yield Meters(Instances(urls), session, timeout_ms=timeout_ms, metrics=LedgerMetrics(new_registry()))
