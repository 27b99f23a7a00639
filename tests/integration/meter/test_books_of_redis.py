"""A reference model of the scripts: whatever is called in whatever order, no nano is lost or made."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from services.common.contracts.catalogue import Model, PriceVersion
from services.common.contracts.charging import Extend, InputFacts, Open, Release, SessionRef
from services.common.contracts.lending import AuditRequest, KeyLimits, KeySnapshot, Loan
from services.common.ids import AccountId, EdgeId, KeyHash, KeyId, new_session_id
from services.common.money import PriceVector
from services.meter.audit import Audit
from services.meter.epochs import Epochs
from services.meter.metrics import MeterMetrics
from services.meter.quota_answers import (
    AlreadyEnded,
    Granted,
    Held,
    LedgerMustCharge,
    No,
    SessionOver,
    Settled,
    Short,
    Slice,
)
from services.meter.quota_store import QuotaStore
from services.meter.redis_address import RedisAddress
from services.meter.redis_link import RedisLink
from services.meter.scripts import load_scripts
from services.meter.sessions import InputTokens, plan_hold

T = TypeVar("T")
ACCOUNT = AccountId("acct_model")
MODEL = Model("gpt-4o", "openai", "chat", (PriceVersion(1, 0, PriceVector(input=10_000, output=30_001)),))
BUCKET, EPOCH = 3, 5
# Hypothesis likes small numbers, which would admit nothing.
AMOUNTS = st.sampled_from((450_000, 1, 30_001, 100_000, 5_000_000))


class StoreLoop:
    """The store in a loop of its own: a state machine's rules are not coroutines."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._connected = asyncio.Event()
        scripts = load_scripts()
        self.link = RedisLink(RedisAddress.parse(url), scripts.values(), MeterMetrics(), timeout_ms=5_000)
        self.store = QuotaStore(self.link, scripts)
        self.audit = Audit(self.link, scripts["audit"], Epochs(self.store, None, MeterMetrics()))  # type: ignore[arg-type]
        self._task = self._loop.create_task(self.link.keep_connected(self._on_connected, lambda: None))
        self.run(self._connected.wait())

    async def _on_connected(self, _run_id: str) -> None:
        self._connected.set()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(asyncio.wait_for(work, 10))

    def close(self) -> None:
        self._task.cancel()
        self.run(asyncio.wait({self._task}))
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


@dataclass
class Known:
    """What the model knows of a session."""

    ref: SessionRef
    call: Open
    seq: int
    answer: Held
    held: int
    state: str = "held"


