"""One command starts it, keeps it alive, stops it, and finds its data again."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
import redis

from tests.e2e.stack import Customer, Emulator, Stack, chat, client, wait_until
from tests.stores import stores_folder

pytestmark = pytest.mark.timeout(240)


def _demo(stack: Stack) -> Customer:
    return Customer(stack, stack.ready["account_id"], stack.ready["api_key"], "")


async def _one_answer(stack: Stack) -> None:
    async with client() as http, _demo(stack).post(http, chat("Hi [[emulate tokens=5]]")) as answer:
        assert answer.status == 200, await answer.text()


def test_the_first_start_serves_a_newcomer_and_every_later_one_finds_the_data(own_folder: Path) -> None:
    stack = Stack(own_folder)
    started_at = time.monotonic()
    stack.start()
    assert time.monotonic() - started_at < 45
    ready = stack.ready
    assert [edge["id"] for edge in stack.cli("edge", "list")["edges"]] == ["edge-0"]
    assert not ready["edge_url"].endswith(("/", "/v1"))
    assert {name.rstrip("-0123456789") for name in ready["pids"]} == {
        "edge", "meter", "ledger", "postgres", "redis", "emulator",
    }  # fmt: skip
    asyncio.run(_metrics_answer(ready["metrics_urls"]))
    # The line that a newcomer copies.
    curl = stack.output[stack.output.index("curl ") :].split("\n\n")[0]
    streamed = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, timeout=20, check=True)
    assert streamed.stdout.count("data: ") > 10
    assert streamed.stdout.rstrip().endswith("data: [DONE]")
    spent = asyncio.run(_demo(stack).settled(sessions=1))["balance_nanos"]
    assert spent < 5_000_000_000
    second = subprocess.run(
        [*_up_command(stack)], capture_output=True, text=True, timeout=30, check=False, cwd=own_folder
    )
    assert second.returncode == 2
    assert str(stack.process and stack.process.pid) in second.stderr
    assert stack.stop() < 10

    stack.start()
    assert stack.ready["api_key"] == ready["api_key"]
    assert _demo(stack).balance()["balance_nanos"] == spent
    asyncio.run(_one_answer(stack))
    asyncio.run(_demo(stack).settled(sessions=2))

    stack.kill_everything()
    stack.start()
    assert len(_demo(stack).usage()) == 2
    asyncio.run(_one_answer(stack))
    asyncio.run(_demo(stack).settled(sessions=3))
    assert stack.cli("reconcile")["differences"] == []
    assert stack.stop() < 10


def _up_command(stack: Stack) -> list[str]:
    return [
        *(sys.executable, "-m", "services.cli", "up", "--data-dir", str(stack.data_dir)),
        *("--edge-port", "0", "--console-port", "0"),
    ]


async def _metrics_answer(urls: list[str]) -> None:
    async with client() as http:
        for url in urls:
            async with http.get(url) as answer:
                assert answer.status == 200
                assert "meterway_" in await answer.text()


@pytest.mark.parametrize("name", ["edge-0", "meter-0", "ledger", "redis", "postgres"])
def test_a_killed_child_comes_back_and_the_books_stay_exact(stack_to_break: Stack, name: str) -> None:
    stack = stack_to_break
    customer = stack.new_customer("1")
    before = stack.read_ready()["pids"]
    os.kill(before[name], signal.SIGKILL)
    wait_until(lambda: stack.read_ready()["pids"][name] != before[name], f"{name} is back", 10)
    asyncio.run(_answers_again(customer))
    balance = asyncio.run(customer.settled())
    assert balance["balance_nanos"] == 1_000_000_000 - sum(row["cost_nanos"] for row in customer.usage())
    assert stack.cli("reconcile")["differences"] == []


def test_a_redis_that_lost_everything_is_fenced_and_serves_again(stack_to_break: Stack) -> None:
    stack = stack_to_break
    customer = stack.new_customer("3")
    asyncio.run(_answers_again(customer))
    asyncio.run(customer.settled(sessions=1))
    with redis.Redis.from_url(stack.ready["redis_url"]) as connection:
        connection.flushall()
    asyncio.run(_answers_again(customer))
    balance = asyncio.run(customer.settled(sessions=2))
    assert balance["balance_nanos"] == 3_000_000_000 - sum(row["cost_nanos"] for row in customer.usage())
    assert stack.cli("reconcile")["differences"] == []


async def _answers_again(customer: Customer) -> None:
    give_up_at = time.monotonic() + 10
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


@pytest.fixture(scope="module")
def stack_to_break(emulator: Emulator) -> Iterator[Stack]:
    with stores_folder() as folder:
        stack = Stack(folder, emulator=emulator)
        stack.start()
        yield stack
        stack.stop()


def test_a_port_in_use_is_told_with_what_to_do(stack: Stack, own_folder: Path) -> None:
    port = stack.ready["edge_url"].rsplit(":", 1)[1]
    command = [*_up_command(Stack(own_folder)), "--edge-port", port]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=own_folder)
    assert refused.returncode == 2
    assert "--edge-port" in refused.stderr


def test_the_command_line_prints_one_json_document(stack: Stack) -> None:
    done = stack.run("account", "create", "--email", f"{time.time_ns()}@example.com")
    document = json.loads(done.stdout)
    assert set(document) >= {"account_id"}
    account = document["account_id"]
    assert stack.cli("balance", account)["balance_nanos"] == 0
    stack.cli("credit", account, "0.000000001", "--reason", "one nano")
    assert stack.cli("balance", account)["balance_nanos"] == 1
    refused = stack.run("credit", account, "0.0000000001", "--reason", "too fine")
    assert refused.returncode == 2
    assert stack.run("balance", "acct_none").returncode == 2
