"""Completions, embeddings and moderations through an edge."""

from __future__ import annotations

import base64
from typing import Any

import aiohttp
import pytest

from services.common.money import PriceVector, TokenCounts, cost_nanos
from services.meter.counting.text import count_tokens
from tests.integration.edge.conftest import Edge, eventually
from tests.integration.edge.meter_double import PRICE, Books, MeterDouble
from tests.integration.edge.test_plain_and_streamed import cost_of, events_of

MODEL = "davinci-002"


def complete(edge: Edge, script: str, **fields: Any) -> Any:
    body = {"model": MODEL, "prompt": f"Once [[emulate {script}]]", **fields}
    return edge.client.post(f"{edge.url}/v1/completions", json=body)


def text_of(events: list[Any]) -> str:
    chunks = (event for event in events if isinstance(event, dict))
    return "".join(choice["text"] for chunk in chunks for choice in chunk.get("choices", ()))


async def settled(books: Books, response: aiohttp.ClientResponse) -> Any:
    session_id = response.headers["x-request-id"]
    await eventually(lambda: session_id in books.settled)
    return books.settled[session_id]


async def test_a_plain_completion_is_charged_by_its_usage(edge: Edge, books: Books) -> None:
    async with complete(edge, "tokens=20", max_tokens=50) as response:
        body = await response.json()
    assert body["object"] == "text_completion"
    record = await settled(books, response)
    assert (record.endpoint, record.cost_nanos) == ("completions", cost_of(body["usage"]))
    assert record.tokens.output == 20


async def test_a_streamed_completion_is_passed_on_and_charged(edge: Edge, books: Books) -> None:
    async with complete(edge, "tokens=40", stream=True) as response:
        events = events_of(await response.read())
    assert events[-1] == "[DONE]"
    [row] = await edge.emissions()
    assert (row["path"], row["include_usage"]) == ("/v1/completions", True)
    assert len(text_of(events).encode()) == row["text_bytes"]
    record = await settled(books, response)
    assert record.cost_nanos == cost_of(row["usage"])


@pytest.mark.parametrize("prompts", [1, 3])
async def test_a_streamed_completion_is_cut_at_the_grant(edge: Edge, books: Books, prompts: int) -> None:
    books.account.balance_nanos = 700_000
    prompt = ["Once [[emulate tokens=500]]"] * prompts
    async with complete(edge, "", prompt=prompt, stream=True) as response:
        events = events_of(await response.read())
    delivered = count_tokens("o200k_base", text_of(events))
    record = await settled(books, response)
    grant = books.granted[record.session_id]
    assert 16 < grant < 80
    assert grant - prompts < delivered <= grant
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == "insufficient_quota"
    ends = [choice for event in events[:-2] for choice in event["choices"] if choice["finish_reason"]]
    assert {end["finish_reason"] for end in ends} == {"length"}
    assert (record.outcome, record.tokens.output) == ("out_of_grant", delivered)
    assert books.account.balance_nanos >= 0


async def test_without_usage_a_completion_is_counted(edge: Edge, books: Books) -> None:
    for stream in (True, False):
        async with complete(edge, "tokens=33 usage=none", stream=stream) as response:
            await response.read()
        record = await settled(books, response)
        assert (record.tokens.output, record.usage_source) == (33, "counted")


@pytest.mark.parametrize("form", ["base64", "float"])
async def test_embeddings_pass_as_they_are(edge: Edge, books: Books, form: str) -> None:
    body = {"model": "text-embedding-3-small", "input": ["What is", "a hold?"], "encoding_format": form}
    async with edge.client.post(f"{edge.url}/v1/embeddings", json=body) as response:
        through = await response.read()
        document = await response.json()
    async with edge.client.post(f"{edge.upstream_url}/v1/embeddings", json=body) as direct:
        assert through == await direct.read()
    assert len(document["data"]) == 2
    vector = document["data"][0]["embedding"]
    assert (len(base64.b64decode(vector)) % 4 == 0) if form == "base64" else isinstance(vector[0], float)
    record = await settled(books, response)
    tokens = TokenCounts(input=document["usage"]["prompt_tokens"])
    assert (record.tokens, record.cost_nanos) == (tokens, cost_nanos(tokens, PRICE, 1_000_000))
    assert response.headers["x-meterway-cost-usd"]


async def test_embeddings_hold_nothing_for_an_output(edge: Edge, books: Books) -> None:
    books.account.balance_nanos = 200_000
    body = {"model": "text-embedding-3-small", "input": "What is a hold?"}
    async with edge.client.post(f"{edge.url}/v1/embeddings", json=body) as response:
        assert response.status == 200
    assert books.granted[response.headers["x-request-id"]] == 0


@pytest.mark.parametrize("model", [None, "omni-moderation-latest"])
async def test_moderations_are_free_and_leave_a_row(
    edge: Edge, books: Books, meter: MeterDouble, model: str | None
) -> None:
    meter.price = PriceVector()
    books.account.balance_nanos = 0
    body = {"input": "I like holds."} | ({"model": model} if model else {})
    async with edge.client.post(f"{edge.url}/v1/moderations", json=body) as response:
        assert response.status == 200
        assert (await response.json())["results"][0]["flagged"] is False
    record = await settled(books, response)
    assert (record.endpoint, record.model) == ("moderations", "omni-moderation-latest")
    assert (record.cost_nanos, record.tokens.output, record.outcome) == (0, 0, "complete")
    assert response.headers["x-meterway-cost-usd"] == "0.00"
    assert books.account.balance_nanos == 0


async def test_an_upstreams_error_reaches_the_client_and_costs_nothing(edge: Edge, books: Books) -> None:
    for path, body in (
        ("embeddings", {"model": "text-embedding-3-small", "input": "x"}),
        ("completions", {"model": MODEL, "prompt": "x"}),
    ):
        headers = {"x-emulate": "fault=status:400"}
        async with edge.client.put(f"{edge.upstream_url}/emulator/faults", json={"fault": "status:400"}):
            pass
        async with edge.client.post(f"{edge.url}/v1/{path}", json=body, headers=headers) as response:
            assert response.status == 400
            assert (await response.json())["error"]
    await eventually(lambda: not books.account.held)
    assert not books.settled
