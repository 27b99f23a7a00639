"""A running emulator for each test, and the official client on it."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from openai import AsyncOpenAI

from services.emulator import make_app


@dataclass
class Running:
    url: str
    session: aiohttp.ClientSession

    def body(self, directive: str = "", **fields: Any) -> dict[str, Any]:
        text = f"Hello. [[emulate {directive}]]" if directive else "Hello."
        return {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], **fields}

    async def post(self, directive: str = "", *, path: str = "/v1/chat/completions", **fields: Any) -> bytes:
        async with self.session.post(self.url + path, json=self.body(directive, **fields)) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.read()

    async def events(self, directive: str = "", **fields: Any) -> list[dict[str, Any]]:
        """The stream's JSON events, by a plain reader: data lines of an event are joined by line feeds."""
        raw = await self.post(directive, stream=True, **fields)
        text = raw.decode().replace("\r\n", "\n").replace("\r", "\n")
        found = []
        for event in text.split("\n\n"):
            lines = [line[5:].removeprefix(" ") for line in event.split("\n") if line.startswith("data:")]
            data = "\n".join(lines)
            if data and data != "[DONE]" and not data.startswith(":"):
                found.append(json.loads(data))
        return found

    async def log(self, *, rows: int = 1, since: int = 0) -> list[dict[str, Any]]:
        """The rows after `since`, once there are at least `rows` of them (within 3 s)."""
        found: list[dict[str, Any]] = []
        for _ in range(300):
            async with self.session.get(f"{self.url}/emulator/log?since={since}") as answer:
                found = await answer.json()
            if len(found) >= rows:
                return found
            await asyncio.sleep(0.01)
        raise AssertionError(f"only {len(found)} of {rows} rows: {found}")

    async def open_answers(self) -> int:
        async with self.session.get(f"{self.url}/emulator/open") as answer:
            return int((await answer.json())["open"])


class Started:
    """Starts emulators in this process; each is closed at the end of the test."""

    def __init__(self) -> None:
        self._closers: list[Any] = []

    async def __call__(self, *, handler_cancellation: bool = False, **options: Any) -> Running:
        runner = web.AppRunner(
            make_app(**options),
            access_log=None,
            shutdown_timeout=0.5,
            handler_cancellation=handler_cancellation,
        )
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20))
        self._closers += [session.close, runner.cleanup]
        host, port = runner.addresses[0][:2]
        return Running(f"http://{host}:{port}", session)

    async def close(self) -> None:
        for closer in self._closers:
            await closer()


@pytest.fixture
async def start_emulator() -> AsyncIterator[Started]:
    started = Started()
    yield started
    await started.close()


@pytest.fixture
async def emulator(start_emulator: Started) -> Running:
    return await start_emulator()


@pytest.fixture
async def client(emulator: Running) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=emulator.url + "/v1", api_key="sk-any", max_retries=0) as opened:
        yield opened
