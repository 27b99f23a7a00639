"""A client that goes away pays for what was read, and the upstream is closed at once."""

import asyncio
import re

import aiohttp

from tests.e2e.stack import Emulator, Stack, chat


async def test_a_client_gone_after_10_of_500_tokens_pays_for_what_was_read(
    stack: Stack, emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    await emulator.forget(http)
    customer = stack.new_customer("1")
    body = chat("Go on. [[emulate tokens=500 delay_ms=20]]", stream=True)
    seen = 0
    async with customer.post(http, body) as answer:
        async for chunk, _ in answer.content.iter_chunks():
            seen += len(re.findall(rb'"content":"[^"]', chunk))
            if seen >= 10:
                break
        answer.close()
    gone_at = asyncio.get_running_loop().time()
    while not (rows := await emulator.rows(http)):
        assert asyncio.get_running_loop().time() < gone_at + 1, "upstream was not closed within 1 s"
        await asyncio.sleep(0.02)
    (upstream,) = rows
    assert upstream["client_disconnected"]
    balance = await customer.settled(sessions=1)
    (row,) = customer.usage()
    assert row["outcome"] == "client_gone"
    assert 10 <= row["tokens"]["output"] <= sum(upstream["tokens"]) < 100
    assert row["tokens"]["input"] > 0
    assert balance["balance_nanos"] == 1_000_000_000 - row["cost_nanos"]


async def test_a_client_gone_before_the_first_byte_pays_nothing_for_output(
    stack: Stack, emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    customer = stack.new_customer("1")
    body = chat("Wait. [[emulate tokens=50 first_delay_ms=5000]]", stream=True)
    request = asyncio.ensure_future(customer.stream(http, body))
    await asyncio.sleep(0.5)
    request.cancel()
    balance = await customer.settled()
    assert balance["balance_nanos"] == 1_000_000_000
    assert all(row["tokens"]["output"] == 0 for row in customer.usage())
