"""What happens when Redis, the ledger or an edge is away, or has forgotten."""

import asyncio
import time

import msgspec
import pytest
import redis.asyncio

from services.common.contracts.charging import Admitted, Ended, Extended, Failed, Refused
from services.common.contracts.lending import AuditRequest
from services.common.money import NANOS_PER_USD
from tests.integration.meter.conftest import RunningMeter, StartMeter, until
from tests.integration.meter.edge_line import (
    EdgeLine,
    extend_call,
    open_call,
    open_session,
    release_call,
    settle_call,
)
from tests.integration.meter.fake_ledger import FakeLedger


async def admitted_stream(
    meter: RunningMeter, ledger: FakeLedger, balance: int = 10 * NANOS_PER_USD
) -> Admitted:
    key = ledger.add_key(ledger.add_account("a", balance))
    admitted = await open_session(meter.line, open_call(key, stream=True, output_tokens_max=1_000))
    assert isinstance(admitted, Admitted)
    return admitted


async def test_a_flushed_redis_is_fenced_and_serves_again_within_two_seconds(
    meter: RunningMeter, ledger: FakeLedger, admin: redis.asyncio.Redis
) -> None:
    admitted = await admitted_stream(meter, ledger)
    account = admitted.ref.account_id
    key = next(iter(ledger.keys.values()))
    before = list(ledger.epochs)
    await admin.flushall()
    started = time.monotonic()
    refused = await meter.line.call(open_call(key))
    assert isinstance(refused, Refused)
    assert (refused.error, refused.code) == ("Unavailable", "service_unavailable")
    await until(lambda: meter.parts.epochs.live_buckets == 256)
    assert time.monotonic() - started < 2
    assert ledger.epochs == [epoch + 1 for epoch in before]
    # The loan of the old epoch is frozen, what is left is lent anew.
    assert isinstance(await open_session(meter.line, open_call(key)), Admitted)
    assert ledger.escrow[account, before[key.bucket]] == NANOS_PER_USD
    # The running stream ends inside the hold that it owns, and is charged to the old epoch.
    over = await meter.line.call(extend_call(admitted, want=2_000, seq=3))
    assert isinstance(over, Extended)
    assert over.ended == "stale_epoch"
    settle = settle_call(admitted, output_tokens=500, seq=4)
    assert await meter.line.call(settle) == Ended(4, "settled")
    assert ledger.posted[admitted.ref.session_id] == settle.record
    assert ledger.escrow[account, before[key.bucket]] == NANOS_PER_USD - settle.record.cost_nanos
    assert await meter.line.call(settle) == Ended(4, "settled")
    assert ledger.total(account) == 10 * NANOS_PER_USD - settle.record.cost_nanos


async def test_a_settle_of_an_older_epoch_waits_for_the_ledger(
    meter: RunningMeter, ledger: FakeLedger, admin: redis.asyncio.Redis
) -> None:
    admitted = await admitted_stream(meter, ledger)
    await admin.flushall()
    settle = settle_call(admitted, output_tokens=500)
    # Nobody has noticed before this call.
    assert isinstance(await meter.line.call(settle), Failed)
    await until(lambda: meter.parts.epochs.live_buckets == 256)
    ledger.is_away = True
    assert isinstance(await meter.line.call(settle), Failed)
    ledger.is_away = False
    assert await meter.line.call(settle) == Ended(settle.seq, "settled")


async def test_two_meters_that_meet_an_empty_redis_begin_one_epoch(
    start_meter: StartMeter, ledger: FakeLedger
) -> None:
    await asyncio.gather(*(start_meter() for _ in range(3)))
    assert ledger.epochs == [2] * 256


async def test_a_redis_with_the_ledgers_epochs_is_trusted_and_an_older_one_is_brought_forward(
    start_meter: StartMeter, ledger: FakeLedger
) -> None:
    await start_meter()
    assert len(ledger.fences) == 1
    ledger.epochs[7] = 9
    second = await start_meter()
    assert len(ledger.fences) == 1
    assert (await second.parts.store.read_epochs())[7] == 9
    ledger.epochs[8] = 1
    await start_meter()
    assert ledger.epochs[8] == 3


