import asyncio
import hashlib
import json
from typing import Any

import pytest
from openai import AsyncOpenAI

from services.emulator.text import text_of

from .conftest import Running

pytestmark = pytest.mark.slow

HELLO: Any = [{"role": "user", "content": "Hello."}]
OPTIONS = {"include_usage": True}


def content_of(events: list[dict[str, Any]], choice: int = 0, field: str = "content") -> str:
    deltas = (
        entry.get("delta", {}) for event in events for entry in event["choices"] if entry["index"] == choice
    )
    return "".join(delta.get(field) or "" for delta in deltas)


def usages(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event["usage"] for event in events if event.get("usage")]


async def test_the_official_client_reads_a_stream_token_by_token(
    client: AsyncOpenAI, emulator: Running
) -> None:
    stream = await client.chat.completions.create(
        model="gpt-4o", messages=HELLO, stream=True, max_tokens=30, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    parts = [
        chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content
    ]
    assert len(parts) == 30
    assert "".join(parts) == text_of("ascii", 30)
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert all(chunk.usage is None for chunk in chunks[:-1])
    row = (await emulator.log())[0]
    assert row["usage"] == chunks[-1].usage.model_dump(exclude_unset=True)
    assert (row["tokens"], row["chunks"], row["finished"]) == ([30], 30, True)
    assert row["text_sha256"] == hashlib.sha256(text_of("ascii", 30).encode()).hexdigest()


async def test_usage_is_sent_only_when_asked_for(emulator: Running) -> None:
    silent = await emulator.events("tokens=3")
    assert all("usage" not in event for event in silent)
    asked = await emulator.events("tokens=3", stream_options=OPTIONS)
    assert [event["usage"] for event in asked[:-1]] == [None] * 5
    assert (asked[-1]["choices"], asked[-1]["usage"]["completion_tokens"]) == ([], 3)
    assert [row["include_usage"] for row in await emulator.log(rows=2)] == [False, True]


async def test_a_plain_answer_and_a_stream_say_the_same(emulator: Running) -> None:
    directive = "tokens=40 reasoning_content=3 cached_tokens=2 text=emoji"
    plain = json.loads(await emulator.post(directive))
    events = await emulator.events(directive, stream_options=OPTIONS)
    assert content_of(events) == plain["choices"][0]["message"]["content"]
    assert (
        content_of(events, field="reasoning_content") == plain["choices"][0]["message"]["reasoning_content"]
    )
    assert usages(events) == [plain["usage"]]
    rows = await emulator.log(rows=2)
    assert len({(tuple(row["tokens"]), row["text_sha256"], row["text_bytes"]) for row in rows}) == 1


@pytest.mark.parametrize(
    "shape",
    ["", "newline=crlf", "newline=cr", "no_space", "multi_line", "comments", "keepalive=2", "azure_first",
     "late_chunk", "multi_line newline=crlf no_space comments=3", "chunk_tokens=7", "write_bytes=1",
     "write_bytes=3 newline=crlf", "encoding=gzip", "encoding=br", "encoding=zstd", "encoding=deflate",
     "encoding=gzip write_bytes=5", "no_done", "logprobs", "padding_bytes=70000", "long_line_bytes=200"],
)  # fmt: skip
@pytest.mark.parametrize("text", ["ascii", "chinese", "emoji", "u2028"])
async def test_every_shape_carries_the_same_text(emulator: Running, shape: str, text: str) -> None:
    events = await emulator.events(f"tokens=80 text={text} {shape}")
    assert content_of(events) == text_of(text, 80)
    row = (await emulator.log())[0]
    assert (row["tokens"], row["text_bytes"], row["finished"]) == (
        [80],
        len(text_of(text, 80).encode()),
        True,
    )


async def test_the_bytes_of_each_shape_are_as_named(emulator: Running) -> None:
    assert b"\r\n\r\n" in await emulator.post("newline=crlf", stream=True)
    assert b"\n" not in await emulator.post("newline=cr", stream=True)
    assert b"data:{" in await emulator.post("no_space", stream=True)
    assert (await emulator.post("comments=1 tokens=2", stream=True)).count(
        b": OPENROUTER PROCESSING\n\n"
    ) == 5
    assert (await emulator.post("keepalive=2 tokens=2", stream=True)).count(b"data: : keepalive\n\n") == 2
    assert b'\ndata: ,"object"' in await emulator.post("multi_line", stream=True)
    assert (await emulator.post(stream=True)).endswith(b"data: [DONE]\n\n")
    assert b"[DONE]" not in await emulator.post("no_done", stream=True)
    assert b"\xe2\x80\xa8" in await emulator.post("text=u2028", stream=True)
    longest = max((await emulator.post("long_line_bytes=600000", stream=True)).split(b"\n"), key=len)
    assert len(longest) > 600_000


async def test_azures_first_and_late_chunks_have_their_odd_shapes(emulator: Running) -> None:
    events = await emulator.events("tokens=2 azure_first late_chunk")
    assert events[0]["choices"] == []
    assert events[0]["prompt_filter_results"]
    assert "delta" not in events[-1]["choices"][0]


@pytest.mark.parametrize(
    ("mode", "count", "completion"),
    [("normal", 1, 10), ("none", 0, 0), ("twice", 2, 10), ("in_last_content_chunk", 1, 10),
     ("with_choices", 1, 10), ("less:4", 1, 6), ("more:4", 1, 14)],
)  # fmt: skip
async def test_usage_comes_in_every_way(emulator: Running, mode: str, count: int, completion: int) -> None:
    events = await emulator.events(f"tokens=10 usage={mode}", stream_options=OPTIONS)
    found = usages(events)
    assert [usage["completion_tokens"] for usage in found] == [completion] * count
    carrier = next((event for event in events if event.get("usage")), None)
    if mode == "in_last_content_chunk":
        assert carrier is events[-1]
        assert carrier["choices"][0]["delta"]["content"]
        assert carrier["choices"][0]["finish_reason"] == "stop"
    elif mode == "with_choices":
        assert carrier is not None
        assert carrier["choices"]
    assert content_of(events) == text_of("ascii", 10)
    assert (await emulator.log())[0]["usage"] == (found[-1] if found else None)


@pytest.mark.parametrize("in_turn", [False, True])
async def test_several_choices_come_interleaved_or_in_turn(emulator: Running, in_turn: bool) -> None:
    events = await emulator.events(f"tokens=4 in_turn={in_turn}", n=2, stream_options=OPTIONS)
    order = [
        entry["index"] for event in events for entry in event["choices"] if entry["delta"].get("content")
    ]
    assert order == ([0] * 4 + [1] * 4 if in_turn else [0, 1] * 4)
    ends = [
        entry["index"] for event in events for entry in event["choices"] if entry["finish_reason"] == "stop"
    ]
    assert ends == [0, 1]
    assert usages(events)[0]["completion_tokens"] == 8
    assert (await emulator.log())[0]["tokens"] == [4, 4]


@pytest.mark.parametrize("kind", ["indexed", "unindexed"])
async def test_tool_call_deltas_join_to_json(emulator: Running, kind: str) -> None:
    events = await emulator.events(f"tokens=200 chunk_tokens=3 tool_calls={kind}")
    calls = [
        call
        for event in events
        for entry in event["choices"]
        for call in entry["delta"].get("tool_calls", [])
    ]
    assert all(("index" in call) == (kind == "indexed") for call in calls)
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert json.loads(arguments) == {"text": text_of("ascii", 200)}
    assert calls[0]["function"]["name"] == "look_up"
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
    events = await emulator.events("tokens=5 function_call")
    parts = [entry["delta"].get("function_call") for event in events for entry in event["choices"]]
    assert json.loads("".join(part["arguments"] for part in parts if part)) == {"text": text_of("ascii", 5)}


async def test_refusal_logprobs_and_reasoning_have_their_own_fields(emulator: Running) -> None:
    assert content_of(await emulator.events("tokens=5 refusal"), field="refusal") == text_of("ascii", 5)
    events = await emulator.events("tokens=5", logprobs=True)
    tokens = [
        part["token"]
        for event in events
        for entry in event["choices"]
        for part in (entry["logprobs"] or {}).get("content", [])
    ]
    assert "".join(tokens) == text_of("ascii", 5)
    events = await emulator.events("tokens=5 reasoning_content=4", stream_options=OPTIONS)
    assert content_of(events, field="reasoning_content") == text_of("ascii", 4)
    assert usages(events)[0]["completion_tokens_details"]["reasoning_tokens"] == 4


async def test_text_completions_stream_too(client: AsyncOpenAI) -> None:
    stream = await client.completions.create(model="m", prompt="Say", max_tokens=6, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == text_of("ascii", 6)
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_chunks_are_paced(emulator: Running) -> None:
    await emulator.post("tokens=5 delay_ms=20 first_delay_ms=50", stream=True)
    row = (await emulator.log())[0]
    assert row["last_write_at_ms"] - row["first_write_at_ms"] >= 50 + 4 * 20 - 5


async def test_a_connection_serves_one_stream_after_the_other(emulator: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(emulator.url.rsplit(":")[-1]))
    body = json.dumps(emulator.body("tokens=3", stream=True)).encode()
    for _ in range(3):
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n0\r\n\r\n"), 5)
        assert answer.startswith(b"HTTP/1.1 200 OK")
    writer.close()
    await writer.wait_closed()


async def test_a_client_of_http_1_0_reads_to_the_end_of_the_connection(emulator: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(emulator.url.rsplit(":")[-1]))
    body = json.dumps(emulator.body("tokens=3", stream=True)).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    answer = await asyncio.wait_for(reader.read(), 5)
    assert b"chunked" not in answer
    assert answer.endswith(b"data: [DONE]\n\n")
    writer.close()
    await writer.wait_closed()
