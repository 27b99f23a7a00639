import asyncio
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from services.emulator.log import EmissionLog, Row
from services.emulator.text import text_of

from .conftest import Running, Started

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"


async def test_a_row_says_what_was_received(start_emulator: Started, tmp_path: Path) -> None:
    running = await start_emulator(api_keys=frozenset({"sk-secret"}), log_file=tmp_path / "rows.jsonl")
    raw = json.dumps(running.body("tokens=7", stream=True, max_tokens=5)).encode()
    headers = {
        "authorization": "Bearer sk-secret",
        "x-request-id": "req-1",
        "x-other": "kept",
        "cookie": "session=secret",
        "content-type": "application/json",
    }
    async with running.session.post(running.url + CHAT, data=raw, headers=headers) as answer:
        await answer.read()
    row = (await running.log())[0]
    assert {
        name: row[name] for name in ("path", "model", "stream", "messages_count", "max_tokens", "body_bytes")
    } == {
        "path": CHAT,
        "model": "gpt-4o",
        "stream": True,
        "messages_count": 1,
        "max_tokens": 5,
        "body_bytes": len(raw),
    }
    assert row["body_sha256"] == hashlib.sha256(raw).hexdigest()
    assert row["api_key_hash"] == hashlib.sha256(b"sk-secret").hexdigest()[:12]
    assert (row["x_request_id"], row["headers"]["x-other"]) == ("req-1", "kept")
    assert "secret" not in json.dumps(row)
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == [row]


async def test_the_log_is_read_on_from_a_row_and_cleared(emulator: Running) -> None:
    for _ in range(3):
        await emulator.post("tokens=1")
    assert [row["seq"] for row in await emulator.log(rows=3)] == [1, 2, 3]
    assert [row["seq"] for row in await emulator.log(since=2)] == [3]
    async with emulator.session.delete(emulator.url + "/emulator/log") as answer:
        assert answer.status == 204
    await emulator.post("tokens=1")
    assert [row["seq"] for row in await emulator.log()] == [4]
    async with emulator.session.get(emulator.url + "/emulator/log?since=x") as answer:
        assert answer.status == 400
    async with emulator.session.get(emulator.url + "/emulator/totals") as answer:
        totals = await answer.json()
    assert (totals["requests"], totals["completion_tokens"], totals["open"]) == (4, 4, 0)


def test_the_ring_keeps_only_the_newest_rows() -> None:
    log = EmissionLog(rows_max=3)
    for number in range(10):
        log.add(Row(request_id=str(number), path="/", headers={}))
    assert [row["request_id"] for row in json.loads(log.since(0))] == ["7", "8", "9"]


@pytest.mark.parametrize("handler_cancellation", [False, True])
@pytest.mark.parametrize(
    "directive", ["delay_ms=5", "delay_ms=60000", "fault=hang_after:4", "first_delay_ms=60000"]
)
async def test_a_client_that_leaves_is_seen_at_once(
    start_emulator: Started, directive: str, handler_cancellation: bool
) -> None:
    running = await start_emulator(handler_cancellation=handler_cancellation)
    body = running.body(f"tokens=100000 {directive}", stream=True)
    raw = b""
    async with running.session.post(running.url + CHAT, json=body) as answer:
        while "first" not in directive and raw.count(b"\n\n") < 2:
            raw += await answer.content.readany()
        answer.close()
        left_at_ms = time.time_ns() // 1_000_000
    row = (await running.log())[0]
    assert (row["client_disconnected"], row["finished"]) == (True, False)
    assert 0 <= row["disconnected_at_ms"] - left_at_ms < 100
    assert row["disconnected_after_last_write_ms"] >= 0
    read = raw.count(b'"content":') - 1 if raw else 0
    assert sum(row["tokens"]) >= read
    assert row["text_sha256"] == hashlib.sha256(text_of("ascii", sum(row["tokens"])).encode()).hexdigest()
    assert await running.open_answers() == 0


@pytest.mark.parametrize(
    "directive", ["fault=hang_before_headers", "first_delay_ms=60000", "fault=hang_after:9"]
)
async def test_a_client_that_leaves_a_plain_answer_is_seen_too(emulator: Running, directive: str) -> None:
    began_ms = time.time_ns() // 1_000_000
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(emulator.post(directive), 0.1)
    row = (await emulator.log())[0]
    assert (row["client_disconnected"], row["finished"]) == (True, False)
    assert row["disconnected_at_ms"] - began_ms < 300


async def test_a_slow_reader_slows_the_stream_and_is_logged_as_gone(emulator: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(emulator.url.rsplit(":")[-1]), limit=1024)
    raw = json.dumps(emulator.body("tokens=9000000 chunk_tokens=500", stream=True)).encode()
    writer.write(
        b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (CHAT.encode(), len(raw)) + raw
    )
    assert await reader.readline()
    last: list[Any] = []
    for _ in range(100):
        async with emulator.session.get(emulator.url + "/emulator/open") as answer:
            tokens = (await answer.json())["answers"][0]["tokens"]
        if tokens and tokens == last:
            break
        last = tokens
        await asyncio.sleep(0.05)
    # Far from the end, and no further: what nobody reads is not made.
    assert last == tokens
    assert 0 < tokens[0] < 8_000_000
    writer.transport.abort()
    row = (await emulator.log())[0]
    assert (row["client_disconnected"], row["tokens"]) == (True, tokens)


async def test_many_slow_streams_run_at_once_and_their_rows_are_exact(emulator: Running) -> None:
    answers = await asyncio.gather(*(emulator.post("tokens=5 delay_ms=100", stream=True) for _ in range(90)))
    assert all(raw.count(b"data: ") == 8 for raw in answers)
    rows = await emulator.log(rows=90)
    assert [row["tokens"] for row in rows] == [[5]] * 90
    assert len({row["request_id"] for row in rows}) == 90
