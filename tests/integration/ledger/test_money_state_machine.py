"""Random lives of accounts: sent twice, late, lost or fenced, no nanodollar appears or vanishes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, TypeVar, cast

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from services.common.contracts.lending import (
    AccountAudit,
    AuditReply,
    AuditRequest,
    FenceRequest,
    LoanRequest,
    PostingEntry,
)
from services.common.ids import AccountId, bucket_of
from services.common.metrics import new_registry
from services.ledger import accounts, epochs, reconcile
from services.ledger.database import Database
from services.ledger.frozen_loans import return_escrows
from services.ledger.loans import Lender
from services.ledger.meters import Meters
from services.ledger.metrics import LedgerMetrics
from services.ledger.posting import Poster
from tests.integration.ledger.entries import entry, set_price

T = TypeVar("T")
ACCOUNTS = 3
WHICH = st.integers(0, ACCOUNTS - 1)
AMOUNT = st.integers(1, 5_000_000).map(lambda thousands: thousands * 1_000)
BOOL = st.booleans()


@dataclass
class Redis:
    """What Redis knows of one account: the model that the ledger is compared with."""

    epoch: int
    granted_nanos: int = 0
    spent_nanos: int = 0
    gseq: int = 0
    outbox: list[PostingEntry] = field(default_factory=list)


class RedisOfModel:
    """Answers audits from the model, as a meter would."""

    def __init__(self, machine: MoneyMachine) -> None:
        self._machine = machine

    async def audit(self, request: AuditRequest, *, timeout_ms: int | None = None) -> AuditReply:
        rows = []
        unposted: dict[str, int] = {}
        for account_id, redis in self._machine.all_redis.items():
            is_wanted = (
                account_id in request.accounts
                if request.accounts is not None
                else request.bucket_from <= bucket_of(account_id) <= request.bucket_to
            )
            if not is_wanted:
                continue
            rows.append(
                AccountAudit(
                    account_id=account_id,
                    bucket=bucket_of(account_id),
                    epoch=redis.epoch,
                    granted_nanos=redis.granted_nanos,
                    spent_nanos=redis.spent_nanos,
                    held_nanos=0,
                    listed_held_nanos=0,
                    gseq=redis.gseq,
                )
            )
            if redis.outbox:
                unposted[account_id] = sum(one.loan_nanos for one in redis.outbox)
        return AuditReply(accounts=tuple(rows), unposted_nanos=unposted)


class MoneyMachine(RuleBasedStateMachine):
    """Each run has its own accounts; `all_redis` keeps those of all runs, which share the database."""

    database_url = ""
    all_redis: ClassVar[dict[AccountId, Redis]] = {}

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.await_(self._start())

    @property
    def redis(self) -> dict[AccountId, Redis]:
        return {account_id: self.all_redis[account_id] for account_id in self.accounts}

    def await_(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def _start(self) -> None:
        self.database = await Database.open(self.database_url, connections_max=3)
        metrics = LedgerMetrics(new_registry())
        self.metrics = metrics
        self.poster, self.lender = Poster(self.database, metrics), Lender(self.database, metrics)
        self.accounts = [await accounts.create_account(self.database) for _ in range(ACCOUNTS)]
        current = await epochs.current_epochs(self.database)
        for account in self.accounts:
            self.all_redis[account] = Redis(epoch=current[bucket_of(account)])
        self.credited = dict.fromkeys(self.accounts, 0)
        self.costs: dict[str, tuple[AccountId, int]] = {}
        self.late: list[PostingEntry] = []
        self.posted: list[PostingEntry] = []
        self.refs = 0

    @rule(which=WHICH, nanos=AMOUNT, down=BOOL)
    def credit(self, which: int, nanos: int, down: bool) -> None:
        account_id = self.accounts[which]
        self.refs += 1
        ref = f"{account_id}:{self.refs}"

        async def work() -> int:
            moved = await accounts.credit(
                self.database,
                account_id=account_id,
                nanos=-nanos if down else nanos,
                reason="test",
                actor="test",
                ref=ref,
            )
            return moved.moved_nanos - moved.claimed_nanos

        self.credited[account_id] += self.await_(work())

    @rule(which=WHICH, wanted=AMOUNT, is_answer_lost=BOOL)
    def borrow(self, which: int, wanted: int, is_answer_lost: bool) -> None:
        account_id = self.accounts[which]
        redis = self.redis[account_id]
        request = LoanRequest(
            account_id=account_id,
            epoch=redis.epoch,
            applied_gseq=redis.gseq,
            wanted_nanos=wanted,
            largest_hold_nanos=wanted // 3,
        )
        [reply] = self.await_(self.lender.lend([request]))
        assert reply.error == ""
        if is_answer_lost:
            return
        for loan in reply.loans:
            assert loan.gseq == redis.gseq + 1
            redis.gseq = loan.gseq
            redis.granted_nanos += loan.nanos

    @rule(which=WHICH, cost=AMOUNT, is_beyond_allowed=BOOL)
    def settle(self, which: int, cost: int, is_beyond_allowed: bool) -> None:
        account_id = self.accounts[which]
        redis = self.redis[account_id]
        rest = redis.granted_nanos - redis.spent_nanos
        if not is_beyond_allowed:
            cost = min(cost, rest // 1_000 * 1_000)
        loan = min(cost, rest)
        redis.spent_nanos += loan
        redis.outbox.append(entry(account_id, cost=cost, loan=loan, epoch=redis.epoch))

    @rule(is_answer_lost=BOOL)
    def ship_outboxes(self, is_answer_lost: bool) -> None:
        batch = [one for redis in self.redis.values() for one in redis.outbox]
        self._post(batch)
        if not is_answer_lost:
            for redis in self.redis.values():
                redis.outbox.clear()

    @rule()
    def ship_late(self) -> None:
        self._post(self.late)
        self.late = []

    @rule(data=st.data())
    def post_again(self, data: st.DataObject) -> None:
        if self.posted:
            again = data.draw(st.lists(st.sampled_from(self.posted), max_size=5))
            reply = self.await_(self.poster.post(again))
            assert (reply.posted, reply.exceptions) == (0, 0)

    @rule(which=WHICH, is_outbox_lost=BOOL)
    def lose_redis(self, which: int, is_outbox_lost: bool) -> None:
        bucket = bucket_of(self.accounts[which])
        request = FenceRequest(buckets=(bucket,), seen_epochs=(0,), run_id="r", reason="test")
        opened = self.await_(epochs.fence(self.database, self.metrics, request))
        for account_id, redis in self.all_redis.items():
            if bucket_of(account_id) == bucket:
                kept = [] if is_outbox_lost else redis.outbox
                self.late += redis.outbox if is_outbox_lost else []
                self.all_redis[account_id] = Redis(epoch=opened[bucket], outbox=kept)

    @rule(which=WHICH)
    def return_frozen_loans(self, which: int) -> None:
        account_id = self.accounts[which]
        for epoch in range(1, self.redis[account_id].epoch):
            work = partial(
                return_escrows,
                account_ids=[account_id],
                bucket=bucket_of(account_id),
                epoch=epoch,
                unposted_nanos={},
            )
            self.await_(self.database.transaction(work))

    @rule()
    def post_poison(self) -> None:
        poison = entry("acct_nobody", cost=1_000)
        torn = msgspec.structs.replace(entry(self.accounts[0], cost=1_000), loan_nanos=-5)
        reply = self.await_(self.poster.post([poison, torn]))
        assert reply.exceptions == 2

    def _post(self, batch: list[PostingEntry]) -> None:
        if batch:
            reply = self.await_(self.poster.post(batch))
            assert reply.exceptions == 0
            self.posted += batch
            for one in batch:
                self.costs[one.record.session_id] = (one.record.account_id, one.record.cost_nanos)

    @invariant()
    def no_nanodollar_appears_or_vanishes(self) -> None:
        if not hasattr(self, "database"):
            return
        for row in self.await_(self.database.fetch(_POSITIONS, self.accounts)):
            account_id = row["id"]
            assert min(row["available"], row["out"], row["overrun"]) >= 0
            has = row["available"] + row["out"] - row["claimed"]
            assert has + row["charged"] == self.credited[account_id]
            posted = sum(cost for owner, cost in self.costs.values() if owner == account_id)
            assert row["charged"] + row["overrun"] == posted

    def teardown(self) -> None:
        if hasattr(self, "database"):
            # What an ended epoch left is shipped before the books can agree; the rest may wait.
            for redis in self.redis.values():
                self._post([one for one in redis.outbox if one.epoch < redis.epoch])
                redis.outbox = [one for one in redis.outbox if one.epoch == redis.epoch]
            self.await_(self._reconcile())
            for redis in self.redis.values():
                self._post(redis.outbox)
                redis.outbox = []
            self.await_(self.database.close())
            self.runner.close()

    async def _reconcile(self) -> None:
        found = await reconcile.run(self.database, cast("Meters", RedisOfModel(self)))
        assert [row for row in found.differences if row.what not in _EXPECTED] == []


_EXPECTED = {"exception: bad_entry", "exception: unknown_account"}
_POSITIONS = """
SELECT account.id, balance.available_nanos AS available,
    coalesce((
        SELECT sum(lent_nanos - returned_nanos - settled_nanos) FROM escrow WHERE account_id = id
    ), 0)::bigint AS out,
    coalesce((
        SELECT sum(loan_nanos + usage.available_nanos) FROM usage WHERE account_id = id
    ), 0)::bigint AS charged,
    coalesce((
        SELECT sum(nanos - served_nanos) FROM claim WHERE claim.account_id = account.id
    ), 0)::bigint AS claimed,
    coalesce((SELECT sum(overrun_nanos) FROM usage WHERE account_id = id), 0)::bigint AS overrun
FROM account JOIN balance ON account_id = id WHERE id = ANY($1)
"""


def test_no_life_of_an_account_loses_or_makes_a_nanodollar(
    migrated_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "READS_MAX", 1)

    async def set_up() -> None:
        database = await Database.open(migrated_database_url)
        await set_price(database)
        await Poster(database, LedgerMetrics(new_registry())).prepare()
        await database.close()

    asyncio.run(set_up())
    machine = type("Machine", (MoneyMachine,), {"database_url": migrated_database_url, "all_redis": {}})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
