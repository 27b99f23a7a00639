"""The edge's log in the story of a request: kept until the ledger has it, full, promised away."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from services.common.contracts.charging import Extend, Release, Settle
from services.common.contracts.recovery import Promise, RollCall
from services.common.ids import bucket_of
from services.edge import log_keeper
from tests.integration.edge.conftest import Edge, StartEdge, eventually
from tests.integration.edge.meter_double import Books, MeterDouble

BUCKET = bucket_of("acct_test")


@pytest.fixture
def quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_keeper, "ROUND_S", 0.05)
    monkeypatch.setattr(log_keeper, "SETTLED_FOR_S", 0.0)


async def _roll_call(edge: Edge, epoch: int) -> Promise:
    async with edge.client.post(
        f"{edge.internal_url}/internal/v1/roll_call",
        data=msgspec.json.encode(RollCall({BUCKET: epoch})),
        headers={"Authorization": "Bearer internal"},
    ) as response:
        assert response.status == 200, await response.text()
        return msgspec.json.decode(await response.read(), type=Promise)


async def _run_streams(edge: Edge, count: int, script: str) -> list[Any]:
    return [await edge.chat(script, stream=True).__aenter__() for _ in range(count)]


async def test_a_session_leaves_the_log_only_when_the_ledger_has_it(
    edge: Edge, books: Books, quick_rounds: None
) -> None:
    async with edge.chat("tokens=5") as response:
        assert response.status == 200
    await eventually(lambda: len(books.settled) == 1)
    await asyncio.sleep(0.3)
    assert len(edge.parts.log) == 1
    edge.ledger.posted |= set(books.settled)
    await eventually(lambda: len(edge.parts.log) == 0, 4)


async def test_a_settled_session_that_never_reaches_the_ledger_is_told_from_the_log(
    start_edge: StartEdge, books: Books, quick_rounds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_keeper, "LOST_S", 0.2)
    edge = await start_edge()
    async with edge.chat("tokens=5") as response:
        assert response.status == 200
    await eventually(lambda: bool(edge.ledger.recovered))
    ((entry,),) = [told.charged for told in edge.ledger.recovered]
    assert entry.record == books.settled[entry.record.session_id]
    assert entry.loan_nanos == entry.record.cost_nanos
    await eventually(lambda: len(edge.parts.log) == 0)


async def test_a_released_session_leaves_the_log(edge: Edge, books: Books) -> None:
    async with edge.chat("status=400 tokens=5") as response:
        assert response.status == 400
    await eventually(lambda: bool(books.released))
    await eventually(lambda: len(edge.parts.log) == 0)


async def test_a_full_log_refuses_before_anything_goes_upstream(start_edge: StartEdge, books: Books) -> None:
    edge = await start_edge(log_bytes_max=1024 * 1024, log_segment_bytes=64 * 1024)
    responses: list[Any] = []
    refused = None
    for _ in range(200):
        response = await edge.chat("tokens=500 delay_ms=50", stream=True).__aenter__()
        if response.status != 200:
            refused = response
            break
        responses.append(response)
    assert refused is not None
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert (await refused.json())["error"]["code"] == "service_unavailable"
    session_id = refused.headers["x-request-id"]
    await eventually(lambda: session_id in books.released)
    async with edge.client.get(f"{edge.upstream_url}/emulator/open") as open_answers:
        assert len((await open_answers.json())["answers"]) == len(responses)
    async with edge.client.get(f"{edge.internal_url}/readyz") as ready:
        assert (await ready.json())["checks"]["log"] is False
    # What runs goes on inside its hold.
    assert b'"content"' in await responses[0].content.readuntil(b'"content"')
    for response in responses:
        response.close()


async def test_a_promise_lists_what_is_open_and_refuses_late_admissions(edge: Edge, books: Books) -> None:
    (running,) = await _run_streams(edge, 1, "tokens=40 delay_ms=10")
    promise = await _roll_call(edge, 2)
    assert promise.edge_id == "edge-test"
    assert promise.incarnation == edge.ledger.registrations[0]["incarnation"]
    assert promise.epochs == {BUCKET: 2}
    (session,) = promise.sessions
    assert session.session_id == running.headers["x-request-id"]
    assert session.held_nanos == books.account.held[session.session_id]
    assert (session.epoch, session.bucket) == (1, BUCKET)
    # The meter's double still admits in epoch 1.
    async with edge.chat("tokens=5") as refused:
        assert refused.status == 503
    await eventually(lambda: refused.headers["x-request-id"] in books.released)
    assert (await running.read()).rstrip().endswith(b"data: [DONE]")
    await eventually(lambda: session.session_id in books.settled)
    assert len(await edge.emissions()) == 1
    assert [one.session_id for one in (await _roll_call(edge, 2)).sessions] == [session.session_id]


async def test_a_promise_ends_the_growth_of_a_running_hold(
    edge: Edge, books: Books, meter: MeterDouble
) -> None:
    meter.slice_tokens = 200
    books.account.balance_nanos = 1_000_000_000
    response = await edge.chat("tokens=3000 delay_ms=2", stream=True, max_tokens=90_000).__aenter__()
    await _roll_call(edge, 2)
    granted_at_first = [call for call in books.calls if isinstance(call, Extend)]
    raw = await response.read()
    assert b'"finish_reason":"length"' in raw.replace(b" ", b"")
    await eventually(lambda: len(books.settled) == 1)
    (record,) = books.settled.values()
    assert record.outcome == "out_of_grant"
    assert len([call for call in books.calls if isinstance(call, Extend)]) <= len(granted_at_first) + 1
    assert record.cost_nanos <= record.held_nanos


async def test_a_roll_call_needs_the_internal_credential(edge: Edge) -> None:
    async with edge.client.post(f"{edge.internal_url}/internal/v1/roll_call", data=b"{}") as response:
        assert response.status == 401


async def test_a_promise_outlives_the_process(start_edge: StartEdge, books: Books) -> None:
    first = await start_edge()
    await _roll_call(first, 2)
    second = await start_edge()
    async with second.chat("tokens=5") as refused:
        assert refused.status == 503
    assert not [call for call in books.calls if isinstance(call, Settle)]
    await eventually(lambda: any(isinstance(call, Release) for call in books.calls))
