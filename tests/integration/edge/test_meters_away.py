"""Meters that are away, silent, replaced; and what the edge owes them afterwards."""

from __future__ import annotations

import asyncio
import time

from services.common.contracts.charging import CountText, Open, Release, Settle
from services.common.ids import bucket_of
from services.edge.app import drain
from tests.integration.edge.conftest import StartEdge, eventually
from tests.integration.edge.meter_double import Books, MeterDouble
from tests.integration.edge.test_plain_and_streamed import events_of


async def test_without_a_meter_a_request_gets_503_within_two_seconds(start_edge: StartEdge) -> None:
    edge = await start_edge(meter_urls=("http://127.0.0.1:9",))
    started = time.monotonic()
    async with edge.chat() as response:
        body = await response.json()
    assert time.monotonic() - started < 2.5
    assert response.status == 503
    assert int(response.headers["retry-after"]) >= 1
    assert body["error"]["code"] == "service_unavailable"
    async with edge.client.get(f"{edge.internal_url}/readyz") as response:
        assert response.status == 503


async def test_an_open_without_an_answer_is_released_until_that_is_acknowledged(
    start_edge: StartEdge, books: Books, meter: MeterDouble
) -> None:
    edge = await start_edge(open_timeout_ms=300)
    meter.silent_for = (Open, Release)
    async with edge.chat() as response:
        assert response.status == 503
    assert books.account.held or books.released
    await asyncio.sleep(0.1)
    assert edge.parts.end_queue.size == 1
    await meter.stop()
    meter.silent_for = ()
    await meter.start(int(meter.url.rsplit(":", 1)[1]))
    await eventually(lambda: edge.parts.end_queue.size == 0)
    assert books.released
    assert not books.account.held


async def test_an_unanswered_call_is_sent_again_to_another_meter(
    start_edge: StartEdge, books: Books, meter: MeterDouble
) -> None:
    other = MeterDouble(books)
    await other.start()
    edge = await start_edge(meter_urls=(meter.url, other.url), open_timeout_ms=5_000)
    await eventually(lambda: edge.parts.meter.connected_meters == 2)
    link = edge.parts.meter._link_of_bucket[bucket_of("acct_test")]
    assert link is not None
    chosen = meter if link.url == meter.url else other
    chosen.silent_for = (Open,)
    request = asyncio.create_task(edge.chat("tokens=5").__aenter__())
    await eventually(lambda: any(isinstance(call, Open) for call in books.calls))
    await chosen.stop()
    response = await request
    assert response.status == 200
    opens = [call for call in books.calls if isinstance(call, Open)]
    assert len(opens) == 2
    assert opens[0] == opens[1]
    await eventually(lambda: len(books.settled) == 1)
    await other.stop()


async def test_a_settle_waits_for_a_meter_to_come_back(
    start_edge: StartEdge, books: Books, meter: MeterDouble
) -> None:
    edge = await start_edge()
    meter.silent_for = (Settle,)
    async with edge.chat("tokens=5") as response:
        assert response.status == 200
    await meter.stop()
    books.settled.clear()
    books.answers.clear()
    assert edge.parts.end_queue.size == 1
    meter.silent_for = ()
    await meter.start(int(meter.url.rsplit(":", 1)[1]))
    await eventually(lambda: edge.parts.end_queue.size == 0)
    assert len(books.settled) == 1


async def test_a_stream_waits_inside_its_lease_for_a_meter_that_comes_back(
    start_edge: StartEdge, books: Books, meter: MeterDouble
) -> None:
    books.account.balance_nanos = 60_000_000
    meter.slice_tokens = 100
    meter.silent_for = (CountText,)
    edge = await start_edge()
    async with edge.chat("tokens=300", stream=True) as response:
        await response.content.readany()
        await meter.stop()
        meter.silent_for = ()
        await asyncio.sleep(0.3)
        await meter.start(int(meter.url.rsplit(":", 1)[1]))
        events = events_of(b"data: {}\n\n" + await response.read())
    assert events[-1] == "[DONE]"
    await eventually(lambda: len(books.settled) == 1)
    assert next(iter(books.settled.values())).tokens.output == 300


async def test_a_meter_that_wants_to_count_gets_the_body(
    start_edge: StartEdge, books: Books, meter: MeterDouble
) -> None:
    meter.count_wanted = True
    edge = await start_edge()
    async with edge.chat("tokens=5") as response:
        assert response.status == 200
    first, second = (call for call in books.calls if isinstance(call, Open))
    assert (first.body, first.seq, second.seq) == (None, 1, 2)
    assert second.body is not None
    await eventually(lambda: len(books.settled) == 1)


async def test_one_session_too_many_gets_503(start_edge: StartEdge) -> None:
    edge = await start_edge(sessions_max=1)
    async with edge.chat("tokens=50 delay_ms=20", stream=True) as response:
        await response.content.readany()
        async with edge.chat() as refused:
            assert refused.status == 503
            assert refused.headers["x-request-id"]
        await response.read()


async def test_draining_lets_streams_finish_and_settles_everything(
    start_edge: StartEdge, books: Books
) -> None:
    edge = await start_edge()
    async with edge.chat("tokens=20 delay_ms=20", stream=True) as response:
        await response.content.readany()
        draining = asyncio.create_task(drain(edge.parts))
        await asyncio.sleep(0)
        async with edge.chat("tokens=1") as other:
            assert other.headers["connection"] == "close"
            await other.read()
        assert events_of(b"data: {}\n\n" + await response.read())[-1] == "[DONE]"
    await asyncio.wait_for(draining, 2)
    assert len(books.settled) == 2
