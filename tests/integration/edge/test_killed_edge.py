"""An edge process killed with SIGKILL; the next one on its log directory charges what the log says."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.common.contracts.charging import Settle
from services.emulator.app import make_app as make_emulator
from tests.integration.edge.conftest import API_KEY, MODEL, LedgerDouble, eventually, routing_to, serve_app
from tests.integration.edge.meter_double import Books, MeterDouble

pytestmark = pytest.mark.timeout(60)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Surroundings:
    """Emulator, doubles of meter and ledger, and one edge process at a time."""

    def __init__(self, books: Books, meter: MeterDouble, folder: Path) -> None:
        self.books = books
        self.meter = meter
        self.folder = folder
        self.process: asyncio.subprocess.Process | None = None
        self.port, self.internal_port = free_port(), free_port()
        self.client = aiohttp.ClientSession(headers={"Authorization": f"Bearer {API_KEY}"})

    async def set_up(self) -> None:
        self._emulator, self.upstream_url = await serve_app(make_emulator())
        self.ledger = LedgerDouble(routing_to(self.upstream_url, None))
        self._ledger, self.ledger_url = await serve_app(self.ledger.app())

    async def start_edge(self) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "METERWAY_INTERNAL_CREDENTIAL": "internal",
            "METERWAY_METER_URLS": self.meter.url,
            "METERWAY_LEDGER_URLS": self.ledger_url,
            "METERWAY_EDGE_ID": "edge-test",
            "METERWAY_EDGE_PORT": str(self.port),
            "METERWAY_EDGE_INTERNAL_PORT": str(self.internal_port),
            "METERWAY_EDGE_LOG_DIR": str(self.folder / "edge-log"),
            "METERWAY_EDGE_AUDIT_PPM": "0",
        }
        with (self.folder / "edge-output").open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services.cli", "edge"), env=environment, stdout=output, stderr=output
            )
        async with asyncio.timeout(15):
            while not await self._is_ready():  # noqa: ASYNC110 (another process becomes ready)
                await asyncio.sleep(0.05)

    async def _is_ready(self) -> bool:
        try:
            async with self.client.get(f"http://127.0.0.1:{self.internal_port}/readyz") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def kill_edge(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    def chat(self, script: str, *, stream: bool) -> Any:
        content = f"Hello [[emulate {script}]]"
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "stream": stream}
        return self.client.post(f"http://127.0.0.1:{self.port}/v1/chat/completions", json=body)

    async def close(self) -> None:
        await self.client.close()
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            await asyncio.wait_for(self.process.wait(), 20)
        await self._ledger.cleanup()
        await self._emulator.cleanup()

    async def log_is_gone(self) -> None:
        """Only the running process's own directory is left."""
        root = self.folder / "edge-log"
        await eventually(lambda: len(list(root.glob("edge-*"))) == 1, 10)


@pytest.fixture
async def around(books: Books, meter: MeterDouble, tmp_path: Path) -> AsyncIterator[Surroundings]:
    around = Surroundings(books, meter, tmp_path)
    await around.set_up()
    await around.start_edge()
    yield around
    await around.close()


async def test_a_stream_killed_in_the_middle_is_charged_between_received_and_emitted(
    around: Surroundings,
) -> None:
    response = await around.chat("tokens=500 delay_ms=10", stream=True).__aenter__()
    session_id, text = response.headers["x-request-id"], ""
    while text.count(" ") < 20:
        line = await response.content.readline()
        if line.startswith(b"data:"):
            text += json.loads(line[5:])["choices"][0]["delta"].get("content") or ""
    await around.kill_edge()
    await around.start_edge()
    await around.log_is_gone()
    ((entry,),) = [told.charged for told in around.ledger.recovered]
    async with around.client.get(f"{around.upstream_url}/emulator/log") as rows:
        (row,) = await rows.json()
    assert entry.record.session_id == session_id
    assert entry.record.usage_source == "log"
    # The log knows bytes: four of them are a token.
    assert -(-len(text) // 4) <= entry.record.tokens.output <= -(-row["text_bytes"] // 4)
    assert entry.record.flags == ("edge_lost", "log_output_estimated")
    assert 0 < entry.loan_nanos == entry.record.cost_nanos <= around.books.account.held[session_id]


async def test_a_stream_killed_before_any_output_is_released(around: Surroundings) -> None:
    request = asyncio.ensure_future(around.chat("tokens=5 first_delay_ms=20000", stream=True).__aenter__())
    await eventually(lambda: bool(around.books.account.held))
    await asyncio.sleep(0.2)
    (session_id,) = around.books.account.held
    await around.kill_edge()
    with pytest.raises(aiohttp.ClientError):
        await request
    await around.start_edge()
    await around.log_is_gone()
    assert session_id in around.books.released
    assert not around.books.account.held
    assert [told.released for told in around.ledger.recovered] == [(session_id,)]
    assert not around.books.settled


async def test_a_plain_reply_killed_before_its_settle_is_charged_exactly(around: Surroundings) -> None:
    around.meter.silent_for = (Settle,)
    async with around.chat("tokens=7", stream=False) as response:
        body = await response.json()
    await around.kill_edge()
    around.meter.silent_for = ()
    await around.start_edge()
    await around.log_is_gone()
    ((entry,),) = [told.charged for told in around.ledger.recovered]
    assert entry.record.usage_source == "upstream"
    assert entry.record.outcome == "complete"
    assert entry.record.tokens.output == body["usage"]["completion_tokens"] == 7


async def test_what_the_ledger_has_already_is_not_told_again(around: Surroundings) -> None:
    async with around.chat("tokens=7", stream=False) as response:
        around.ledger.posted.add(response.headers["x-request-id"])
        assert response.status == 200
    await around.kill_edge()
    await around.start_edge()
    await around.log_is_gone()
    assert not around.ledger.recovered


async def test_a_log_waits_for_a_ledger_that_is_away(around: Surroundings) -> None:
    around.meter.silent_for = (Settle,)
    async with around.chat("tokens=7", stream=False) as response:
        assert response.status == 200
    await around.kill_edge()
    around.ledger.is_away = True
    await around.start_edge()
    await asyncio.sleep(0.5)
    assert len(list((around.folder / "edge-log").glob("edge-*"))) == 2
    around.ledger.is_away = False
    await around.log_is_gone()
    assert len(around.ledger.recovered) == 1
