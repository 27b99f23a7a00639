"""What the edge and the ledger tell each other: routing (a long poll keeps it fresh), registration, alarms,
and which sessions of its log it has.

Outage behaviour: without a ledger the last routing stays in use; an edge that never had one is not
ready and answers 503.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final, TypeVar

import aiohttp

from services.common import logs
from services.common.contracts.account import AccountAnswer, AccountQuery
from services.common.contracts.catalogue import CredentialReport, EdgeRegistration, Routing
from services.common.contracts.lending import PostingReply
from services.common.contracts.recovery import Recovered, SessionIds
from services.common.discovery import Instances
from services.common.ids import EdgeId, SessionId, new_uuid7
from services.common.internal_http import InternalCallError, bearer, call
from services.common.settings import Secret

LOG = logs.get("edge.ledger_client")
POLL_TIMEOUT_MS: Final = 30_000
RETRY_FIRST_S, RETRY_MAX_S = 0.1, 2.0
REGISTER_INTERVAL_S: Final = 5.0
REPORTS_WAITING_MAX: Final = 1_000
REPORT_TRIES: Final = 10
VIEW_TIMEOUT_MS: Final = 3_000
LOG_TIMEOUT_MS: Final = 10_000
T = TypeVar("T")


class LedgerClient:
    """`on_routing` gets every new routing; `run` works until it is cancelled."""

    def __init__(
        self,
        instances: Instances,
        credential: Secret,
        *,
        edge_id: str,
        internal_url: str,
        on_routing: Callable[[Routing], None],
    ) -> None:
        self._instances = instances
        self._credential = credential
        self.registration = EdgeRegistration(
            edge_id=EdgeId(edge_id), incarnation=new_uuid7(), internal_url=internal_url
        )
        self._on_routing = on_routing
        self._reports: asyncio.Queue[CredentialReport] = asyncio.Queue(REPORTS_WAITING_MAX)
        self._session: aiohttp.ClientSession | None = None
        self._revision = -1
        self._registered = asyncio.Event()
        self.failures = 0

    def report(self, report: CredentialReport) -> None:
        """Tell the ledger of a refused credential, in the background."""
        if self._reports.full():
            LOG.error("credential report dropped", channel_id=report.channel_id, status=report.status)
            return
        self._reports.put_nowait(report)

    async def account_view(self, query: AccountQuery) -> AccountAnswer:
        """What a key's holder may know. Raises InternalCallError."""
        path = "/internal/v1/account_view"
        if self._session is None:
            raise InternalCallError(path, 0)
        return await self._ask(self._session, path, AccountAnswer, body=query, timeout_ms=VIEW_TIMEOUT_MS)

    async def missing(
        self, session_ids: tuple[SessionId, ...], *, timeout_ms: int = LOG_TIMEOUT_MS
    ) -> tuple[SessionId, ...]:
        """Those of at most 10,000 that the ledger has not. Raises InternalCallError."""
        path = "/internal/v1/sessions/missing"
        if self._session is None:
            raise InternalCallError(path, 0)
        asked = SessionIds(session_ids)
        answer = await self._ask(self._session, path, SessionIds, body=asked, timeout_ms=timeout_ms)
        return answer.session_ids

    async def recovered(self, told: Recovered) -> PostingReply:
        """At most 500 sessions. Raises InternalCallError: tell it again."""
        path = "/internal/v1/recovered"
        if self._session is None:
            raise InternalCallError(path, 0)
        return await self._ask(self._session, path, PostingReply, body=told, timeout_ms=LOG_TIMEOUT_MS)

    async def run(self) -> None:
        async with aiohttp.ClientSession(headers=bearer(self._credential)) as session:
            self._session = session
            await self._instances.refresh()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._instances.watch())
                tasks.create_task(self._follow_routing(session))
                tasks.create_task(self._register(session))
                tasks.create_task(self._send_reports(session))

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        path: str,
        answer_type: type[T],
        *,
        body: object | None = None,
        timeout_ms: int = 5_000,
    ) -> T:
        """Any ledger's answer. Raises InternalCallError."""
        urls = self._instances.current or await self._instances.refresh()
        if not urls:
            raise InternalCallError(path, 0)
        url = random.choice(urls) + path  # noqa: S311
        return await call(session, url, answer_type, body=body, timeout_ms=timeout_ms)

    async def _follow_routing(self, session: aiohttp.ClientSession) -> None:
        # Without routing nobody is served: a roll-call must not miss an edge that has open sessions.
        await self._registered.wait()
        pause_s = RETRY_FIRST_S
        while True:
            # The first answer must come at once, whatever its revision.
            first = self._revision < 0
            path = f"/internal/v1/routing?after={max(0, self._revision)}" + ("&wait_ms=0" if first else "")
            try:
                routing = await self._ask(session, path, Routing, timeout_ms=POLL_TIMEOUT_MS)
            except InternalCallError as error:
                self.failures += 1
                LOG.warning("routing not read", status=error.status)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, RETRY_MAX_S)
                continue
            pause_s = RETRY_FIRST_S
            if routing.revision != self._revision:
                self._revision = routing.revision
                self._on_routing(routing)
                LOG.info("routing loaded", revision=routing.revision, channels=len(routing.channels))

    async def _register(self, session: aiohttp.ClientSession) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            try:
                await self._ask(session, "/internal/v1/edges", dict[str, Any], body=self.registration)
                self._registered.set()
                pause_s = REGISTER_INTERVAL_S
            except InternalCallError as error:
                LOG.warning("edge not registered", status=error.status)
                pause_s = min(pause_s * 2, RETRY_MAX_S)
            await asyncio.sleep(pause_s)

    async def _send_reports(self, session: aiohttp.ClientSession) -> None:
        path = "/internal/v1/channels/credential_report"
        while True:
            report = await self._reports.get()
            for attempt in range(REPORT_TRIES):
                try:
                    await self._ask(session, path, dict[str, Any], body=report)
                    break
                except InternalCallError as error:
                    if error.status == 200:
                        break
                    await asyncio.sleep(min(RETRY_FIRST_S * 2**attempt, RETRY_MAX_S))
