"""Opens through a real meter and real Redis."""

import asyncio

import msgspec
import redis.asyncio

from services.common.contracts.charging import Admitted, CountWanted, Ended, Extended, Refused, Reply
from services.common.contracts.lending import AuditRequest
from services.common.ids import new_session_id, new_uuid7
from services.common.money import NANOS_PER_USD
from tests.integration.meter.conftest import RunningMeter, StartMeter, until
from tests.integration.meter.edge_line import (
    BODY,
    EdgeLine,
    extend_call,
    open_call,
    open_session,
    release_call,
    settle_call,
)
from tests.integration.meter.fake_ledger import PRICE, FakeLedger

# The test body is 8 tokens: "hello" and the chat's frame.
INPUT_TOKENS = 8
COST_100 = (INPUT_TOKENS * PRICE.input + 100 * PRICE.output) // 1000


async def held_of(meter: RunningMeter) -> tuple[int, int]:
    """(cached sum, sum over listed sessions) of all accounts."""
    audit = await meter.parts.audit.look(AuditRequest())
    return (
        sum(one.held_nanos for one in audit.accounts),
        sum(one.listed_held_nanos for one in audit.accounts),
    )


async def test_an_open_holds_what_it_may_cost_and_a_settle_charges_what_it_did(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    account = ledger.add_account("a", 10 * NANOS_PER_USD)
    key = ledger.add_key(account)
    admitted = await open_session(meter.line, open_call(key))
    assert isinstance(admitted, Admitted)
    assert admitted.granted_output_tokens == 100
    assert admitted.upstream_output_tokens_max is None
    assert admitted.held_nanos >= COST_100
    assert await held_of(meter) == (admitted.held_nanos, admitted.held_nanos)
    settle = settle_call(admitted, output_tokens=50, input_tokens=INPUT_TOKENS)
    assert await meter.line.call(settle) == Ended(settle.seq, "settled")
    await until(lambda: ledger.posted)
    assert ledger.posted[admitted.ref.session_id].cost_nanos == settle.record.cost_nanos
    assert await held_of(meter) == (0, 0)
    assert ledger.total(account) == 10 * NANOS_PER_USD - settle.record.cost_nanos


async def test_two_hundred_parallel_opens_on_a_balance_for_three_and_a_half_admit_three(
    start_meter: StartMeter, ledger: FakeLedger
) -> None:
    meters = [await start_meter(), await start_meter()]
    account = ledger.add_account("poor", COST_100 * 7 // 2)
    key = ledger.add_key(account)
    replies = await asyncio.gather(
        *(open_session(meters[number % 2].line, open_call(key)) for number in range(200))
    )
    admitted = [reply for reply in replies if isinstance(reply, Admitted)]
    refused = [reply for reply in replies if isinstance(reply, Refused)]
    assert len(admitted) == 3
    assert {reply.code for reply in refused} == {"insufficient_quota"}
    assert "missing" in refused[0].message
    assert len(replies) == len(admitted) + len(refused)


async def test_a_balance_for_thirty_and_a_half_admits_thirty(meter: RunningMeter, ledger: FakeLedger) -> None:
    account = ledger.add_account("thirty", COST_100 * 61 // 2)
    key = ledger.add_key(account)
    replies = await asyncio.gather(*(open_session(meter.line, open_call(key)) for _ in range(200)))
    assert sum(isinstance(reply, Admitted) for reply in replies) == 30


async def test_a_rich_account_is_held_by_the_size_of_its_input_and_a_poor_one_is_counted(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    rich = ledger.add_key(ledger.add_account("rich", 100 * NANOS_PER_USD))
    admitted = await meter.line.call(open_call(rich))
    assert isinstance(admitted, Admitted)
    assert not admitted.input_exact
    assert not admitted.count_next
    poor = ledger.add_key(ledger.add_account("poor", NANOS_PER_USD))
    assert isinstance(await meter.line.call(open_call(poor)), CountWanted)
    admitted = await meter.line.call(open_call(poor, body=BODY))
    assert isinstance(admitted, Admitted)
    assert admitted.input_exact
    assert admitted.count_next
    assert admitted.input_tokens == INPUT_TOKENS


async def test_the_same_open_sent_to_a_second_meter_gets_the_same_answer_and_holds_once(
    start_meter: StartMeter, ledger: FakeLedger
) -> None:
    first, second = await start_meter(), await start_meter()
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD))
    call = open_call(key, body=BODY)
    reply = await first.line.call(call)
    assert await second.line.call(call) == reply
    assert isinstance(reply, Admitted)
    assert await held_of(first) == (reply.held_nanos, reply.held_nanos)


async def test_a_resent_settle_charges_once(start_meter: StartMeter, ledger: FakeLedger) -> None:
    first, second = await start_meter(), await start_meter()
    account = ledger.add_account("a", 10 * NANOS_PER_USD)
    admitted = await open_session(first.line, open_call(ledger.add_key(account)))
    assert isinstance(admitted, Admitted)
    settle = settle_call(admitted, output_tokens=10)
    replies = await asyncio.gather(first.line.call(settle), second.line.call(settle), first.line.call(settle))
    assert replies == [Ended(settle.seq, "settled")] * 3
    await until(lambda: ledger.posted)
    await asyncio.sleep(0.1)
    assert ledger.total(account) == 10 * NANOS_PER_USD - settle.record.cost_nanos


async def test_a_request_without_a_limit_gets_a_quarter_of_the_money_but_a_thousand_tokens_at_least(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    key = ledger.add_key(ledger.add_account("some", 4 * 3_000 * 30_000))
    admitted = await open_session(meter.line, open_call(key, output_tokens_max=None))
    assert isinstance(admitted, Admitted)
    assert 2_900 < admitted.granted_output_tokens <= 3_000
    assert admitted.upstream_output_tokens_max == admitted.granted_output_tokens
    small = ledger.add_key(ledger.add_account("small", 1_100 * 30_000))
    admitted = await open_session(meter.line, open_call(small, output_tokens_max=None))
    assert isinstance(admitted, Admitted)
    assert admitted.granted_output_tokens == 1_024
    tiny = ledger.add_key(ledger.add_account("tiny", 1_000 * 30_000))
    refused = await open_session(meter.line, open_call(tiny, output_tokens_max=None))
    assert isinstance(refused, Refused)
    assert refused.code == "insufficient_quota"


async def test_two_choices_share_the_grant_evenly(meter: RunningMeter, ledger: FakeLedger) -> None:
    key = ledger.add_key(ledger.add_account("some", 3 * 3_000 * 30_000))
    admitted = await open_session(meter.line, open_call(key, output_tokens_max=None, choices=2))
    assert isinstance(admitted, Admitted)
    assert admitted.upstream_output_tokens_max is not None
    assert admitted.granted_output_tokens == 2 * admitted.upstream_output_tokens_max


async def test_a_stream_on_a_balance_for_forty_tokens_gets_a_final_part(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    key = ledger.add_key(
        ledger.add_account("forty", (INPUT_TOKENS * PRICE.input + 40 * PRICE.output) // 1000)
    )
    admitted = await open_session(meter.line, open_call(key, stream=True, output_tokens_max=500))
    assert isinstance(admitted, Admitted)
    assert admitted.final
    assert admitted.granted_output_tokens == 40
    assert admitted.upstream_output_tokens_max is None


async def test_a_stream_that_can_not_pay_for_sixteen_tokens_is_refused(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    key = ledger.add_key(ledger.add_account("few", (INPUT_TOKENS * PRICE.input + 15 * PRICE.output) // 1000))
    refused = await open_session(meter.line, open_call(key, stream=True, output_tokens_max=500))
    assert isinstance(refused, Refused)
    assert refused.code == "insufficient_quota"


async def test_a_stream_holds_slices_and_ends_with_a_final_part(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    account = ledger.add_account("slices", 5_000 * 30_000)
    key = ledger.add_key(account)
    admitted = await open_session(meter.line, open_call(key, stream=True, output_tokens_max=10_000))
    assert isinstance(admitted, Admitted)
    assert admitted.granted_output_tokens == 2_048
    assert not admitted.final
    more = await meter.line.call(extend_call(admitted, want=3_000, seq=3))
    assert isinstance(more, Extended)
    assert (more.granted_output_tokens, more.final) == (4_096, False)
    assert await meter.line.call(extend_call(admitted, want=3_000, seq=3)) == more
    last = await meter.line.call(extend_call(admitted, want=5_000, seq=4))
    assert isinstance(last, Extended)
    assert last.final
    assert 4_990 <= last.granted_output_tokens < 5_000
    assert await held_of(meter) == (last.held_nanos, last.held_nanos)
    assert last.held_nanos <= 5_000 * 30_000
    older = await meter.line.call(extend_call(admitted, want=9_000, seq=3))
    assert isinstance(older, Extended)
    assert older.granted_output_tokens == last.granted_output_tokens


async def test_a_model_with_hidden_reasoning_holds_its_whole_bound_also_when_streamed(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    key = ledger.add_key(ledger.add_account("a", 100 * NANOS_PER_USD))
    call = open_call(key, model="thinker", stream=True, output_tokens_max=50_000)
    admitted = await open_session(meter.line, call)
    assert isinstance(admitted, Admitted)
    assert admitted.granted_output_tokens == 50_000
    capped = await open_session(
        meter.line, open_call(key, model="thinker", stream=True, output_tokens_max=None)
    )
    assert isinstance(capped, Admitted)
    assert capped.upstream_output_tokens_max is None or (
        capped.upstream_output_tokens_max == capped.granted_output_tokens < 100_000
    )


async def test_a_free_model_needs_no_loan_and_an_unpriced_one_is_unknown(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    key = ledger.add_key(ledger.add_account("broke", 0))
    admitted = await meter.line.call(open_call(key, model="free", output_tokens_max=None))
    assert isinstance(admitted, Admitted)
    assert admitted.held_nanos == 0
    assert ledger.loan_requests == []
    settle = settle_call(admitted, output_tokens=5)
    assert settle.record.cost_nanos == 0
    assert isinstance(await meter.line.call(settle), Ended)
    await until(lambda: ledger.posted)
    for model in ("unpriced", "no-such-model"):
        refused = await meter.line.call(open_call(key, model=model))
        assert isinstance(refused, Refused)
        assert refused.error == "ModelNotFound"


async def test_an_embedding_holds_its_input_only(meter: RunningMeter, ledger: FakeLedger) -> None:
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD))
    admitted = await meter.line.call(
        open_call(key, model="embedder", endpoint="embeddings", output_tokens_max=None)
    )
    assert isinstance(admitted, Admitted)
    assert admitted.granted_output_tokens == 0
    assert 0 < admitted.held_nanos < 10_000


async def test_frozen_money_is_a_503_and_not_a_missing_quota(meter: RunningMeter, ledger: FakeLedger) -> None:
    account = ledger.add_account("frozen", 100)
    ledger.frozen[account] = NANOS_PER_USD
    refused = await open_session(meter.line, open_call(ledger.add_key(account)))
    assert isinstance(refused, Refused)
    assert (refused.error, refused.code) == ("Unavailable", "balance_frozen")
    assert refused.retry_after_ms


async def test_a_released_session_gives_its_hold_back_and_a_late_open_of_it_is_refused(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD))
    admitted = await open_session(meter.line, open_call(key))
    assert isinstance(admitted, Admitted)
    session_id = admitted.ref.session_id
    assert await meter.line.call(release_call(key, session_id, 3)) == Ended(3, "released")
    assert await meter.line.call(release_call(key, session_id, 3)) == Ended(3, "released")
    assert await held_of(meter) == (0, 0)
    late = open_call(key)
    assert await meter.line.call(release_call(key, late.session_id, 2)) == Ended(2, "released")
    for call in (late, open_call(key, session_id=session_id)):
        refused = await meter.line.call(call)
        assert isinstance(refused, Refused)
        assert refused.code == "session_ended"
    assert await held_of(meter) == (0, 0)


async def test_an_open_with_an_old_id_is_refused(meter: RunningMeter, ledger: FakeLedger) -> None:
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD))
    refused = await meter.line.call(open_call(key, session_id=new_uuid7(now_ms=1_700_000_000_000)))
    assert isinstance(refused, Refused)
    assert refused.error == "Unavailable"


async def test_a_usage_above_the_hold_takes_the_rest_from_the_loan(
    meter: RunningMeter, ledger: FakeLedger, admin: redis.asyncio.Redis
) -> None:
    account = ledger.add_account("a", COST_100 + 5_000)
    admitted = await open_session(meter.line, open_call(ledger.add_key(account)))
    assert isinstance(admitted, Admitted)
    settle = settle_call(admitted, output_tokens=200)
    assert isinstance(await meter.line.call(settle), Ended)
    await until(lambda: ledger.posted)
    audit = await meter.parts.audit.look(AuditRequest())
    assert audit.accounts[0].spent_nanos == COST_100 + 5_000
    assert audit.accounts[0].held_nanos == 0


async def test_a_full_frame_of_calls_is_answered(meter: RunningMeter, ledger: FakeLedger) -> None:
    key = ledger.add_key(ledger.add_account("rich", 1_000 * NANOS_PER_USD))
    replies: list[Reply] = await meter.line.call_all([open_call(key) for _ in range(500)])
    assert all(isinstance(reply, Admitted) for reply in replies)
    cached, listed = await held_of(meter)
    assert cached == listed == sum(reply.held_nanos for reply in replies if isinstance(reply, Admitted))
    assert len(ledger.loan_requests) < 50


async def test_a_frame_that_is_none_ends_the_connection(meter: RunningMeter) -> None:
    async with EdgeLine(meter.url) as line:
        await line._socket.send_bytes(b"\xff\xff")
        await asyncio.wait_for(line._reader, 5)
        assert line._socket.close_code == 1007


async def test_counts_come_back_through_the_socket(meter: RunningMeter) -> None:
    from services.common.contracts.charging import Counted, CountInput, CountText  # noqa: PLC0415

    counted = await meter.line.call(CountInput("chat.completions", "gpt-4o", BODY))
    assert isinstance(counted, Counted)
    assert counted.tokens == (INPUT_TOKENS,)
    text = await meter.line.call(CountText("gpt-4o", ("hello world", ""), True))
    assert isinstance(text, Counted)
    assert text.tokens == (2, 0)
    assert text.consumed_chars == (11, 0)
    bad = await meter.line.call(CountInput("chat.completions", "gpt-4o", b"{"))
    assert isinstance(bad, Refused)
    assert bad.error == "BadRequest"


async def test_a_session_id_can_not_be_opened_twice_with_another_seq(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD))
    call = open_call(key, session_id=new_session_id(), body=BODY)
    assert isinstance(await meter.line.call(call), Admitted)
    again = await meter.line.call(msgspec.structs.replace(call, seq=5))
    assert isinstance(again, Refused)
    assert again.code == "session_running"


async def test_a_hold_is_covered_to_the_nano(meter: RunningMeter, ledger: FakeLedger) -> None:
    for name, missing in (("enough", 0), ("short", 1)):
        key = ledger.add_key(ledger.add_account(name, COST_100 - missing))
        reply = await open_session(meter.line, open_call(key))
        assert isinstance(reply, Refused if missing else Admitted), name
    key = ledger.add_key(ledger.add_account("stream", 3_000 * 30_000 + INPUT_TOKENS * 10_000 - 1))
    admitted = await open_session(meter.line, open_call(key, stream=True, output_tokens_max=3_000))
    assert isinstance(admitted, Admitted)
    extended = await meter.line.call(extend_call(admitted, want=3_000, seq=3))
    assert isinstance(extended, Extended)
    assert (extended.granted_output_tokens, extended.final) == (2_999, True)
