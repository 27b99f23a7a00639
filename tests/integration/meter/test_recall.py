"""Recall, late key use, settling from a log and forgetting an edge, on real Redis over real HTTP."""

import asyncio
from typing import TypeVar

import aiohttp
import msgspec
import redis.asyncio

from services.common.contracts.charging import Admitted, Extend
from services.common.contracts.lending import (
    AllSettled,
    AuditReply,
    AuditRequest,
    EdgeForgotten,
    ForgetEdge,
    Recall,
    RecallReply,
    SettleAll,
)
from services.common.internal_http import bearer, call
from services.common.money import NANOS_PER_USD
from services.common.settings import Secret
from tests.integration.meter.conftest import RunningMeter, StartMeter, until
from tests.integration.meter.edge_line import CREDENTIAL
from tests.integration.meter.fake_ledger import FakeLedger
from tests.integration.meter.test_outages import admitted_stream, open_call, open_session, settle_call

T = TypeVar("T")


async def ask(meter: RunningMeter, path: str, body: object, answer_type: type[T]) -> T:
    async with aiohttp.ClientSession(headers=bearer(Secret(CREDENTIAL))) as session:
        return await call(session, f"{meter.url}/internal/v1/{path}", answer_type, body=body)


async def recall(meter: RunningMeter, account_id: str, rseq: int, wanted: int, *, epoch: int) -> RecallReply:
    body = Recall(account_id, epoch, rseq, wanted)  # type: ignore[arg-type]
    return await ask(meter, "recall", body, RecallReply)


async def test_what_is_held_is_not_recalled_and_a_repeated_recall_takes_nothing_more(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    admitted = await admitted_stream(meter, ledger)
    account_id, epoch = admitted.ref.account_id, admitted.ref.epoch
    before = await ask(meter, "audit", AuditRequest(accounts=(account_id,)), AuditReply)
    [account] = before.accounts
    unheld = account.granted_nanos - account.held_nanos
    first = await recall(meter, account_id, 1, 1_000, epoch=epoch)
    assert (first.recalled_nanos, first.granted_nanos) == (1_000, account.granted_nanos - 1_000)
    assert await recall(meter, account_id, 1, 1_000, epoch=epoch) == first
    rest = await recall(meter, account_id, 2, 2**52, epoch=epoch)
    assert rest.recalled_nanos == unheld - 1_000
    assert (await recall(meter, account_id, 4, 1, epoch=epoch)).error == "out_of_order"
    assert (await recall(meter, account_id, 1, 1, epoch=epoch)).error == "out_of_order"
    after = await ask(meter, "audit", AuditRequest(accounts=(account_id,)), AuditReply)
    assert (after.accounts[0].granted_nanos, after.accounts[0].rseq) == (account.held_nanos, 2)
    # The hold is untouched: the session ends as if nothing had been.
    settled = await meter.line.call(settle_call(admitted, output_tokens=3))
    assert getattr(settled, "state", "") == "settled"


async def test_a_recall_of_an_older_epoch_is_stale(
    meter: RunningMeter, ledger: FakeLedger, admin: redis.asyncio.Redis
) -> None:
    admitted = await admitted_stream(meter, ledger)
    ref = admitted.ref
    await admin.flushall()
    await meter.line.call(Extend(ref, 2, 10))
    await until(lambda: meter.parts.epochs.known(ref.bucket) == ref.epoch + 1)
    await until(lambda: meter.parts.epochs.live_buckets == 256)
    assert (await recall(meter, ref.account_id, 1, 5, epoch=ref.epoch)).error == "stale_epoch"


async def test_a_recall_of_an_account_without_loan_is_remembered(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    account_id = ledger.add_account("idle", NANOS_PER_USD)
    answer = await recall(meter, account_id, 1, 5, epoch=2)
    assert (answer.recalled_nanos, answer.error) == (0, "")
    assert (await recall(meter, account_id, 2, 5, epoch=2)).rseq == 2


async def test_a_session_settled_from_a_log_is_charged_once(meter: RunningMeter, ledger: FakeLedger) -> None:
    admitted = await admitted_stream(meter, ledger)
    settle = settle_call(admitted, output_tokens=3)
    from_log = SettleAll((msgspec.structs.replace(settle, seq=2**31),))
    for _time in range(2):
        assert (await ask(meter, "settle", from_log, AllSettled)).ended == 1
    await until(lambda: settle.record.session_id in ledger.posted)
    audit = await ask(meter, "audit", AuditRequest(accounts=(admitted.ref.account_id,)), AuditReply)
    assert (audit.accounts[0].held_nanos, audit.accounts[0].spent_nanos) == (0, settle.record.cost_nanos)
    assert ledger.duplicates == 0


async def test_what_waits_in_the_outbox_is_told_by_epoch(meter: RunningMeter, ledger: FakeLedger) -> None:
    admitted = await admitted_stream(meter, ledger)
    ledger.is_away = True
    settle = settle_call(admitted, output_tokens=3)
    await meter.line.call(settle)
    account_id = admitted.ref.account_id
    audit = await ask(meter, "audit", AuditRequest(accounts=(account_id,)), AuditReply)
    assert audit.unposted_by_epoch == {account_id: {admitted.ref.epoch: settle.record.cost_nanos}}
    assert audit.unposted_nanos == {account_id: settle.record.cost_nanos}


async def test_a_forgotten_edges_sessions_end_at_their_checkpoints(
    start_meter: StartMeter, ledger: FakeLedger
) -> None:
    meter = await start_meter(lease_ms=400, orphan_grace_ms=600_000, sweep_interval_ms=600_000)
    admitted = await admitted_stream(meter, ledger)
    key = ledger.add_key(ledger.add_account("other", NANOS_PER_USD))
    silent = await open_session(meter.line, open_call(key, output_tokens_max=5))
    assert isinstance(silent, Admitted)
    used = Extend(admitted.ref, 2, 0, used_output_tokens=2, used_nanos=60_000)
    await meter.line.call(used)
    edge = ForgetEdge(open_call(key).edge_id)
    assert await ask(meter, "edges/forget", ForgetEdge("another"), EdgeForgotten) == EdgeForgotten(0, 0)  # type: ignore[arg-type]
    assert (await ask(meter, "edges/forget", edge, EdgeForgotten)).running == 2
    await asyncio.sleep(0.5)
    assert await ask(meter, "edges/forget", edge, EdgeForgotten) == EdgeForgotten(2, 0)
    await until(lambda: admitted.ref.session_id in ledger.posted)
    record = ledger.posted[admitted.ref.session_id]
    assert (record.usage_source, record.cost_nanos) == ("checkpoint", 60_000)
    assert silent.ref.session_id not in ledger.posted
