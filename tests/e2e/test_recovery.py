"""Edges and Redis lost while streams run: what was delivered is charged, nothing else, nothing is stuck."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import redis

from tests.e2e.stack import Customer, Emulator, Stack, chat, client, wait_until
from tests.stores import stores_folder

pytestmark = pytest.mark.timeout(180)
STREAMS = 20
SETTLED_SECONDS_MAX = 60.0


@pytest.fixture(scope="module")
def stack_to_break(emulator: Emulator) -> Iterator[Stack]:
    with stores_folder() as folder:
        stack = Stack(folder, emulator=emulator)
        stack.start()
        yield stack
        stack.stop()


@dataclass
class Reader:
    """One client's stream. `tokens`: content chunks it received; the emulator sends a token in each."""

    session_id: str = ""
    tokens: int = 0
    text_bytes: int = 0
    is_whole: bool = False

    async def read(self, http: aiohttp.ClientSession, customer: Customer, tokens: int) -> None:
        body = chat(f"Go on. [[emulate tokens={tokens} delay_ms=20]]", stream=True)
        try:
            async with customer.post(http, body) as answer:
                assert answer.status == 200, await answer.text()
                self.session_id = answer.headers["x-request-id"]
                async for line in answer.content:
                    self._accept(line)
        except aiohttp.ClientError:
            return

    def _accept(self, line: bytes) -> None:
        if line.startswith(b"data: [DONE]"):
            self.is_whole = True
        elif line.startswith(b"data:"):
            for choice in json.loads(line[5:]).get("choices", ()):
                content = choice["delta"].get("content") or ""
                self.tokens += bool(content)
                self.text_bytes += len(content.encode())


async def _streams(customer: Customer, tokens: int) -> tuple[list[Reader], asyncio.Task[Any], Any]:
    """STREAMS readers, each of which has received something."""
    session = client()
    http = await session.__aenter__()
    readers = [Reader() for _ in range(STREAMS)]
    reading = asyncio.gather(*(reader.read(http, customer, tokens) for reader in readers))
    give_up_at = time.monotonic() + 20
    while not all(reader.tokens >= 5 for reader in readers):
        assert time.monotonic() < give_up_at, readers
        await asyncio.sleep(0.02)
    return readers, reading, session


async def _emitted(emulator: Emulator) -> dict[str, dict[str, Any]]:
    async with client() as http:
        return {row["x_request_id"]: row for row in await emulator.rows(http)}


async def _served_again(customer: Customer, seconds_max: float) -> None:
    give_up_at = time.monotonic() + seconds_max
    async with client() as http:
        while True:
            try:
                async with customer.post(http, chat("Hi [[emulate tokens=5]]")) as answer:
                    if answer.status == 200:
                        return
                    assert answer.status in (502, 503), await answer.text()
            except aiohttp.ClientConnectionError:
                pass
            assert time.monotonic() < give_up_at, "it is not back"
            await asyncio.sleep(0.1)


async def _all_settled(stack: Stack, customer: Customer, began_s: float) -> dict[str, dict[str, Any]]:
    """Usage by session, once nothing is held and the books agree."""
    differences: Any = None
    balance: dict[str, int] = {}
    while time.monotonic() < began_s + SETTLED_SECONDS_MAX:
        balance = await asyncio.to_thread(customer.balance)
        rows = await asyncio.to_thread(customer.usage)
        if balance["held_nanos"] == 0 and len(rows) >= STREAMS + 1:
            differences = (await asyncio.to_thread(stack.cli, "reconcile"))["differences"]
            if not differences:
                assert balance["balance_nanos"] == 5_000_000_000 - sum(row["cost_nanos"] for row in rows)
                return {row["session_id"]: row for row in rows}
        await asyncio.sleep(0.5)
    raise AssertionError(f"not settled: {balance}, {differences}")


async def test_streams_of_a_killed_edge_are_charged_by_its_log(
    stack_to_break: Stack, emulator: Emulator
) -> None:
    stack = stack_to_break
    customer = stack.new_customer("5")
    readers, reading, session = await _streams(customer, 2_000)
    before = stack.read_ready()["pids"]
    began_s = time.monotonic()
    os.kill(before["edge-0"], signal.SIGKILL)
    await reading
    assert not any(reader.is_whole for reader in readers)
    await asyncio.to_thread(
        wait_until, lambda: stack.read_ready()["pids"]["edge-0"] != before["edge-0"], "the edge is back", 10
    )
    await _served_again(customer, 10)
    rows = await _all_settled(stack, customer, began_s)
    emitted = await _emitted(emulator)
    for reader in readers:
        row = rows[reader.session_id]
        assert row["usage_source"] == "log"
        assert row["cost_nanos"] > 0
        # The log knows bytes: four of them are a token.
        charged = row["tokens"]["output"]
        assert -(-reader.text_bytes // 4) <= charged <= -(-emitted[reader.session_id]["text_bytes"] // 4), row
    await session.__aexit__(None, None, None)


async def test_streams_outlive_a_redis_that_lost_everything_and_are_charged_exactly(
    stack_to_break: Stack, emulator: Emulator
) -> None:
    stack = stack_to_break
    customer = stack.new_customer("5")
    readers, reading, session = await _streams(customer, 300)
    began_s = time.monotonic()
    with redis.Redis.from_url(stack.ready["redis_url"]) as connection:
        connection.flushall()
    await _served_again(customer, 10)
    await reading
    assert all(reader.is_whole for reader in readers)
    rows = await _all_settled(stack, customer, began_s)
    emitted = await _emitted(emulator)
    for reader in readers:
        row = rows[reader.session_id]
        assert row["cost_nanos"] > 0
        assert reader.tokens <= row["tokens"]["output"] <= sum(emitted[reader.session_id]["tokens"]), row
    await session.__aexit__(None, None, None)
