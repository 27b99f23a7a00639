"""The end of the grant, of the client, of the upstream, of the lease."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import aiohttp
import pytest

from services.common.contracts.catalogue import Channel, ChannelCredential
from services.common.contracts.charging import Extend, Open
from services.common.ids import ChannelId
from services.common.money import TokenCounts, cost_nanos
from services.meter.counting.text import count_tokens
from tests.integration.edge.conftest import Edge, StartEdge, eventually
from tests.integration.edge.meter_double import PRICE, Books, MeterDouble
from tests.integration.edge.test_plain_and_streamed import events_of, text_of


def tokens_in(events: list[Any]) -> int:
    return count_tokens("o200k_base", text_of(events))


async def settled(books: Books, response: aiohttp.ClientResponse) -> Any:
    session_id = response.headers["x-request-id"]
    await eventually(lambda: session_id in books.settled)
    return books.settled[session_id]


@pytest.mark.parametrize("chunk_tokens", [1, 3, 17])
@pytest.mark.parametrize("text", ["ascii", "chinese"])
async def test_a_stream_is_cut_at_the_grant_and_ends_properly(
    edge: Edge, books: Books, text: str, chunk_tokens: int
) -> None:
    books.account.balance_nanos = 700_000
    script = f"tokens=500 text={text} chunk_tokens={chunk_tokens}"
    async with edge.chat(script, stream=True) as response:
        events = events_of(await response.read())
    delivered = tokens_in(events)
    record = await settled(books, response)
    grant = books.granted[record.session_id]
    assert 16 < grant < 80
    assert grant - chunk_tokens < delivered <= grant
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == "insufficient_quota"
    assert events[-3]["choices"][0]["finish_reason"] == "length"
    assert (record.tokens.output, record.outcome, record.usage_source) == (
        delivered,
        "out_of_grant",
        "counted",
    )
    assert record.cost_nanos <= record.held_nanos
    assert books.account.balance_nanos >= 0


async def test_a_cut_stream_tells_its_usage_to_a_client_that_wants_it(edge: Edge, books: Books) -> None:
    books.account.balance_nanos = 700_000
    script = "tokens=500 delay_ms=2"
    async with edge.chat(script, stream=True, stream_options={"include_usage": True}) as response:
        events = events_of(await response.read())
    (row,) = await edge.emissions()
    assert row["client_disconnected"] is True
    record = await settled(books, response)
    assert events[-3]["usage"]["completion_tokens"] == record.tokens.output == tokens_in(events)


async def test_every_choice_of_a_cut_stream_gets_a_finish_reason(edge: Edge, books: Books) -> None:
    books.account.balance_nanos = 900_000
    async with edge.chat("tokens=500", stream=True, n=2) as response:
        events = events_of(await response.read())
    ends = [choice for event in events[:-2] for choice in event["choices"] if choice["finish_reason"]]
    assert [(end["index"], end["finish_reason"]) for end in ends] == [(0, "length"), (1, "length")]
    record = await settled(books, response)
    assert record.tokens.output <= books.granted[record.session_id]


async def test_an_upstream_that_ignores_max_tokens_is_cut_at_the_hold(edge: Edge, books: Books) -> None:
    async with edge.chat("tokens=400 ignore_max_tokens", stream=True, max_tokens=30) as response:
        events = events_of(await response.read())
    assert tokens_in(events) == 30
    record = await settled(books, response)
    assert record.tokens.output == 30


async def test_nothing_is_cut_when_the_answer_fits_its_limit_exactly(edge: Edge, books: Books) -> None:
    async with edge.chat("tokens=200", stream=True, max_tokens=200) as response:
        events = events_of(await response.read())
    assert tokens_in(events) == 200
    assert all("error" not in event for event in events[:-1])
    assert (await settled(books, response)).outcome == "complete"


async def test_a_client_that_leaves_is_charged_what_was_read_and_its_upstream_closed(
    edge: Edge, books: Books
) -> None:
    response = await edge.chat("tokens=500 delay_ms=20", stream=True)
    read = b""
    while read.count(b"data: ") < 10:
        read += await response.content.readany()
    left_at = time.time()
    response.close()
    (row,) = await edge.emissions()
    assert row["client_disconnected"] is True
    assert row["disconnected_at_ms"] / 1000 - left_at < 1
    record = await settled(books, response)
    assert record.outcome == "client_gone"
    assert 8 <= record.tokens.output <= row["tokens_total"] < 100
    assert record.tokens.input > 0
    tokens = TokenCounts(input=record.tokens.input, output=record.tokens.output)
    assert record.cost_nanos == cost_nanos(tokens, PRICE, 1_000_000)


async def test_a_client_that_leaves_a_plain_call_pays_nothing(edge: Edge, books: Books) -> None:
    request = asyncio.create_task(edge.chat("tokens=500 first_delay_ms=5000").__aenter__())
    await eventually(lambda: len(books.account.held) == 1)
    await asyncio.sleep(0.1)
    request.cancel()
    (row,) = await edge.emissions()
    assert row["client_disconnected"] is True
    await eventually(lambda: len(books.released) == 1)
    assert not books.account.held
    assert not books.settled


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("status:500", 502, "upstream_error"),
        ("status:429", 429, "upstream_rate_limited"),
        ("garbage", 502, "upstream_error"),
        ("close_before", 502, "upstream_error"),
    ],
)
async def test_an_upstream_that_fails_before_its_answer_costs_nothing(
    edge: Edge, books: Books, fault: str, status: int, code: str
) -> None:
    for stream in (False, True):
        async with edge.chat(f"fault={fault}", stream=stream) as response:
            error = (await response.json())["error"]
        assert response.status == status
        assert error["code"] in (code, "upstream_unavailable", "upstream_timeout")
        assert set(error) == {"message", "type", "param", "code"}
    await eventually(lambda: len(books.released) == 2)
    assert not books.account.held
    assert not books.settled


async def test_what_the_upstream_says_of_a_bad_request_is_passed_on(edge: Edge, books: Books) -> None:
    async with edge.chat("fault=status:400", stream=True) as response:
        body = await response.json()
    assert response.status == 400
    assert "told to fail" in body["error"]["message"]
    await eventually(lambda: len(books.released) == 1)


@pytest.mark.parametrize("fault", ["close_after:20", "end_after:20"])
async def test_an_upstream_that_dies_mid_stream_is_reported_and_its_output_charged(
    edge: Edge, books: Books, fault: str
) -> None:
    async with edge.chat(f"tokens=100 fault={fault}", stream=True) as response:
        events = events_of(await response.read())
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == "upstream_error"
    record = await settled(books, response)
    assert (record.outcome, record.tokens.output) == ("upstream_failed", tokens_in(events))
    assert record.tokens.output > 10


async def test_an_error_event_ends_the_stream_and_its_words_stay_with_us(edge: Edge, books: Books) -> None:
    async with edge.chat("tokens=100 fault=error_event_after:20:silence", stream=True) as response:
        events = events_of(await response.read())
    assert events[-1] == "[DONE]"
    error = events[-2]["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "upstream_error"
    assert "What was delivered is charged" in error["message"]
    record = await settled(books, response)
    assert (record.outcome, record.tokens.output) == ("upstream_failed", 20)


async def test_a_stream_outlives_many_leases_while_they_are_renewed(
    edge: Edge, books: Books, meter: MeterDouble
) -> None:
    meter.lease_ms = 400
    async with edge.chat("tokens=30 delay_ms=50", stream=True) as response:
        events = events_of(await response.read())
    assert tokens_in(events) == 30
    assert sum(isinstance(call, Extend) for call in books.calls) >= 4
    assert (await settled(books, response)).outcome == "complete"


@pytest.mark.parametrize("script", ["tokens=300 delay_ms=20", "tokens=5 fault=hang_after:3"])
async def test_nothing_is_delivered_past_the_lease(
    edge: Edge, books: Books, meter: MeterDouble, script: str
) -> None:
    meter.lease_ms = 500
    meter.silent_for = (Extend,)
    started = time.monotonic()
    async with edge.chat(script, stream=True) as response:
        events = events_of(await response.read())
    assert 0.3 < time.monotonic() - started < 1.5
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == "service_unavailable"
    record = await settled(books, response)
    assert (record.outcome, record.tokens.output) == ("out_of_grant", tokens_in(events))


async def test_a_plain_call_whose_lease_is_lost_gets_503_and_costs_nothing(
    edge: Edge, books: Books, meter: MeterDouble
) -> None:
    meter.lease_ms = 400
    meter.silent_for = (Extend,)
    async with edge.chat("tokens=10 first_delay_ms=3000") as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "service_unavailable"
    await eventually(lambda: len(books.released) == 1)


async def test_a_disabled_key_ends_its_running_stream_at_the_next_extend(
    edge: Edge, books: Books, meter: MeterDouble
) -> None:
    meter.lease_ms = 400
    meter.ended = "key_disabled"
    async with edge.chat("tokens=300 delay_ms=20", stream=True) as response:
        events = events_of(await response.read())
    assert events[-2]["error"]["code"] == "key_disabled"
    assert (await settled(books, response)).tokens.output == tokens_in(events)


async def test_with_a_stale_epoch_a_stream_lives_on_in_its_own_hold(
    edge: Edge, books: Books, meter: MeterDouble
) -> None:
    books.account.balance_nanos = 60_000_000
    meter.slice_tokens = 200
    meter.ended = "stale_epoch"
    async with edge.chat("tokens=600", stream=True) as response:
        events = events_of(await response.read())
    assert tokens_in(events) == 200
    assert events[-2]["error"]["code"] == "insufficient_quota"


async def test_a_silent_stream_is_kept_alive_before_and_between_its_events(start_edge: StartEdge) -> None:
    edge = await start_edge(keep_alive_ms=100)
    async with edge.chat("tokens=2 delay_ms=450 fault=slow_headers:3", stream=True) as response:
        body = await response.read()
    assert body.startswith(b": keep-alive\n\n")
    assert body.count(b": keep-alive\n\n") >= 3
    assert events_of(body)[-1] == "[DONE]"


async def test_an_error_after_early_headers_becomes_an_event(start_edge: StartEdge, books: Books) -> None:
    dead = socket.socket()
    dead.bind(("127.0.0.1", 0))
    dead.listen(1)
    channel = Channel(
        id=ChannelId("chan_dead"),
        name="dead",
        base_url=f"http://127.0.0.1:{dead.getsockname()[1]}/v1",
        credentials=(ChannelCredential(id="one", secret="sk-upstream"),),
        first_byte_timeout_ms=600,
    )
    edge = await start_edge(keep_alive_ms=100, channels=(channel,))
    async with edge.chat("tokens=2", stream=True) as response:
        assert response.status == 200
        events = events_of(await response.read())
    dead.close()
    assert events[-1] == "[DONE]"
    assert "error" in events[0]
    await eventually(lambda: len(books.released) == 1)


async def test_a_slow_reader_slows_its_own_upstream_only(edge: Edge, books: Books) -> None:
    response = await edge.chat("tokens=60000 padding_bytes=10", stream=True, max_tokens=60_000)
    sent_tokens = [-2, -1]
    for _look in range(10):
        if sent_tokens[-1] == sent_tokens[-2]:
            break
        await asyncio.sleep(1)
        async with edge.client.get(f"{edge.upstream_url}/emulator/open") as open_answers:
            (answer,) = (await open_answers.json())["answers"]
        sent_tokens.append(answer["tokens"][0])
    # The kernel's buffers take a part of it; then the upstream stands still.
    assert sent_tokens[-1] == sent_tokens[-2] < 50_000
    async with edge.chat("tokens=20", stream=True) as other:
        assert events_of(await other.read())[-1] == "[DONE]"
    response.close()
    record = await settled(books, response)
    assert record.outcome == "client_gone"
    assert sum(isinstance(call, Open) for call in books.calls) == 2


async def test_a_client_that_takes_nothing_for_too_long_counts_as_gone(
    start_edge: StartEdge, books: Books
) -> None:
    edge = await start_edge(stall_timeout_ms=1_000, keep_alive_ms=200)
    response = await edge.chat("tokens=100000", stream=True, max_tokens=100_000)
    await eventually(lambda: bool(books.settled), seconds=5)
    (record,) = books.settled.values()
    assert record.outcome == "client_gone"
    response.close()