async def test_a_deleted_account_hash_fences_its_bucket(
    meter: RunningMeter, ledger: FakeLedger, admin: redis.asyncio.Redis
) -> None:
    admitted = await admitted_stream(meter, ledger)
    bucket, account = admitted.ref.bucket, admitted.ref.account_id
    await admin.delete(f"a:{{b{bucket}}}:{account}")
    refused = await meter.line.call(open_call(next(iter(ledger.keys.values()))))
    assert isinstance(refused, Refused)
    assert refused.error == "Unavailable"
    await until(lambda: meter.parts.epochs.is_live(bucket))
    assert ledger.epochs[bucket] == 3
    assert sum(ledger.epochs) == 2 * 256 + 1
    settle = settle_call(admitted, output_tokens=5)
    assert await meter.line.call(settle) == Ended(settle.seq, "settled")
    assert ledger.posted[admitted.ref.session_id].cost_nanos == settle.record.cost_nanos


async def test_forgotten_scripts_are_loaded_again(
    meter: RunningMeter, ledger: FakeLedger, admin: redis.asyncio.Redis
) -> None:
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD))
    await admin.script_flush()
    assert isinstance(await open_session(meter.line, open_call(key)), Admitted)


async def test_a_killed_redis_refuses_within_two_seconds_and_goes_on_in_the_same_epoch(
    start_meter: StartMeter, ledger: FakeLedger, fresh_redis: object
) -> None:
    server = await fresh_redis(append_only=True)  # type: ignore[operator]
    meter = await start_meter(url=server.meter_url)
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD))
    admitted = await open_session(meter.line, open_call(key))
    assert isinstance(admitted, Admitted)
    # Redis writes its log to disk each second.
    await asyncio.sleep(1.1)
    await server.stop("immediate")
    started = time.monotonic()
    reply = await meter.line.call(open_call(key))
    assert isinstance(reply, Refused | Failed)
    settle = settle_call(admitted, output_tokens=5)
    assert isinstance(await meter.line.call(settle), Failed)
    assert isinstance(await meter.line.call(release_call(key, open_call(key).session_id, 1)), Failed)
    assert time.monotonic() - started < 2
    epochs = list(ledger.epochs)
    await server.start()
    await until(lambda: meter.parts.epochs.live_buckets == 256)
    assert ledger.epochs == epochs
    assert await meter.line.call(settle) == Ended(settle.seq, "settled")
    await until(lambda: ledger.posted)


async def test_a_redis_that_does_not_answer_is_given_up_in_time(
    start_meter: StartMeter, ledger: FakeLedger, admin: redis.asyncio.Redis
) -> None:
    meter = await start_meter(redis_timeout_ms=300)
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD))
    assert isinstance(await open_session(meter.line, open_call(key)), Admitted)
    pause = asyncio.create_task(admin.execute_command("DEBUG", "SLEEP", "1"))
    await asyncio.sleep(0.1)
    started = time.monotonic()
    assert isinstance(await meter.line.call(open_call(key)), Failed)
    assert time.monotonic() - started < 0.8
    await pause
    await until(lambda: meter.parts.epochs.live_buckets == 256)
    assert isinstance(await open_session(meter.line, open_call(key)), Admitted)


async def test_without_the_ledger_a_loan_is_used_up_and_then_opens_get_503(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD))
    call = {"output_tokens_max": 10_000}
    assert isinstance(await open_session(meter.line, open_call(key, **call)), Admitted)
    await until(lambda: not meter.parts.admission._lending._in_flight)
    ledger.is_away = True
    replies = [await open_session(meter.line, open_call(key, **call)) for _ in range(20)]
    codes = [reply.code if isinstance(reply, Refused) else "" for reply in replies]
    assert codes[0] == ""
    assert codes[-1] == "service_unavailable"
    other = ledger.add_key(ledger.add_account("b", NANOS_PER_USD))
    refused = await meter.line.call(open_call(other))
    assert isinstance(refused, Refused)
    assert refused.retry_after_ms is not None
    ledger.is_away = False
    assert isinstance(await open_session(meter.line, open_call(key, **call)), Admitted)


