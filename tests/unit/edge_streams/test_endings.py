"""How streams end, what costs look like, and plain replies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.common.errors import InsufficientQuota, UpstreamFailed
from services.common.money import TokenCounts
from services.edge.dialects.openai_chat import CHAT_COMPLETIONS
from services.edge.dialects.openai_completions import COMPLETIONS
from services.edge.dialects.openai_embeddings import EMBEDDINGS
from services.edge.streams.sse import EventSplitter
from services.edge.streams.texts import TextKey
from tests.unit.edge_streams.corpus import HEAD, USAGE, chunk, ends, says


def datas(stream: bytes) -> list[Any]:
    splitter = EventSplitter()
    events = splitter.feed(stream)
    assert splitter.finish() == b""
    found = [event.data for event in events if event.data is not None]
    return [data.decode() if data == b"[DONE]" else json.loads(data) for data in found]


def test_a_stream_out_of_grant_ends_properly() -> None:
    reader = CHAT_COMPLETIONS.chunk_reader()
    for data in (says("a", index=0), says("b", index=1), ends(index=0), says("c", index=2)):
        reader.accept(data.encode())
    usage = CHAT_COMPLETIONS.usage_json_of(TokenCounts(input=9, output=3), 5_000)
    first, second, usage_chunk, error, done = datas(
        CHAT_COMPLETIONS.end_of_stream(reader, InsufficientQuota(), usage_json=usage)
    )
    for found, index in ((first, 1), (second, 2)):
        [choice] = found.pop("choices")
        assert (choice["index"], choice["delta"], choice["finish_reason"]) == (index, {}, "length")
        assert found == HEAD
    assert (usage_chunk["choices"], usage_chunk["id"]) == ([], "chatcmpl-1")
    assert (usage_chunk["usage"]["completion_tokens"], usage_chunk["usage"]["cost_usd"]) == (3, 0.000005)
    assert error["error"]["code"] == "insufficient_quota"
    assert set(error["error"]) == {"message", "type", "param", "code"}
    assert done == "[DONE]"


def test_a_stream_cut_before_its_first_chunk_ends_properly_too() -> None:
    finish, error, done = datas(
        CHAT_COMPLETIONS.end_of_stream(CHAT_COMPLETIONS.chunk_reader(), InsufficientQuota())
    )
    assert finish["choices"][0]["finish_reason"] == "length"
    assert isinstance(finish["created"], int)
    assert error["error"]["type"] == "insufficient_quota"
    assert done == "[DONE]"


def test_finished_choices_are_not_finished_again() -> None:
    reader = CHAT_COMPLETIONS.chunk_reader()
    reader.accept(says("a", finish="stop").encode())
    assert datas(CHAT_COMPLETIONS.end_of_stream(reader, None)) == ["[DONE]"]


def test_completions_end_in_their_own_shape() -> None:
    reader = COMPLETIONS.chunk_reader()
    reader.accept(chunk([{"index": 0, "text": "a", "finish_reason": None}]).encode())
    finish, _error, _done = datas(COMPLETIONS.end_of_stream(reader, InsufficientQuota()))
    assert finish["object"] == "text_completion"
    assert finish["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]


def test_an_error_event_has_an_error_key_and_ends_the_stream() -> None:
    stream = CHAT_COMPLETIONS.error_event(UpstreamFailed("Line\nend"))
    error, done = datas(stream)
    assert error == {
        "error": {"message": "Line\nend", "type": "server_error", "param": None, "code": "upstream_error"}
    }
    assert done == "[DONE]"


def test_the_cost_is_spliced_into_the_usage() -> None:
    data = b'{"id":"x", "usage": {"prompt_tokens": 9, "x":[1.0]}, "choices":[]}'
    assert CHAT_COMPLETIONS.with_cost(data, 1_500_000) == data.replace(b"[1.0]}", b'[1.0],"cost_usd":0.0015}')


@pytest.mark.parametrize("data", [b'{"usage":null}', b"{}", b"[DONE]", b'{"usage":5}', b""])
def test_without_usage_there_is_nothing_to_splice(data: bytes) -> None:
    assert CHAT_COMPLETIONS.with_cost(data, 1) is data


def test_a_cost_in_data_of_several_lines_stays_on_one() -> None:
    data = b'{"usage":\n{"prompt_tokens":9}}'
    assert json.loads(CHAT_COMPLETIONS.with_cost(data, 0)) == {"usage": {"prompt_tokens": 9, "cost_usd": 0.0}}
    assert b"\n" not in CHAT_COMPLETIONS.with_cost(data, 0)


def test_a_plain_reply_is_read() -> None:
    message = {
        "role": "assistant",
        "content": "Hi",
        "reasoning_content": "Hm",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    choices = [
        {"index": 0, "message": message, "finish_reason": "stop"},
        {"index": 1, "message": {"content": None, "refusal": "No"}, "finish_reason": "stop"},
    ]
    facts = CHAT_COMPLETIONS.read_plain(json.dumps({**HEAD, "choices": choices, "usage": USAGE}).encode())
    assert facts.usage is not None
    assert facts.usage.tokens == TokenCounts(input=9, output=4)
    assert facts.texts == {
        TextKey(0, "content"): "Hi",
        TextKey(0, "reasoning"): "Hm",
        TextKey(0, "tool:0"): "f{}",
        TextKey(1, "refusal"): "No",
    }


def test_an_odd_plain_reply_is_read_too() -> None:
    body = json.dumps(
        {
            "choices": [{"index": "x", "message": {"content": [{"type": "text", "text": "Hi"}]}}],
            "usage": USAGE,
        }
    ).encode()
    facts = CHAT_COMPLETIONS.read_plain(body)
    assert facts.texts == {TextKey(0, "content"): "Hi"}
    assert facts.usage is not None


def test_a_plain_completion_is_read() -> None:
    facts = COMPLETIONS.read_plain(b'{"choices":[{"index":0,"text":"Hi"}]}')
    assert (facts.usage, facts.texts) == (None, {TextKey(0, "text"): "Hi"})


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b"[" * 100_000])
def test_garbage_is_flagged(body: bytes) -> None:
    assert CHAT_COMPLETIONS.read_plain(body).is_garbage
    assert EMBEDDINGS.read_plain(body).is_garbage


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b'{"error":{"message":"no","code":"c","type":"t"}}', "no", "c"),
        (b'{"error":"no"}', "no", ""),
        (b'{"object":"error","message":"no","code":503}', "no", "503"),
    ],
)
def test_errors_in_plain_replies_are_found(body: bytes, message: str, code: str) -> None:
    error = CHAT_COMPLETIONS.read_plain(body).error
    assert error is not None
    assert (error.message, error.code) == (message, code)


def test_an_embedding_reply_gives_its_usage() -> None:
    body = json.dumps(
        {"data": [{"embedding": [0.1] * 100}], "usage": {"prompt_tokens": 7, "total_tokens": 7}}
    ).encode()
    facts = EMBEDDINGS.read_plain(body)
    assert facts.usage is not None
    assert facts.usage.tokens == TokenCounts(input=7)
