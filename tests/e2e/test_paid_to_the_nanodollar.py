"""A completion costs exactly tokens x price, and the books show it."""

import time

import aiohttp
import pytest

from tests.e2e.stack import Customer, Emulator, Stack, chat

# Seed list prices of gpt-4o-mini in nanodollars per token.
INPUT_NANOS, OUTPUT_NANOS = 150, 600
USD = 1_000_000_000


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_the_balance_falls_by_exactly_tokens_times_price(
    stack: Stack, http: aiohttp.ClientSession, *, stream: bool
) -> None:
    customer = stack.new_customer("1")
    body = chat("Tell me about prepaid gateways. [[emulate tokens=100]]", max_tokens=200)
    usage = await _usage_of(customer, http, body, stream=stream)
    cost = usage["prompt_tokens"] * INPUT_NANOS + usage["completion_tokens"] * OUTPUT_NANOS

    balance = await customer.settled(sessions=1)
    assert balance["balance_nanos"] == balance["available_nanos"] == USD - cost
    (row,) = customer.usage()
    assert row["cost_nanos"] == cost
    assert row["model"] == "gpt-4o-mini"
    assert row["price_version"] == 1
    assert row["tokens"]["input"] == usage["prompt_tokens"]
    assert row["tokens"]["output"] == usage["completion_tokens"]
    assert stack.cli("reconcile")["differences"] == []


async def _usage_of(
    customer: Customer, http: aiohttp.ClientSession, body: dict[str, object], *, stream: bool
) -> dict[str, int]:
    if stream:
        answer = await customer.stream(http, body | {"stream_options": {"include_usage": True}})
        assert answer.status == 200
        assert answer.events[-1] == "[DONE]"
        (usage,) = [chunk["usage"] for chunk in answer.chunks if chunk.get("usage")]
        assert answer.chunks[-1]["choices"] == []
        return usage
    async with customer.post(http, body) as plain:
        assert plain.status == 200
        document = await plain.json()
        assert plain.headers["x-request-id"]
        cost_usd = plain.headers["x-meterway-cost-usd"]
        usage = document["usage"]
        cost = usage["prompt_tokens"] * INPUT_NANOS + usage["completion_tokens"] * OUTPUT_NANOS
        assert round(float(cost_usd) * USD) == cost
        return usage


async def test_a_client_that_did_not_ask_for_usage_sees_none(
    stack: Stack, http: aiohttp.ClientSession
) -> None:
    customer = stack.new_customer("1")
    answer = await customer.stream(http, chat("Hi [[emulate tokens=20]]"))
    assert answer.finish_reasons
    assert all(chunk["choices"] and not chunk.get("usage") for chunk in answer.chunks)
    await customer.settled(sessions=1)


async def test_the_first_token_arrives_before_the_last_is_made(
    stack: Stack, http: aiohttp.ClientSession
) -> None:
    customer = stack.new_customer("1")
    body = chat("Hi [[emulate tokens=20 delay_ms=50]]", stream=True)
    arrivals = []
    async with customer.post(http, body) as answer:
        async for _chunk, _end in answer.content.iter_chunks():
            arrivals.append(time.monotonic())
    assert len(arrivals) >= 10
    assert arrivals[-1] - arrivals[0] > 0.5
    await customer.settled(sessions=1)


async def test_n_choices_are_held_and_charged(stack: Stack, http: aiohttp.ClientSession) -> None:
    customer = stack.new_customer("1")
    answer = await customer.stream(http, chat("Hi [[emulate tokens=10]]", n=3, max_tokens=30))
    assert len(answer.finish_reasons) == 3
    await customer.settled(sessions=1)
    (row,) = customer.usage()
    assert row["tokens"]["output"] == 30


async def test_a_price_change_charges_each_request_by_the_version_it_was_admitted_under(
    stack: Stack, http: aiohttp.ClientSession
) -> None:
    customer = stack.new_customer("1")
    for number, price in enumerate(("1", "2.5"), start=1):
        stack.cli("price", "set", "my/own-model", "--input", price, "--output", price)
        async with customer.post(http, chat("Hi [[emulate tokens=10]]", model="my/own-model")) as answer:
            assert answer.status == 200, await answer.text()
            usage = (await answer.json())["usage"]
        await customer.settled(sessions=number)
        row = customer.usage()[0]
        assert row["price_version"] == number
        assert row["cost_nanos"] == usage["total_tokens"] * float(price) * 1_000


async def test_unknown_fields_pass_both_ways(
    stack: Stack, emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    customer = stack.new_customer("1")
    body = chat("Hi [[emulate tokens=5]]", some_new_field={"a": [1, 2]}, logprobs=True)
    async with customer.post(http, body) as answer:
        assert answer.status == 200
        assert (await answer.json())["choices"][0]["logprobs"]
    await customer.settled(sessions=1)
