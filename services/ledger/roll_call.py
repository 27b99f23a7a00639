"""The roll-call: after a fence every registered edge is asked until it has promised the new epochs.

Promises and the sessions they list are rows: a ledger that restarts goes on where it was. Each round asks who
still owes a promise, gives up those that have been silent for too long, and returns the loans that nothing
holds any more. Several ledgers may do so at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import aiohttp

from services.common import logs
from services.common.contracts.recovery import Promise, RollCall
from services.common.errors import MeterwayError
from services.common.internal_http import InternalCallError, call
from services.ledger import promises
from services.ledger.database import Connection, Database
from services.ledger.frozen_loans import FrozenLoans
from services.ledger.gone_edges import GoneEdges
from services.ledger.meters import MetersAway
from services.ledger.metrics import LedgerMetrics
from services.ledger.promises import Answer, Ask, Debt
from services.ledger.queries import load_queries
from services.ledger.recalls import Recalls

LOG = logs.get("ledger.roll_call")
SQL = load_queries("roll_call")
IDLE_S: Final = 1.0
BUSY_S: Final = 0.1
RETRY_S: Final = (0.1, 0.25, 0.5, 1.0, 2.0)
ASK_TIMEOUT_MS: Final = 2_000
ASKS_AT_ONCE: Final = 32
ASK_AGAIN_MS: Final = 5_000
"""How long ago a session must have been listed before its edge is asked whether it has ended."""
CLEAN_S: Final = 600.0
REMEMBERED_HOURS: Final = 48


class Caller:
    """Sends roll-calls and keeps what edges answer."""

    def __init__(self, database: Database, session: aiohttp.ClientSession, metrics: LedgerMetrics) -> None:
        self._database = database
        self._session = session
        self._metrics = metrics
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._at_once = asyncio.Semaphore(ASKS_AT_ONCE)

    async def ask_all(self, asks: Sequence[Ask]) -> None:
        """Every edge whose time has come, all at once. Raises Unavailable (the database)."""
        now = time.monotonic()
        due = [ask for ask in asks if self._not_before.get(ask.edge_id, 0.0) <= now]
        await asyncio.gather(*(self._ask(ask) for ask in due))

    def forget_failures(self) -> None:
        """A new roll-call begins: nobody waits for the last one's back-off."""
        self._not_before.clear()

    async def _ask(self, ask: Ask) -> None:
        async with self._at_once:
            try:
                promise = await call(
                    self._session,
                    f"{ask.internal_url.rstrip('/')}/internal/v1/roll_call",
                    Promise,
                    body=RollCall(ask.epochs),
                    timeout_ms=ASK_TIMEOUT_MS,
                )
            except InternalCallError as error:
                self._note_failure(ask, f"status {error.status}")
                return
        if promise.edge_id != ask.edge_id:
            self._note_failure(ask, "another edge answers at its address")
            return
        answer = await self._keep(ask, promise)
        if answer.refused:
            LOG.error(
                "an edge lists sessions that can't be", edge_id=ask.edge_id, sessions=answer.refused[:20]
            )
        if len(answer.epochs) < len(ask.epochs):
            self._note_failure(ask, "it did not promise all that was asked")
            return
        self._failures.pop(ask.edge_id, None)
        self._not_before.pop(ask.edge_id, None)
        self._metrics.promises.inc(len(answer.epochs))
        LOG.info(
            "an edge promised", edge_id=ask.edge_id, buckets=len(answer.epochs), open=len(answer.sessions)
        )

    async def _keep(self, ask: Ask, promise: Promise) -> Answer:
        async def work(connection: Connection) -> Answer:
            return await keep(connection, ask, promise)

        return await self._database.transaction(work)

    def _note_failure(self, ask: Ask, reason: str) -> None:
        failures = self._failures[ask.edge_id] = self._failures.get(ask.edge_id, 0) + 1
        pause_s = RETRY_S[min(failures, len(RETRY_S)) - 1]
        self._not_before[ask.edge_id] = time.monotonic() + pause_s
        self._metrics.roll_calls_unanswered.inc()
        LOG.warning("an edge has not promised yet", edge_id=ask.edge_id, reason=reason, tries=failures)


