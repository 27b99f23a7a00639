"""Random losses of Redis: whatever is lost, late, repeated or forgotten, no nanodollar appears or
vanishes, and no old loan is lent again before what sessions hold of it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from services.common.contracts.charging import Settle
from services.common.contracts.lending import (
    AuditReply,
    AuditRequest,
    FenceRequest,
    LoanRequest,
    PostingEntry,
    Recall,
    RecallReply,
)
from services.common.contracts.recovery import OpenSession, Promise, Recovered
from services.common.ids import EdgeId, SessionId, bucket_of, new_session_id
from services.common.metrics import new_registry
from services.ledger import accounts, epochs, gone_edges, promises, reconcile, roll_call
from services.ledger.database import Database
from services.ledger.frozen_loans import FrozenLoans
from services.ledger.loans import Lender
from services.ledger.meters import Meters, MetersAway
from services.ledger.metrics import LedgerMetrics
from services.ledger.posting import Poster
from services.ledger.promises import Ask
from services.ledger.recalls import Recalls
from services.ledger.recovery import Recovery
from tests.integration.ledger.entries import entry, set_price
from tests.integration.ledger_recovery.edge_double import REGISTER

T = TypeVar("T")
EDGES = 2
WHICH_EDGE = st.integers(0, EDGES - 1)
AMOUNT = st.integers(1, 5_000).map(lambda thousands: thousands * 1_000)
BOOL = st.booleans()


@dataclass
class Session:
    session_id: SessionId
    epoch: int
    held_nanos: int


@dataclass
class Edge:
    """`log`: sessions that run. `done`: ended, not known to be posted. `held`: all there ever were."""

    edge_id: EdgeId
    life: int = 1
    log: dict[SessionId, Session] = field(default_factory=dict)
    done: dict[SessionId, PostingEntry | None] = field(default_factory=dict)
    known_epoch: int = 1
    held: dict[SessionId, Session] = field(default_factory=dict)

    @property
    def incarnation(self) -> str:
        return f"{self.edge_id}:{self.life}"


@dataclass
class Redis:
    epoch: int
    granted: int = 0
    gseq: int = 0
    rseq: int = 0
    recalled: int = 0
    held: int = 0
    spent: int = 0


class Store:
    """The meters of the model: what the ledger asks of Redis."""

    def __init__(self, machine: RecoveryMachine) -> None:
        self._machine = machine
        self.is_answer_lost = False

    async def audit(self, request: AuditRequest, *, timeout_ms: int | None = None) -> AuditReply:
        return AuditReply(accounts=())

    async def recall(self, recall: Recall) -> RecallReply:
        redis = self._machine.redis
        if recall.epoch != redis.epoch:
            return RecallReply(recall.account_id, recall.epoch, recall.rseq, error="stale_epoch")
        if recall.rseq == redis.rseq + 1:
            redis.recalled = min(recall.wanted_nanos, redis.granted - redis.spent - redis.held)
            redis.granted -= redis.recalled
            redis.rseq = recall.rseq
        elif recall.rseq != redis.rseq:
            return RecallReply(recall.account_id, recall.epoch, redis.rseq, error="out_of_order")
        if self.is_answer_lost:
            raise MetersAway
        return RecallReply(recall.account_id, recall.epoch, recall.rseq, redis.recalled, redis.granted)

    async def settle(self, settles: list[Settle]) -> None:
        for settle in settles:
            self._machine.settle_in_redis(settle.ref.session_id, settle.record.cost_nanos)


class RecoveryMachine(RuleBasedStateMachine):
    database_url = ""

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.await_(self._start())
        for which in range(EDGES):
            self.open(which, 2_000_000)

    def await_(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def _start(self) -> None:
        self.database = await Database.open(self.database_url, connections_max=3)
        self.metrics = metrics = LedgerMetrics(new_registry())
        self.store = Store(self)
        meters = cast("Meters", self.store)
        self.poster, self.lender = Poster(self.database, metrics), Lender(self.database, metrics)
        self.recovery = Recovery(self.database, meters, self.poster, metrics)
        self.recalls = Recalls(self.database, meters, metrics)
        self.frozen_loans = FrozenLoans(self.database, meters, metrics)
        await self.database.execute("UPDATE edge SET state = 'gone', gone_at = now()")
        self.account_id = await accounts.create_account(self.database)
        self.bucket = bucket_of(self.account_id)
        current = (await epochs.current_epochs(self.database))[self.bucket]
        self.first_epoch = current
        self.redis = Redis(current)
        self.outbox: list[PostingEntry] = []
        prefix = self.account_id[-6:]
        self.edges = [Edge(EdgeId(f"{prefix}-{number}"), known_epoch=current) for number in range(EDGES)]
        self.credited = 0
        self.refs = 0
        self.late_promises: list[tuple[Ask, Promise]] = []
        self.told: list[Recovered] = []
        self.buried: list[Edge] = []
        self.forgotten: set[SessionId] = set()
        self.costs: dict[SessionId, int] = {}
        for edge in self.edges:
            await self._register(edge)
        await self._credit(20_000_000)
        await self._borrow(20_000_000)

    async def _register(self, edge: Edge) -> None:
        await self.database.fetchval(REGISTER, edge.edge_id, edge.incarnation, "http://nowhere")

    async def _credit(self, nanos: int) -> None:
        self.refs += 1
        await accounts.credit(
            self.database,
            account_id=self.account_id,
            nanos=nanos,
            reason="test",
            actor="test",
            ref=f"{self.account_id}:{self.refs}",
        )
        self.credited += nanos

    async def _borrow(self, wanted: int) -> None:
        redis = self.redis
        request = LoanRequest(
            account_id=self.account_id,
            epoch=redis.epoch,
            applied_gseq=redis.gseq,
            wanted_nanos=wanted,
            largest_hold_nanos=0,
        )
        [reply] = await self.lender.lend([request])
        assert reply.error == ""
        for loan in reply.loans:
            redis.gseq, redis.granted = loan.gseq, redis.granted + loan.nanos

    @rule(nanos=AMOUNT, down=BOOL)
    def credit(self, nanos: int, down: bool) -> None:
        self.await_(self._credit(-nanos if down else nanos))

    @rule(wanted=AMOUNT)
    def borrow(self, wanted: int) -> None:
        self.await_(self._borrow(wanted))

    @rule(which=WHICH_EDGE, hold=AMOUNT)
    def open(self, which: int, hold: int) -> None:
        """An edge that has promised a newer epoch refuses what the old Redis still answers."""
        redis, edge = self.redis, self.edges[which]
        hold = min(hold, redis.granted - redis.spent - redis.held)
        if hold >= 1_000 and redis.epoch >= edge.known_epoch:
            session = Session(new_session_id(), redis.epoch, hold)
            edge.log[session.session_id] = edge.held[session.session_id] = session
            redis.held += hold

    @rule(which=WHICH_EDGE, data=st.data(), is_charged=BOOL, by_redis=BOOL)
    def end(self, which: int, data: st.DataObject, is_charged: bool, by_redis: bool) -> None:
        edge = self.edges[which]
        if not edge.log:
            return
        session = edge.log.pop(data.draw(st.sampled_from(list(edge.log))))
        cost = data.draw(st.integers(1, session.held_nanos // 1_000)) * 1_000 if is_charged else 0
        posting = (
            entry(
                self.account_id,
                cost=cost,
                epoch=session.epoch,
                session_id=session.session_id,
                edge_id=edge.edge_id,
            )
            if cost
            else None
        )
        if by_redis and session.epoch == self.redis.epoch:
            self.settle_in_redis(session.session_id, cost)
        edge.done[session.session_id] = posting

    def settle_in_redis(self, session_id: SessionId, cost: int) -> None:
        if session_id in self.costs:
            return
        everyone = (*self.edges, *self.buried)
        session = next(edge.held[session_id] for edge in everyone if session_id in edge.held)
        self.costs[session_id] = cost
        self.redis.held -= session.held_nanos
        self.redis.spent += cost
        if cost:
            self.outbox.append(entry(self.account_id, cost=cost, epoch=session.epoch, session_id=session_id))

    @rule()
    def ship_outbox(self) -> None:
        batch, self.outbox = self.outbox, []
        for at in range(0, len(batch), 400):
            assert self.await_(self.poster.post(batch[at : at + 400])).exceptions == 0

    @rule()
    def lose_redis(self) -> None:
        """With all that was not posted yet: only the edges know of it."""
        request = FenceRequest(buckets=(self.bucket,), seen_epochs=(0,), run_id="r", reason="test")
        opened = self.await_(epochs.fence(self.database, self.metrics, request))
        self.outbox = []
        self.redis = Redis(opened[self.bucket])

    @rule(which=WHICH_EDGE, is_lost=BOOL, is_late=BOOL)
    def promise(self, which: int, is_lost: bool, is_late: bool) -> None:
        edge = self.edges[which]
        epoch = self.redis.epoch
        if epoch == self.first_epoch:
            return
        edge.known_epoch = max(edge.known_epoch, epoch)
        ask = Ask(edge.edge_id, edge.incarnation, "", 0, {self.bucket: epoch}, is_awaited=True)
        open_ids = edge.log.keys() | edge.done.keys()
        listed = tuple(
            OpenSession(one, self.account_id, self.bucket, session.epoch, session.held_nanos)
            for one, session in edge.held.items()
            if one in open_ids and session.epoch < epoch
        )
        answer = Promise(edge.edge_id, edge.incarnation, {self.bucket: epoch}, listed)
        if is_late:
            self.late_promises.append((ask, answer))
        if not is_lost and not is_late:
            self._keep(ask, answer)
        self.return_loans()

    def _keep(self, ask: Ask, answer: Promise) -> None:
        work = partial(roll_call.keep, ask=ask, promise=answer)
        self.await_(self.database.transaction(work))

    @rule(lost=st.lists(st.sampled_from((False, False, True)), min_size=EDGES, max_size=EDGES))
    def lose_redis_and_call_the_roll(self, lost: list[bool]) -> None:
        self.lose_redis()
        for which, is_lost in enumerate(lost):
            self.promise(which, is_lost, False)

    @rule(data=st.data())
    def late_promise(self, data: st.DataObject) -> None:
        if self.late_promises:
            self._keep(*data.draw(st.sampled_from(self.late_promises)))

    @rule(which=WHICH_EDGE)
    def restart_edge(self, which: int) -> None:
        """A new process with the log of the one before."""
        self.edges[which].life += 1
        self.await_(self._register(self.edges[which]))

    @rule()
    def return_loans(self) -> None:
        self.await_(self.frozen_loans.return_due())

    @rule(which=WHICH_EDGE, is_answer_lost=BOOL)
    def recover(self, which: int, is_answer_lost: bool) -> None:
        edge = self.edges[which]
        missing = self.await_(self.recovery.missing(sorted(edge.done)))
        for session_id in set(edge.done) - set(missing):
            del edge.done[session_id]
        charged = tuple(one for one in (edge.done[session_id] for session_id in missing) if one is not None)
        released = tuple(one for one in missing if edge.done[one] is None)
        for one in released:
            if edge.held[one].epoch == self.redis.epoch:
                self.settle_in_redis(one, 0)
        told = Recovered(edge.edge_id, edge.incarnation, charged, released)
        self.told.append(told)
        self.await_(self.recovery.recover(told))
        if not is_answer_lost:
            for one in missing:
                if one in self.forgotten or edge.held[one].epoch < self.redis.epoch or one in released:
                    edge.done.pop(one, None)

    @rule(data=st.data())
    def recover_again(self, data: st.DataObject) -> None:
        if self.told:
            told = data.draw(st.sampled_from(self.told))
            self.await_(self.recovery.recover(told))

    @rule(which=WHICH_EDGE, chance=st.integers(0, 3))
    def forget(self, which: int, chance: int) -> None:
        """Its machine burns down; its log turns up in another edge later. Redis has lost its checkpoints."""
        if chance != 3:
            return
        edge = self.edges[which]
        self.await_(self._forget(edge))
        fresh = Edge(EdgeId(f"{edge.edge_id}-n{self.refs}"), known_epoch=self.redis.epoch)
        self.refs += 1
        # Its sessions of this epoch are swept out of Redis uncharged.
        for session_id, session in edge.held.items():
            if session.epoch == self.redis.epoch:
                self.settle_in_redis(session_id, 0)
        late = tuple(one for one in edge.done.values() if one is not None)
        self.await_(self.recovery.recover(Recovered(EdgeId("finder"), "log", late, ())))
        self.edges[which] = fresh
        self.await_(self._register(fresh))
        self.buried.append(edge)

    async def _forget(self, edge: Edge) -> None:
        await gone_edges.forget(self.database, edge_id=edge.edge_id, actor="test")
        self.forgotten |= edge.held.keys()
        ids = [
            row["session_id"]
            for row in await self.database.fetch(gone_edges.SQL["sessions_of_gone_edge"], edge.edge_id)
        ]
        await self.database.fetch(gone_edges.SQL["resolve_gone"], ids)

    @rule(is_answer_lost=BOOL)
    def recall(self, is_answer_lost: bool) -> None:
        self.store.is_answer_lost = is_answer_lost
        self.await_(self.recalls.try_recall(self.account_id))
        self.store.is_answer_lost = False
        self.await_(self._ask_due_unless_lost(is_answer_lost))

    async def _ask_due_unless_lost(self, is_answer_lost: bool) -> None:
        if not is_answer_lost:
            await self.recalls.ask_due()

    @invariant()
    def no_nanodollar_appears_or_vanishes(self) -> None:
        if not hasattr(self, "database"):
            return
        row = self.await_(self.database.fetchrow(_POSITION, self.account_id))
        assert row is not None
        assert min(row["available"], row["out"]) >= 0
        assert row["available"] + row["out"] - row["claimed"] + row["charged"] == self.credited
        # Each session was within its hold, and its hold was never lent to another.
        assert row["overrun"] == 0
        assert row["past_loan"] == 0

    @invariant()
    def what_living_edges_may_still_charge_is_covered_by_the_old_loans(self) -> None:
        if not hasattr(self, "database"):
            return
        covered = {
            row["epoch"]: row["rest"] for row in self.await_(self.database.fetch(_RESTS, self.account_id))
        }
        posted = {row["id"] for row in self.await_(self.database.fetch(_POSTED, self.account_id))}
        owed: dict[int, int] = {}
        for edge in self.edges:
            for session_id in edge.log.keys() | edge.done.keys():
                session = edge.held[session_id]
                if session_id in posted or edge.done.get(session_id, session) is None:
                    continue
                if session.epoch < self.redis.epoch:
                    owed[session.epoch] = owed.get(session.epoch, 0) + session.held_nanos
        for epoch, nanos in owed.items():
            assert covered.get(epoch, 0) >= nanos

    def teardown(self) -> None:
        if not hasattr(self, "database"):
            return
        try:
            self.calm_down()
        finally:
            self.await_(self.database.close())
            self.runner.close()

    def calm_down(self) -> None:
        # Everything calms down: all is told, all have promised, and nothing is frozen.
        for which in range(EDGES):
            for session_id in list(self.edges[which].log):
                edge = self.edges[which]
                edge.done[session_id] = None
                del edge.log[session_id]
        for which in range(EDGES):
            self.recover(which, False)
            self.promise(which, False, False)
        self.ship_outbox()
        self.return_loans()
        self.no_nanodollar_appears_or_vanishes()
        left = self.await_(self.database.fetchval(_LEFT, self.account_id, self.redis.epoch))
        assert left == 0
        differences, _review = self.await_(
            self.database.transaction(reconcile._check_books, isolation="repeatable_read")
        )
        assert differences == []


_POSITION = """
SELECT balance.available_nanos AS available,
    coalesce((
        SELECT sum(lent_nanos - returned_nanos - settled_nanos) FROM escrow WHERE account_id = $1
    ), 0)::bigint AS out,
    coalesce((SELECT sum(nanos - served_nanos) FROM claim WHERE account_id = $1), 0)::bigint AS claimed,
    coalesce((SELECT sum(cost_nanos) FROM usage WHERE account_id = $1), 0)::bigint AS charged,
    coalesce((SELECT sum(overrun_nanos) FROM usage WHERE account_id = $1), 0)::bigint AS overrun,
    coalesce((SELECT sum(cost_nanos - loan_nanos) FROM usage WHERE account_id = $1), 0)::bigint AS past_loan
