"""What a client gets and what is charged when all goes well."""

from __future__ import annotations

import json
from typing import Any

from services.common.money import cost_nanos, nanos_to_usd
from services.edge.dialects.usage import read_usage
from tests.integration.edge.conftest import API_KEY, MODEL, Edge, StartEdge, eventually
from tests.integration.edge.meter_double import PRICE, Books, MeterDouble


def cost_of(usage: dict[str, Any]) -> int:
    facts = read_usage(json.dumps(usage).encode())
    assert facts is not None
    return cost_nanos(facts.tokens, PRICE, 1_000_000)


def events_of(body: bytes) -> list[Any]:
    """Each event's data: parsed, or the text `[DONE]`."""
    events = []
    for block in body.decode().split("\n\n"):
        for line in block.split("\n"):
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                events.append(data if data == "[DONE]" else json.loads(data))
    return events


def text_of(events: list[Any]) -> str:
    return "".join(
        choice.get("delta", {}).get("content") or ""
        for event in events
        if isinstance(event, dict)
        for choice in event.get("choices", ())
    )


async def test_a_plain_reply_is_passed_on_and_charged_by_the_upstreams_usage(
    edge: Edge, books: Books
) -> None:
    async with edge.chat("tokens=20") as response:
        body = await response.json()
    assert response.status == 200
    cost = cost_of(body["usage"])
    assert cost > 0
    assert response.headers["x-meterway-cost-usd"] == nanos_to_usd(cost)
    assert response.headers["x-meterway-balance-usd"] == "100.00"
    session_id = response.headers["x-request-id"]
    await eventually(lambda: session_id in books.settled)
    record = books.settled[session_id]
    assert (record.cost_nanos, record.outcome, record.usage_source) == (cost, "complete", "upstream")
    assert (record.model, record.price_version, record.edge_id) == (MODEL, 7, "edge-test")
    assert record.channel_id == "chan_emulator"
    assert not books.account.held


async def test_a_stream_is_passed_on_and_its_usage_chunk_removed(edge: Edge, books: Books) -> None:
    async with edge.chat("tokens=50", stream=True) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        events = events_of(await response.read())
    assert events[-1] == "[DONE]"
    assert all("usage" not in event or event["usage"] is None for event in events[:-1])
    (row,) = await edge.emissions()
    assert row["include_usage"] is True
    assert len(text_of(events).encode()) == row["text_bytes"]
    session_id = response.headers["x-request-id"]
    await eventually(lambda: session_id in books.settled)
    assert books.settled[session_id].cost_nanos == cost_of(row["usage"])
    assert books.settled[session_id].tokens.output == 50


async def test_a_stream_that_asks_for_usage_gets_it_with_the_cost(edge: Edge, books: Books) -> None:
    async with edge.chat("tokens=10", stream=True, stream_options={"include_usage": True}) as response:
        events = events_of(await response.read())
    usage = events[-2]["usage"]
    session_id = response.headers["x-request-id"]
    await eventually(lambda: session_id in books.settled)
    assert f"{usage['cost_usd']:.9f}" == f"{books.settled[session_id].cost_nanos / 1e9:.9f}"
    assert usage["completion_tokens"] == 10


async def test_without_usage_the_whole_text_is_counted_and_flagged(edge: Edge, books: Books) -> None:
    for stream in (True, False):
        async with edge.chat("tokens=33 usage=none", stream=stream) as response:
            await response.read()
        session_id = response.headers["x-request-id"]
        await eventually(lambda session_id=session_id: session_id in books.settled)
        record = books.settled[session_id]
        assert (record.tokens.output, record.usage_source) == (33, "counted")
        assert record.flags == ("usage_missing",)