async def test_a_stream_that_can_not_borrow_is_not_told_that_it_is_final(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    key = ledger.add_key(ledger.add_account("a", 30 * NANOS_PER_USD))
    call = open_call(key, stream=True, output_tokens_max=900_000)
    admitted = await open_session(meter.line, call)
    assert isinstance(admitted, Admitted)
    await until(lambda: not meter.parts.admission._lending._in_flight)
    ledger.is_away = True
    seq, granted, extended = 3, 0, None
    while extended is None or extended.granted_output_tokens > granted:
        granted = extended.granted_output_tokens if extended else admitted.granted_output_tokens
        extended = await meter.line.call(extend_call(admitted, want=granted + 1, seq=seq))
        assert isinstance(extended, Extended)
        assert not extended.final
        seq += 1
    ledger.is_away = False
    more = await meter.line.call(extend_call(admitted, want=granted + 1, seq=seq))
    assert isinstance(more, Extended)
    assert more.granted_output_tokens > granted


async def test_postings_wait_for_the_ledger_and_another_meter_ships_them(
    start_meter: StartMeter, ledger: FakeLedger
) -> None:
    first = await start_meter()
    admitted = await admitted_stream(first, ledger)
    ledger.is_away = True
    settle = settle_call(admitted, output_tokens=5)
    assert isinstance(await first.line.call(settle), Ended)
    await asyncio.sleep(0.1)
    first.parts.outbox._dirty.clear()
    ledger.is_away = False
    await until(lambda: ledger.posted, seconds=6)
    audit = await first.parts.audit.look(AuditRequest())
    await asyncio.sleep(0.1)
    audit = await first.parts.audit.look(AuditRequest())
    assert (audit.outbox_entries, audit.unposted_nanos) == (0, {})


async def test_an_unreadable_entry_is_set_aside_and_the_rest_is_posted(
    meter: RunningMeter, ledger: FakeLedger, admin: redis.asyncio.Redis
) -> None:
    admitted = await admitted_stream(meter, ledger)
    key = next(iter(ledger.keys.values()))
    poison = await open_session(meter.line, open_call(key))
    assert isinstance(poison, Admitted)
    bucket = admitted.ref.bucket
    await admin.xadd(f"o:{{b{bucket}}}", {"record": "{", "epoch": "2", "loan_nanos": "1"})
    ledger.refused_session = poison.ref.session_id
    await meter.line.call_all([settle_call(poison, output_tokens=1), settle_call(admitted, output_tokens=5)])
    await until(lambda: admitted.ref.session_id in ledger.posted)
    await until(lambda: meter.parts.metrics.poison_entries == 2)
    assert await admin.xlen(f"p:{{b{bucket}}}") == 2
    assert await admin.xlen(f"o:{{b{bucket}}}") == 0


async def test_an_orphan_is_charged_at_its_last_checkpoint_once(
    start_meter: StartMeter, ledger: FakeLedger
) -> None:
    settings = {"lease_ms": 300, "orphan_grace_ms": 600, "sweep_interval_ms": 30}
    meters = [await start_meter(**settings) for _ in range(2)]
    admitted = await admitted_stream(meters[0], ledger)
    used_nanos = (8 * 10_000_000 + 120 * 30_000_000) // 1000
    extended = await meters[0].line.call(
        extend_call(admitted, want=0, used=120, used_nanos=used_nanos, seq=3)
    )
    assert isinstance(extended, Extended)
    await until(lambda: sum(one.parts.metrics.orphans["orphaned"] for one in meters))
    audit = await meters[0].parts.audit.look(AuditRequest())
    assert [one.state for one in audit.accounts[0].sessions] == ["orphaned"]
    assert audit.accounts[0].held_nanos == audit.accounts[0].listed_held_nanos == admitted.held_nanos
    late = await meters[0].line.call(extend_call(admitted, want=2_000, seq=4))
    assert isinstance(late, Extended)
    assert late.ended == "lease_over"
    await until(lambda: ledger.posted)
    record = ledger.posted[admitted.ref.session_id]
    assert (record.outcome, record.usage_source) == ("edge_lost", "checkpoint")
    assert record.cost_nanos == used_nanos
    assert record.tokens.output == 120
    assert sum(one.parts.metrics.orphans["settled"] for one in meters) == 1
    audit = await meters[0].parts.audit.look(AuditRequest())
    assert audit.accounts[0].held_nanos == 0
    # The edge turns up after all: the ledger knows the session already and charges nothing more.
    assert isinstance(await meters[1].line.call(settle_call(admitted, output_tokens=400)), Ended)
    assert ledger.total(admitted.ref.account_id) == 10 * NANOS_PER_USD - used_nanos


async def test_an_orphan_without_output_is_released_and_a_late_settle_of_it_is_still_charged(
    start_meter: StartMeter, ledger: FakeLedger
) -> None:
    meter = await start_meter(lease_ms=150, orphan_grace_ms=50, sweep_interval_ms=30)
    admitted = await admitted_stream(meter, ledger)
    await until(lambda: meter.parts.metrics.orphans["released"])
    audit = await meter.parts.audit.look(AuditRequest())
    assert audit.accounts[0].held_nanos == 0
    assert ledger.posted == {}
    settle = settle_call(admitted, output_tokens=400)
    assert isinstance(await meter.line.call(settle), Ended)
    assert ledger.total(admitted.ref.account_id) == 10 * NANOS_PER_USD - settle.record.cost_nanos


async def test_an_orphan_that_settles_in_its_grace_is_charged_what_it_used(
    start_meter: StartMeter, ledger: FakeLedger
) -> None:
    meter = await start_meter(lease_ms=150, orphan_grace_ms=60_000, sweep_interval_ms=30)
    admitted = await admitted_stream(meter, ledger)
    await until(lambda: meter.parts.metrics.orphans["orphaned"])
    settle = settle_call(admitted, output_tokens=400)
    assert isinstance(await meter.line.call(settle), Ended)
    await until(lambda: ledger.posted)
    assert ledger.posted[admitted.ref.session_id] == settle.record


async def test_prices_are_too_old_after_their_time(start_meter: StartMeter, ledger: FakeLedger) -> None:
    meter = await start_meter(catalogue_usable_ms=2_500)
    key = ledger.add_key(ledger.add_account("a", NANOS_PER_USD))
    ledger.is_away = True
    await until(lambda: not meter.parts.catalogue.is_usable)
    refused = await meter.line.call(open_call(key))
    assert isinstance(refused, Refused)
    assert refused.error == "Unavailable"


async def test_the_meters_own_pages_tell_whether_it_can_serve(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    await admitted_stream(meter, ledger)
    http = meter.line._http
    async with http.get(f"{meter.url}/readyz", headers={"Authorization": ""}) as response:
        assert response.status == 200
        assert await response.json() == {
            "ready": True,
            "checks": {"redis": True, "epochs": True, "catalogue": True},
        }
    async with http.get(f"{meter.url}/metrics", headers={"Authorization": ""}) as response:
        text = await response.text()
    assert 'meterway_meter_admitted_total{kind="stream"} 1.0' in text
    assert "meterway_meter_store_up 1.0" in text
    assert 'meterway_meter_script_seconds_count{verb="open"}' in text
    async with http.post(f"{meter.url}/internal/v1/audit", headers={"Authorization": ""}) as response:
        assert response.status == 401


async def test_an_edge_that_goes_away_loses_no_call(start_meter: StartMeter, ledger: FakeLedger) -> None:
    meter = await start_meter()
    admitted = await admitted_stream(meter, ledger)
    async with EdgeLine(meter.url) as line:
        calls = asyncio.ensure_future(line.call(settle_call(admitted, output_tokens=5)))
        await asyncio.sleep(0)
        calls.cancel()
    await asyncio.sleep(0.1)
    assert isinstance(await meter.line.call(settle_call(admitted, output_tokens=5)), Ended)
    await until(lambda: ledger.posted)
    assert len(ledger.posted) == 1


async def test_the_meters_own_user_can_not_flush_and_needs_not(
    meter: RunningMeter, ledger: FakeLedger, redis_url: str
) -> None:
    async with redis.asyncio.from_url(redis_url) as client:
        for command in ("FLUSHALL", "FLUSHDB", "KEYS *", "DEBUG SLEEP 0", "CONFIG GET *", "SHUTDOWN"):
            with pytest.raises(redis.exceptions.ResponseError):
                await client.execute_command(*command.split())
    admitted = await admitted_stream(meter, ledger)
    assert isinstance(await meter.line.call(settle_call(admitted, output_tokens=1)), Ended)


async def test_a_key_begins_an_epoch_with_what_it_has_used(
    meter: RunningMeter, ledger: FakeLedger, admin: redis.asyncio.Redis
) -> None:
    quota = 3_000_000
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD), quota_nanos=quota)
    before = await open_session(meter.line, open_call(key, output_tokens_max=50))
    assert isinstance(before, Admitted)
    await admin.flushall()
    # Posted meanwhile; the meter's snapshot does not know.
    ledger.keys[key.key_hash] = msgspec.structs.replace(key, used_nanos=quota - 1_500_000)
    await asyncio.sleep(1.1)
    await meter.line.call(open_call(key))
    await until(lambda: meter.parts.epochs.live_buckets == 256)
    refused = await open_session(meter.line, open_call(key, output_tokens_max=60))
    assert isinstance(refused, Refused)
    assert isinstance(await open_session(meter.line, open_call(key, output_tokens_max=1)), Admitted)
    # What the ledger charges to the old epoch uses up the key's quota once the ledger has told Redis.
    used = await admin.hget(f"k:{{b{key.bucket}}}:{key.key_id}", "used_nanos")
    settle = settle_call(before, output_tokens=7)
    for _ in range(2):
        assert isinstance(await meter.line.call(settle), Ended)
    assert settle.record.session_id in ledger.past_redis
    told = msgspec.structs.replace(key, late_nanos=settle.record.cost_nanos)
    for late_nanos in (settle.record.cost_nanos, settle.record.cost_nanos, 0):
        await meter.parts.store.configure(msgspec.structs.replace(told, late_nanos=late_nanos), epoch=2)
        now = await admin.hget(f"k:{{b{key.bucket}}}:{key.key_id}", "used_nanos")
        assert int(now) == int(used) + settle.record.cost_nanos


async def test_an_orphan_of_an_older_epoch_is_charged_to_that_epochs_loan(
    start_meter: StartMeter, ledger: FakeLedger
) -> None:
    meter = await start_meter(lease_ms=200, orphan_grace_ms=400, sweep_interval_ms=30)
    admitted = await admitted_stream(meter, ledger)
    extended = await meter.line.call(extend_call(admitted, want=0, used=9, used_nanos=9_000, seq=3))
    assert isinstance(extended, Extended)
    bucket, account = admitted.ref.bucket, admitted.ref.account_id
    await meter.parts.store.init_epochs({bucket: 7})
    ledger.epochs[bucket] = 7
    await until(lambda: ledger.posted)
    assert ledger.posted[admitted.ref.session_id].cost_nanos == 9_000
    assert ledger.escrow[account, 2] == NANOS_PER_USD - 9_000
    await until(lambda: meter.parts.metrics.orphans["settled"])
    assert await meter.parts.store.leases_over(limit=10) == []
