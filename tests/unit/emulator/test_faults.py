import asyncio
import json
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from services.emulator.text import text_of

from .conftest import Running, Started

HELLO: Any = [{"role": "user", "content": "Hello."}]
CHAT = "/v1/chat/completions"


async def read_until_broken(answer: aiohttp.ClientResponse) -> bytes:
    """All bytes that arrive before the connection breaks; fails if the body ends properly."""
    raw = b""
    try:
        async for part in answer.content.iter_any():
            raw += part
    except aiohttp.ClientError:
        return raw
    raise AssertionError("the body ended properly")


async def _read_or_error(reader: asyncio.StreamReader) -> list[Exception | None]:
    """Empty while bytes come; then the error that ended the connection, or None for a proper end."""
    try:
        return [] if await reader.read(4096) else [None]
    except ConnectionError as error:
        return [error]


async def test_a_status_fault_has_the_usual_error_and_retry_after(
    emulator: Running, client: AsyncOpenAI
) -> None:
    url = emulator.url + CHAT
    for stream in (False, True):
        async with emulator.session.post(
            url, json=emulator.body("fault=status:429:7", stream=stream)
        ) as answer:
            assert (answer.status, answer.headers["retry-after"]) == (429, "7")
            assert (await answer.json())["error"]["code"] == "rate_limit_exceeded"
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "[[emulate fault=status:503]]"}]
        )
    rows = await emulator.log(rows=3)
    assert [(row["status"], row["tokens"], row["usage"]) for row in rows] == [
        (429, [], None),
        (429, [], None),
        (503, [], None),
    ]


async def test_garbage_is_a_page_with_status_200(emulator: Running) -> None:
    assert b"<html>" in await emulator.post("fault=garbage")


async def test_a_close_before_the_headers_breaks_the_connection(emulator: Running) -> None:
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await emulator.post("fault=close_before")
    row = (await emulator.log())[0]
    assert (row["status"], row["finished"], row["client_disconnected"]) == (None, False, False)


@pytest.mark.parametrize("count", [0, 1, 10, 64])
async def test_a_close_after_chunks_resets_the_connection_there(emulator: Running, count: int) -> None:
    body = emulator.body(f"fault=close_after:{count}", stream=True)
    async with emulator.session.post(emulator.url + CHAT, json=body) as answer:
        raw = await read_until_broken(answer)
    # The role comes before the text.
    assert raw.count(b"data: ") == count + 1
    row = (await emulator.log())[0]
    assert (row["tokens"], row["finished"]) == ([count] if count else [], False)
    assert row["client_disconnected"] is False


async def test_the_close_is_a_tcp_reset(emulator: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(emulator.url.rsplit(":")[-1]))
    raw = json.dumps(emulator.body("fault=close_after:3", stream=True)).encode()
    writer.write(
        b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (CHAT.encode(), len(raw)) + raw
    )
    while not (ended := await _read_or_error(reader)):
        pass
    assert isinstance(ended[0], ConnectionResetError)
    writer.close()


async def test_a_stream_may_end_early_as_if_nothing_were_missing(emulator: Running) -> None:
    raw = await emulator.post("fault=end_after:5", stream=True)
    assert raw.count(b"data: ") == 6
    assert b"[DONE]" not in raw
    assert (await emulator.log())[0]["tokens"] == [5]


async def test_an_error_event_ends_the_stream(emulator: Running, client: AsyncOpenAI) -> None:
    text = ""
    stream = await client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "[[emulate fault=error_event_after:5]]"}],
        stream=True,
    )
    chunks = aiter(stream)
    while text != text_of("ascii", 5):
        text += (await anext(chunks)).choices[0].delta.content or ""
    with pytest.raises(openai.APIError):
        await anext(chunks)
    assert (await emulator.log())[0]["tokens"] == [5]