FROM balance WHERE account_id = $1
"""
_RESTS = "SELECT epoch, lent_nanos - returned_nanos - settled_nanos AS rest FROM escrow WHERE account_id = $1"
_POSTED = "SELECT session_id::text AS id FROM usage WHERE account_id = $1"
_LEFT = """
SELECT coalesce(sum(lent_nanos - returned_nanos - settled_nanos), 0)::bigint
FROM escrow WHERE account_id = $1 AND epoch < $2
"""


def run_machine(database_url: str, *, examples: int, steps: int = 30) -> None:
    async def set_up() -> None:
        database = await Database.open(database_url)
        await set_price(database)
        await Poster(database, LedgerMetrics(new_registry())).prepare()
        await database.close()

    asyncio.run(set_up())
    machine = type("Machine", (RecoveryMachine,), {"database_url": database_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_loss_of_redis_loses_or_makes_a_nanodollar(migrated_database_url: str) -> None:
    run_machine(migrated_database_url, examples=15)


def _no_promise_needed(_standings: object, _epoch: int) -> list[str]:
    return []


def _all_of_it(*, rest: int, held: int, unposted: int) -> int:
    return rest


@pytest.mark.parametrize(
    ("rule_name", "without"), [("waits_for", _no_promise_needed), ("returnable_nanos", _all_of_it)]
)
def test_without_the_promise_or_the_escrow_rule_old_money_is_lent_again(
    migrated_database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    rule_name: str,
    without: Callable[..., object],
) -> None:
    monkeypatch.setattr(promises, rule_name, without)
    with pytest.raises((AssertionError, ExceptionGroup)) as found:
        run_machine(migrated_database_url, examples=200)
    failures = found.value.exceptions if isinstance(found.value, ExceptionGroup) else (found.value,)
    assert any(isinstance(failure, AssertionError) for failure in failures)
