"""The emulator as a process of its own, with its benchmark mode."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from services.emulator.text import text_of

ROOT = Path(__file__).parents[3]


@asynccontextmanager
async def process(folder: Path, *options: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    ready = folder / "port"
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.emulator", "--port", "0", "--ready-file", str(ready), *options,
        cwd=ROOT, stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(1500):
            if ready.exists() or started.returncode is not None:
                break
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{int(ready.read_text())}", started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def ask(session: aiohttp.ClientSession, url: str, directive: str, **fields: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": f"[[emulate {directive}]]"}], **fields}
    async with session.post(url + "/v1/chat/completions", json=body) as answer:
        assert answer.status == 200
        return await answer.read()


async def test_it_serves_on_the_port_it_wrote_and_ends_on_sigterm(tmp_path: Path) -> None:
    log_file = tmp_path / "rows.jsonl"
    async with (
        process(tmp_path, "--log-file", str(log_file), "--api-key", "sk-x", "--tokens", "7") as (
            url,
            started,
        ),
        AsyncOpenAI(base_url=url + "/v1", api_key="sk-x", max_retries=0) as client,
    ):
        answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
        assert answer.choices[0].message.content == text_of("ascii", 7)
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "[[emulate fault=close_after:3]]"}], stream=True
        )
        chunks = aiter(stream)
        parts = [(await anext(chunks)).choices[0].delta.content for _ in range(4)]
        assert parts == ["", "Meter", "way", " stands"]
        with pytest.raises((httpx2.HTTPError, openai.APIError)):
            await anext(chunks)
        hanging = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "[[emulate fault=hang_after:1]]"}], stream=True
        )
        chunks = aiter(hanging)
        assert [(await anext(chunks)).choices[0].delta.content for _ in range(2)] == ["", "Meter"]
        started.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(started.wait(), 5) == 0
        await hanging.close()
    rows = [json.loads(line) for line in log_file.read_text().splitlines()]
    assert [row["tokens"] for row in rows] == [[7], [3], [1]]
    assert [row["client_disconnected"] for row in rows] == [False, False, False]


@pytest.mark.parametrize("delay", ["", " delay_ms=5"])
async def test_the_fast_mode_says_the_same_as_the_other(tmp_path: Path, delay: str) -> None:
    async with process(tmp_path, "--fast") as (url, started), aiohttp.ClientSession() as session:
        plain = json.loads(await ask(session, url, "tokens=30" + delay))
        assert plain["choices"][0]["message"]["content"] == text_of("ascii", 30)
        assert plain["usage"]["total_tokens"] == plain["usage"]["prompt_tokens"] + 30
        raw = await ask(
            session, url, "tokens=30" + delay, stream=True, stream_options={"include_usage": True}
        )
        assert raw.endswith(b"data: [DONE]\n\n")
        events = [json.loads(event[6:]) for event in raw.decode().split("\n\n")[:-2]]
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1]) == text_of(
            "ascii", 30
        )
        assert events[-1]["usage"]["completion_tokens"] == 30
        assert events[-1]["usage"]["total_tokens"] == events[-1]["usage"]["prompt_tokens"] + 30
        limited = json.loads(await ask(session, url, "tokens=30", max_tokens=4))
        assert (limited["usage"]["completion_tokens"], limited["choices"][0]["finish_reason"]) == (
            4,
            "length",
        )
        async with session.get(url + "/emulator/totals") as answer:
            totals = await answer.json()
        assert (totals["requests"], totals["completion_tokens"], totals["open"]) == (3, 64, 0)
        assert totals["tokens_sent"] == 64
        async with session.get(url + "/nowhere") as answer:
            assert answer.status == 404
        started.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(started.wait(), 5) == 0


async def test_the_fast_mode_reads_requests_however_they_are_cut(tmp_path: Path) -> None:
    body = b'{"model":"m","max_tokens":2,"messages":[{"role":"user","content":"Hi"}]}'
    whole = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    half = len(body) // 2
    chunked = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (half, body[:half], len(body) - half, body[half:])
    )
    async with process(tmp_path, "--fast") as (url, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":")[-1]))
        for raw in (whole, chunked):
            for place in range(0, len(raw), 9):
                writer.write(raw[place : place + 9])
                await asyncio.sleep(0)
        writer.write(whole + chunked)
        for _ in range(4):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            size = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            assert json.loads(await reader.readexactly(size))["usage"]["completion_tokens"] == 2
        writer.close()
        await writer.wait_closed()