@pytest.mark.parametrize(
    ("directive", "events"),
    [("fault=error_event_after:2:silence", 4), ("fault=hang_after:2", 3), ("fault=hang_after:0", 1)],
)
async def test_a_hanging_stream_is_silent_until_the_client_leaves(
    emulator: Running, directive: str, events: int
) -> None:
    async with emulator.session.post(
        emulator.url + CHAT, json=emulator.body(directive, stream=True)
    ) as answer:
        raw = b""
        while raw.count(b"\n\n") < events:
            raw += await answer.content.readany()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(answer.content.readany(), 0.1)
        assert await emulator.open_answers() == 1
    row = (await emulator.log())[0]
    assert row["client_disconnected"] is True
    assert row["finished"] is False


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hang_before_the_headers_sends_nothing(emulator: Running, stream: bool) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(emulator.post("fault=hang_before_headers", stream=stream), 0.15)
    row = (await emulator.log())[0]
    assert (row["status"], row["first_write_at_ms"], row["client_disconnected"]) == (None, None, True)


@pytest.mark.parametrize(
    ("fault", "size"), [("truncate_plain:40", 40), ("truncate_plain", None), ("close_after:25", 25)]
)
async def test_a_plain_body_is_cut_short_of_its_length(
    emulator: Running, fault: str, size: int | None
) -> None:
    async with emulator.session.post(emulator.url + CHAT, json=emulator.body(f"fault={fault}")) as answer:
        whole = int(answer.headers["content-length"])
        raw = await read_until_broken(answer)
    assert len(raw) == (whole // 2 if size is None else size)
    row = (await emulator.log())[0]
    assert (row["finished"], row["tokens"], row["usage"]) == (False, [], None)


@pytest.mark.parametrize("stream", [False, True])
async def test_headers_can_come_byte_by_byte(emulator: Running, stream: bool) -> None:
    await emulator.post("fault=slow_headers:1 tokens=2", stream=stream)
    row = (await emulator.log())[0]
    assert row["finished"] is True
    assert row["last_write_at_ms"] - row["first_write_at_ms"] > 100


async def test_faults_can_be_set_for_all_requests_or_for_the_next_few(emulator: Running) -> None:
    url = emulator.url + "/emulator/faults"
    statuses = []
    async with emulator.session.put(url, json={"fault": "status:500", "times": 2}) as answer:
        assert await answer.json() == {"fault": "status:500", "times": 2}
    for _ in range(3):
        async with emulator.session.post(emulator.url + CHAT, json=emulator.body()) as answer:
            statuses.append(answer.status)
    assert statuses == [500, 500, 200]
    async with emulator.session.put(url, json={"tokens": 3}) as answer:
        assert answer.status == 200
    # A directive still has the last word.
    assert json.loads(await emulator.post())["usage"]["completion_tokens"] == 3
    assert json.loads(await emulator.post("tokens=5"))["usage"]["completion_tokens"] == 5
    async with emulator.session.delete(url) as answer:
        assert answer.status == 204
    assert json.loads(await emulator.post())["usage"]["completion_tokens"] == 64
    for wrong in ({"fault": "explode"}, {"times": -1}, {"nonsense": 1}, []):
        async with emulator.session.put(url, json=wrong) as answer:
            assert answer.status == 400


async def test_a_header_steers_a_request(emulator: Running) -> None:
    headers = {"x-emulate": "tokens=2;text=chinese"}
    async with emulator.session.post(emulator.url + CHAT, json=emulator.body(), headers=headers) as answer:
        assert (await answer.json())["choices"][0]["message"]["content"] == text_of("chinese", 2)


async def test_shutting_down_does_not_wait_for_hanging_streams(start_emulator: Started) -> None:
    running = await start_emulator()
    body = running.body("fault=hang_after:1", stream=True)
    async with running.session.post(running.url + CHAT, json=body) as answer:
        await answer.content.readany()
        began = asyncio.get_running_loop().time()
        await start_emulator.close()
        assert asyncio.get_running_loop().time() - began < 2
    start_emulator._closers.clear()