async def test_a_sample_is_counted_beside_the_upstreams_usage(start_edge: StartEdge, books: Books) -> None:
    edge = await start_edge(audit_ppm=1_000_000)
    for script, wrong in (("tokens=90", False), ("tokens=90 usage=less:40", True)):
        for stream in (True, False):
            async with edge.chat(script, stream=stream) as response:
                await response.read()
            session_id = response.headers["x-request-id"]
            await eventually(lambda session_id=session_id: session_id in books.settled)
            record = books.settled[session_id]
            assert record.usage_source == "upstream"
            assert record.tokens.output == (50 if wrong else 90)
            assert record.flags[-1 - wrong].startswith("counted:")
            assert record.flags[-1 - wrong].endswith(":90")
            assert ("usage_below_count" in record.flags) is wrong


async def test_a_client_that_wants_usage_gets_ours_when_the_upstream_has_none(edge: Edge) -> None:
    async with edge.chat(
        "tokens=12 usage=none", stream=True, stream_options={"include_usage": True}
    ) as response:
        events = events_of(await response.read())
    assert events[-1] == "[DONE]"
    assert events[-2]["usage"]["completion_tokens"] == 12


async def test_a_stream_without_done_gets_one(edge: Edge, books: Books) -> None:
    async with edge.chat("tokens=5 no_done", stream=True) as response:
        events = events_of(await response.read())
    assert events[-1] == "[DONE]"
    await eventually(lambda: response.headers["x-request-id"] in books.settled)
    assert books.settled[response.headers["x-request-id"]].outcome == "complete"


async def test_a_long_stream_holds_slice_after_slice(edge: Edge, books: Books, meter: MeterDouble) -> None:
    books.account.balance_nanos = 60_000_000
    meter.slice_tokens = 100
    async with edge.chat("tokens=1500", stream=True) as response:
        events = events_of(await response.read())
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    await eventually(lambda: response.headers["x-request-id"] in books.settled)
    assert books.settled[response.headers["x-request-id"]].tokens.output == 1500


async def test_embeddings_and_other_endpoints_are_charged_by_input(edge: Edge, books: Books) -> None:
    body = {"model": "text-embedding-3-small", "input": "What is a hold?"}
    async with edge.client.post(f"{edge.url}/v1/embeddings", json=body) as response:
        assert response.status == 200
        usage = (await response.json())["usage"]
    await eventually(lambda: response.headers["x-request-id"] in books.settled)
    assert books.settled[response.headers["x-request-id"]].tokens.input == usage["prompt_tokens"]


async def test_models_are_listed_with_price_and_only_those_the_key_may_use(edge: Edge, books: Books) -> None:
    async with edge.client.get(f"{edge.url}/v1/models") as response:
        models = {model["id"]: model for model in (await response.json())["data"]}
    assert models[MODEL]["pricing"]["input"] == "2.5"
    assert models[MODEL]["context_window"] == 128_000
    async with edge.client.get(f"{edge.url}/v1/models/org%2Fmodel") as response:
        assert (await response.json())["id"] == "org/model"
    books.add_key("sk-one-model", models=(MODEL,))
    headers = {"Authorization": "Bearer sk-one-model"}
    async with edge.client.get(f"{edge.url}/v1/models", headers=headers) as response:
        assert [model["id"] for model in (await response.json())["data"]] == [MODEL]
    async with edge.client.get(f"{edge.url}/v1/models/org/model", headers=headers) as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "model_not_found"


async def test_a_key_may_come_as_any_of_the_usual_headers(edge: Edge) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    for headers in ({"Authorization": f"bearer {API_KEY}"}, {"x-api-key": API_KEY}, {"api-key": API_KEY}):
        url = f"{edge.url}/v1/chat/completions"
        async with edge.client.post(url, json=body, headers=headers) as response:
            assert response.status == 200


async def test_metrics_and_readiness_are_served(edge: Edge) -> None:
    async with edge.chat("tokens=5") as response:
        await response.read()
    await eventually(lambda: edge.parts.end_queue.size == 0)
    async with edge.client.get(f"{edge.internal_url}/readyz") as response:
        assert response.status == 200
    async with edge.client.get(f"{edge.internal_url}/metrics") as response:
        text = await response.text()
    assert (
        'meterway_edge_requests_total{endpoint="chat.completions",outcome="complete",status="2xx"} 1.0'
        in text
    )
    assert 'meterway_edge_tokens_total{token_class="output"} 5.0' in text