class BooksOfRedis(RuleBasedStateMachine):
    loop: ClassVar[StoreLoop]
    admin_url: ClassVar[str]
    sessions = Bundle("sessions")

    @initialize(quota=st.one_of(st.none(), st.integers(100_000, 3_000_000)), nanos=AMOUNTS)
    def begin(self, quota: int | None, nanos: int) -> None:
        self.loop.run(self._forget_everything())
        self.key = KeySnapshot(
            KeyHash("0" * 64), KeyId("key_model"), ACCOUNT, BUCKET, 1, "active", "active", 1_000_000,
            KeyLimits(quota_nanos=quota, concurrency=40),
        )  # fmt: skip
        self.quota = quota
        self.known: dict[str, Known] = {}
        self.granted = self.spent = self.used = self.gseq = self.outbox = 0
        self.loop.run(self.loop.store.init_epochs({BUCKET: EPOCH}))
        self.loop.run(self.loop.store.configure(self.key, epoch=EPOCH))
        self.grant(nanos, 1)

    async def _forget_everything(self) -> None:
        import redis.asyncio  # noqa: PLC0415

        async with redis.asyncio.from_url(self.admin_url) as admin:
            await admin.flushall()

    @property
    def held(self) -> int:
        return sum(one.held for one in self.known.values())

    @property
    def free(self) -> int:
        return self.granted - self.spent - self.held

    @rule(nanos=AMOUNTS, step=st.sampled_from([0, 1, 1, 1, 2]))
    def grant(self, nanos: int, step: int) -> None:
        loan = Loan(self.gseq + step, nanos)
        answer = self.loop.run(
            self.loop.store.grant(
                ACCOUNT, bucket=BUCKET, epoch=EPOCH, loans=[loan], lendable_nanos=nanos // 2
            )
        )
        assert isinstance(answer, Granted)
        if step == 1:
            self.gseq += 1
            self.granted += nanos
        assert answer.is_gap == (step == 2)
        assert answer.gseq == self.gseq

    @rule(
        target=sessions,
        limit=st.sampled_from((100, 0, 1, 10, 700, 3_000, None)),
        stream=st.booleans(),
        body_bytes=st.integers(1, 200),
        accept_part=st.booleans(),
    )
    def open(self, limit: int | None, stream: bool, body_bytes: int, accept_part: bool) -> Any:
        call = Open(
            new_session_id(), 1, EdgeId("edge"), self.key.key_hash, "chat.completions", "gpt-4o", stream,
            InputFacts(body_bytes), limit,
        )  # fmt: skip
        answer = self._open(call, accept_part=accept_part)
        if isinstance(answer, Held):
            assert answer.held_nanos <= self.free
            ref = SessionRef(call.session_id, ACCOUNT, self.key.key_id, BUCKET, EPOCH)
            self.known[call.session_id] = Known(ref, call, 1, answer, answer.held_nanos)
            if not stream and limit is not None:
                assert answer.granted_tokens == limit
            return call.session_id
        assert isinstance(answer, Short | No), answer
        if isinstance(answer, Short):
            assert not accept_part
            assert answer.wanted_nanos > 0
        return multiple()

    def _open(self, call: Open, *, accept_part: bool) -> Any:
        tokens = InputTokens(tokens=call.facts.body_bytes, hold_tokens=call.facts.body_bytes, exact=True)
        ask = plan_hold(
            call, self.key, MODEL, MODEL.prices[0], bound=tokens, counted=tokens, slice_tokens=512,
            unknown_tokens=4_096,
        )  # fmt: skip
        return self.loop.run(
            self.loop.store.open(call, self.key, ask, epoch=EPOCH, lease_ms=60_000, accept_part=accept_part)
        )

    @rule(session_id=sessions, accept_part=st.booleans())
    def open_again(self, session_id: str, accept_part: bool) -> None:
        known = self.known[session_id]
        answer = self._open(known.call, accept_part=accept_part)
        if known.state == "held" and known.seq == 1:
            assert isinstance(answer, Held)
            assert answer[:-1] == known.answer[:-1]
        else:
            assert isinstance(answer, No)

    @rule(
        session_id=sessions,
        want=st.integers(0, 6_000),
        step=st.sampled_from([0, 1, 1, 1, 3]),
        accept_part=st.booleans(),
    )
    def extend(self, session_id: str, want: int, step: int, accept_part: bool) -> None:
        known = self.known[session_id]
        call = Extend(known.ref, known.seq + step, want, want // 2, want)
        answer = self.loop.run(
            self.loop.store.extend(call, slice_tokens=512, lease_ms=60_000, accept_part=accept_part)
        )
        if known.state != "held":
            assert answer == SessionOver("ended")
        elif isinstance(answer, Slice):
            assert answer.held_nanos >= known.held
            if step == 0:
                assert answer.held_nanos == known.held
            assert answer.held_nanos - known.held <= self.free
            known.seq, known.held = call.seq, answer.held_nanos
            # A stream of the account no longer waits: opens may go on.
            again = self.loop.run(
                self.loop.store.extend(
                    replace_want(call, want + 999), slice_tokens=512, lease_ms=60_000, accept_part=True
                )
            )
            assert isinstance(again, Slice)
            assert again.held_nanos == known.held
        else:
            assert isinstance(answer, Short)
            assert not accept_part
            # The waiting extend gives up: accept what there is.
            self.extend(session_id, want, step, True)

    @rule(
        session_id=sessions,
        cost=st.sampled_from((3_000, 0, 1, 30_000, 999_999, 20_000_000)),
        by=st.sampled_from(["edge", "edge", "edge", "sweep"]),
    )
    def settle(self, session_id: str, cost: int, by: str) -> None:
        known = self.known[session_id]
        answer = self.loop.run(
            self.loop.store.settle(
                known.ref, seq=known.seq + 1, cost_nanos=cost, tokens=1, payload=b"{}", by=by
            )
        )
        if by == "sweep":
            assert type(answer).__name__ == "Skipped"
        elif known.state == "held":
            assert answer == Settled(min(cost, known.held + self.free))
            self.spent += min(cost, known.held + self.free)
            self.used += cost
            self.outbox += 1
            known.state, known.held, known.seq = "settled", 0, known.seq + 1
        else:
            assert answer == AlreadyEnded(known.state)

    @rule(session_id=sessions)
    def release(self, session_id: str) -> None:
        known = self.known[session_id]
        call = Release(known.ref.session_id, BUCKET, known.seq + 1, "test")
        answer = self.loop.run(self.loop.store.release(call, epoch=EPOCH))
        if known.state == "held":
            known.state, known.held, known.seq = "released", 0, known.seq + 1
        assert answer == AlreadyEnded(known.state)

    @precondition(lambda self: self.outbox == 1)
    @rule(cost=st.integers(0, 1_000))
    def settle_unknown(self, cost: int) -> None:
        for epoch, is_stale in ((EPOCH, False), (EPOCH - 1, True)):
            ref = SessionRef(new_session_id(), ACCOUNT, self.key.key_id, BUCKET, epoch)
            answer = self.loop.run(
                self.loop.store.settle(ref, seq=2, cost_nanos=cost, tokens=1, payload=b"{}")
            )
            assert answer == LedgerMustCharge(is_stale)

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "known"):
            return
        audit = self.loop.run(self.loop.audit.look(AuditRequest(None, BUCKET, BUCKET)))
        assert audit.outbox_entries == self.outbox
        assert [(one.used_nanos, one.held_nanos) for one in audit.keys] == [(self.used, self.held)]
        for account in audit.accounts:
            assert account.held_nanos == account.listed_held_nanos == self.held
            assert (account.granted_nanos, account.spent_nanos) == (self.granted, self.spent)
            assert account.granted_nanos - account.spent_nanos - account.held_nanos >= 0
            assert account.gseq == self.gseq
        assert audit.accounts or (self.granted, self.held) == (0, 0)
        assert sum(audit.unposted_nanos.values()) == self.spent
        if self.quota is not None and self.held:
            # Only a cost above its hold can bring a key over its quota.
            assert self.held <= self.quota


def replace_want(call: Extend, want: int) -> Extend:
    return msgspec.structs.replace(call, want_output_tokens=want)


@pytest.fixture
def store_loop_of_machine(redis_url: str, redis_admin_url: str) -> Iterator[None]:
    BooksOfRedis.loop = StoreLoop(redis_url)
    BooksOfRedis.admin_url = redis_admin_url
    yield
    BooksOfRedis.loop.close()


@pytest.mark.usefixtures("store_loop_of_machine")
def test_the_books_of_redis_agree_after_any_calls() -> None:
    from hypothesis.stateful import run_state_machine_as_test  # noqa: PLC0415

    run_state_machine_as_test(
        BooksOfRedis,
        settings=settings(
            max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
