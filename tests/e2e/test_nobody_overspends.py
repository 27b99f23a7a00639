"""Two hundred parallel calls can't spend more than there is; a stream ends where the money ends."""

import asyncio
import collections
from typing import Any

import aiohttp
import pytest

from services.meter.counting import count_text
from tests.e2e.stack import Stack, chat

INPUT_NANOS, OUTPUT_NANOS = 150, 600
MAX_TOKENS = 100
# "Go [[emulate ...]]" as our own count of its message, well over it: half a call is left over in any case.
CALL_NANOS = 40 * INPUT_NANOS + MAX_TOKENS * OUTPUT_NANOS


def usd(nanos: int) -> str:
    return f"{nanos / 1e9:.9f}"


@pytest.mark.parametrize("calls", [3, 30])
async def test_of_200_parallel_plain_calls_exactly_as_many_run_as_are_paid_for(
    stack: Stack, http: aiohttp.ClientSession, calls: int
) -> None:
    body = chat(f"Go [[emulate tokens={MAX_TOKENS} first_delay_ms=1500]]", max_tokens=MAX_TOKENS)
    one = _input_tokens(body) * INPUT_NANOS + MAX_TOKENS * OUTPUT_NANOS
    customer = stack.new_customer(usd(calls * one + one // 2))

    async def ask() -> tuple[int, str]:
        async with customer.post(http, body) as answer:
            document = await answer.json()
            return answer.status, document.get("error", {}).get("code", "")

    outcomes = collections.Counter(await asyncio.gather(*(ask() for _ in range(200))))
    assert outcomes[200, ""] == calls, outcomes
    assert outcomes[429, "insufficient_quota"] == 200 - calls, outcomes
    balance = await customer.settled(sessions=calls)
    assert balance["balance_nanos"] == calls * one + one // 2 - sum(
        row["cost_nanos"] for row in customer.usage()
    )
    assert balance["balance_nanos"] >= 0


def _input_tokens(body: dict[str, Any]) -> int:
    """3 to prime, 3 for the message, 1 for its role, and its text."""
    return 7 + count(body["messages"][0]["content"])


def count(text: str) -> int:
    return count_text("gpt-4o-mini", text)


async def test_200_parallel_streams_never_deliver_more_than_is_charged(
    stack: Stack, http: aiohttp.ClientSession
) -> None:
    customer = stack.new_customer(usd(CALL_NANOS * 7 // 2))
    body = chat(f"Go [[emulate tokens={MAX_TOKENS} delay_ms=5]]", max_tokens=MAX_TOKENS)
    answers = await asyncio.gather(*(customer.stream(http, body) for _ in range(200)))
    served = [answer for answer in answers if answer.status == 200]
    whole = [answer for answer in served if not answer.errors]
    refused = [answer for answer in answers if answer.status != 200]
    assert len(whole) <= 3
    assert served
    assert {answer.status for answer in refused} <= {429}
    balance = await customer.settled(sessions=len(served))
    delivered = sum(count(answer.text) for answer in served)
    charged = sum(row["tokens"]["output"] for row in customer.usage())
    assert delivered <= charged
    assert balance["balance_nanos"] >= 0
    assert balance["balance_nanos"] == CALL_NANOS * 7 // 2 - sum(
        row["cost_nanos"] for row in customer.usage()
    )
    assert stack.cli("reconcile")["differences"] == []


async def test_a_stream_ends_properly_where_the_balance_ends(
    stack: Stack, http: aiohttp.ClientSession
) -> None:
    body = chat("Say something long. [[emulate tokens=500 delay_ms=2]]")
    input_nanos = _input_tokens(body) * INPUT_NANOS
    customer = stack.new_customer(usd(input_nanos + 40 * OUTPUT_NANOS + 100))
    answer = await customer.stream(http, body)
    assert answer.status == 200, answer.raw
    assert answer.finish_reasons == ["length"]
    (error,) = answer.errors
    assert error["code"] == "insufficient_quota"
    assert answer.events[-1] == "[DONE]"
    assert 20 <= count(answer.text) <= 40
    balance = await customer.settled(sessions=1)
    (row,) = customer.usage()
    assert row["tokens"]["output"] == count(answer.text)
    assert row["outcome"] == "out_of_grant"
    assert 0 <= balance["balance_nanos"] < 20 * OUTPUT_NANOS


async def test_an_account_without_money_gets_429_that_is_not_to_be_retried(
    stack: Stack, http: aiohttp.ClientSession
) -> None:
    customer = stack.new_customer("0")
    for body in (chat(), chat(max_tokens=10), chat(stream=True)):
        async with customer.post(http, body) as answer:
            assert answer.status == 429
            assert answer.headers["x-should-retry"] == "false"
            error = (await answer.json())["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] == "insufficient_quota"
            assert "balance" in error["message"]


async def test_a_key_spends_no_more_than_its_quota(stack: Stack, http: aiohttp.ClientSession) -> None:
    customer = stack.new_customer("1", "--quota-usd", usd(CALL_NANOS * 5 // 2))
    body = chat(f"Go [[emulate tokens={MAX_TOKENS}]]", max_tokens=MAX_TOKENS)
    statuses = []
    for _ in range(4):
        async with customer.post(http, body) as answer:
            statuses.append(answer.status)
            text = await answer.text()
    assert statuses.count(200) in (2, 3)
    assert statuses[-1] == 429
    assert "quota" in text
    await customer.settled(sessions=statuses.count(200))
    assert sum(row["cost_nanos"] for row in customer.usage()) <= CALL_NANOS * 5 // 2


async def test_a_disabled_key_and_a_suspended_account_are_refused_at_once(
    stack: Stack, http: aiohttp.ClientSession
) -> None:
    customer = stack.new_customer("1")
    async with customer.post(http, chat("Hi [[emulate tokens=3]]")) as answer:
        assert answer.status == 200
    stack.cli("key", "disable", customer.key_id)
    async with customer.post(http, chat()) as answer:
        assert answer.status == 401
    stack.cli("key", "enable", customer.key_id)
    stack.cli("account", "suspend", customer.account_id)
    async with customer.post(http, chat()) as answer:
        assert answer.status == 403
    stack.cli("account", "resume", customer.account_id)
    async with customer.post(http, chat("Hi [[emulate tokens=3]]")) as answer:
        assert answer.status == 200
    await customer.settled(sessions=2)