async def keep(connection: Connection, ask: Ask, promise: Promise) -> Answer:
    """Write what a promise tells, all of it in one transaction. Lost or repeated answers change nothing."""
    buckets = sorted(ask.epochs)
    rows = await connection.fetch(SQL["gone_marks"], ask.edge_id, buckets)
    answer = promises.judge(ask.epochs, promise, {row["bucket"]: row["gone_epoch"] for row in rows})
    promised, epochs = list(answer.epochs), list(answer.epochs.values())
    listed = list(answer.sessions)
    await connection.execute(
        SQL["insert_open_sessions"],
        ask.edge_id,
        promise.incarnation,
        [session.session_id for session in listed],
        [session.account_id for session in listed],
        [session.bucket for session in listed],
        [session.epoch for session in listed],
        [session.held_nanos for session in listed],
    )
    await connection.execute(
        SQL["resolve_unlisted"],
        ask.edge_id,
        promise.incarnation,
        promised,
        epochs,
        [session.session_id for session in listed],
    )
    await connection.execute(SQL["insert_promises"], ask.edge_id, promise.incarnation, promised, epochs)
    await connection.execute(SQL["edge_seen"], ask.edge_id)
    return answer


class RollCalls:
    """The rounds. `wake` starts one at once."""

    def __init__(
        self,
        database: Database,
        metrics: LedgerMetrics,
        *,
        caller: Caller,
        frozen_loans: FrozenLoans,
        gone_edges: GoneEdges,
        recalls: Recalls,
        edge_grace_ms: int,
    ) -> None:
        self._database = database
        self._caller = caller
        self._frozen_loans = frozen_loans
        self._gone_edges = gone_edges
        self._recalls = recalls
        self._metrics = metrics
        self._edge_grace_ms = edge_grace_ms
        self._wake = asyncio.Event()
        self._listening_since = self._round_at = time.monotonic()
        self._clean_at = 0.0

    def wake(self) -> None:
        """There is a new fence or a new edge."""
        self._caller.forget_failures()
        self._wake.set()

    async def run(self) -> None:
        """Runs until cancelled."""
        is_busy = True
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), BUSY_S if is_busy else IDLE_S)
            self._wake.clear()
            try:
                is_busy = await self.round()
            except MeterwayError as error:
                # Edges may have been unable to register: their silence counts from now.
                self._listening_since = time.monotonic()
                LOG.warning("the roll-call waits", reason=error.message)
                is_busy = True
            except Exception:
                LOG.exception("a round of the roll-call failed")

    async def round(self) -> bool:
        """Whether promises or loans are still waited for. Raises Unavailable."""
        self._note_time()
        await self._database.execute(SQL["resolve_posted"])
        asks = await self._asks()
        await self._caller.ask_all([ask for ask in asks if ask.is_awaited])
        if any(ask.is_awaited for ask in asks):
            await self._give_up_silent()
        await self._try(self._frozen_loans.return_due)
        await self._caller.ask_all([ask for ask in asks if not ask.is_awaited])
        if self._is_listening_long_enough:
            await self._try(self._gone_edges.give_up_lost)
        await self._try(self._gone_edges.clear)
        await self._try(self._recalls.ask_due)
        await self._clean()
        self._metrics.open_sessions.set(await self._database.fetchval(SQL["count_unresolved"]))
        return any(ask.is_awaited for ask in asks)

    async def _try(self, step: Callable[[], Awaitable[object]]) -> None:
        """A step that lacks a meter must not hold up the others."""
        try:
            await step()
        except MetersAway as error:
            LOG.warning("a step of the roll-call waits for a meter", reason=error.message)

    async def _asks(self) -> list[Ask]:
        rows = await self._database.fetch(SQL["debts"], ASK_AGAIN_MS)
        return promises.asks_of(Debt(**dict(row)) for row in rows)

    async def _give_up_silent(self) -> None:
        """Those that are still silent go on the list of what the roll-call does without."""
        if not self._is_listening_long_enough:
            return
        for ask in await self._asks():
            if not (ask.is_awaited and ask.is_silent(self._edge_grace_ms)):
                continue
            rows = await self._database.fetch(
                SQL["mark_gone"], ask.edge_id, list(ask.epochs), list(ask.epochs.values())
            )
            if rows:
                self._metrics.edges_given_up.inc()
                LOG.error(
                    "the roll-call goes on without an edge",
                    edge_id=ask.edge_id,
                    buckets=len(rows),
                    silent_ms=ask.silent_ms,
                )

    @property
    def _is_listening_long_enough(self) -> bool:
        return (time.monotonic() - self._listening_since) * 1000 >= self._edge_grace_ms

    def _note_time(self) -> None:
        """After a stop of this process, too, silence counts anew."""
        now = time.monotonic()
        if (now - self._round_at) * 1000 > max(self._edge_grace_ms / 2, 5_000):
            self._listening_since = now
        self._round_at = now

    async def _clean(self) -> None:
        if time.monotonic() >= self._clean_at:
            await self._database.execute(SQL["forget_old"], REMEMBERED_HOURS)
            self._clean_at = time.monotonic() + CLEAN_S
