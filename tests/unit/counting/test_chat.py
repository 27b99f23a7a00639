from __future__ import annotations

import base64
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.meter.counting import count_chat_input, count_embedding_input, count_prompt_input, count_text
from services.meter.counting.json_text import compact_json
from services.meter.counting.tool_format import FUNCTIONS, TOOLS, format_namespace
from tests.unit.counting import chat_requests as requests
from tests.unit.counting.billed import image_message


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


@settings(max_examples=80, deadline=None)
@given(value=requests.JSON, model=st.sampled_from(requests.MODELS))
def test_any_json_value_counts_as_something(value: Any, model: str) -> None:
    for counter in (count_chat_input, count_prompt_input, count_embedding_input):
        for request in (
            value,
            {"messages": value, "prompt": value, "input": value, "tools": value},
            user([value]),
        ):
            assert counter(model, request).tokens >= 0


def test_nesting_deeper_than_python_recurses_is_counted() -> None:
    deep: Any = []
    schema: Any = {}
    for _ in range(20_000):
        deep, schema = [deep], {"type": "object", "properties": {"a": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    request = {
        "messages": [{"role": "user", "content": [{"type": "odd", "x": deep}]}],
        "tools": [tool, {"type": "x", "y": deep}],
    }
    assert count_chat_input("gpt-4o", request).tokens > 1_000


def test_only_text_messages_of_a_known_template_are_exact() -> None:
    assert count_chat_input("gpt-4o", user("hello")).exact
    assert count_chat_input("gpt-4o", user([{"type": "text", "text": "hello"}])) == count_chat_input(
        "gpt-4o", user("hello")
    )
    assert not count_chat_input("o3", user("hello")).exact
    assert not count_chat_input("claude-3", user("hello")).exact
    assert not count_chat_input("gpt-4o", image_message("hi", (9, 9), "low")).exact
    assert not count_chat_input("gpt-4o", {**user("hello"), "tools": [{"type": "web_search"}]}).exact


def test_of_an_unknown_tokenizer_the_bytes_are_held() -> None:
    text = "\u4f60\u597d, world. " * 50
    counted = count_chat_input("claude-sonnet-4-5", user(text))
    assert counted.hold_tokens >= len(text.encode())
    assert counted.tokens == pytest.approx(count_text("gpt-4o", text), abs=10)


def test_a_remote_image_is_held_as_the_worst_one_and_a_small_one_as_it_is() -> None:
    remote = user([{"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}])
    assert count_chat_input("gpt-4o", remote).hold_tokens == 85 + 8 * 170 + 7
    assert count_chat_input("gpt-4o", image_message("", (400, 300), "auto")).hold_tokens == 85 + 170 + 7
    low = user([{"type": "image_url", "image_url": {"url": "https://example.com/cat.png", "detail": "low"}}])
    assert count_chat_input("gpt-4o", low).hold_tokens == 85 + 7


def test_a_wav_costs_by_its_seconds_and_another_format_is_held_by_its_bytes() -> None:
    head = (
        b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 24_000, 48_000, 2, 16) + b"data\0\0\0\0"
    )
    wav = base64.b64encode(head + bytes(480_000)).decode()
    audio = user([{"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}}])
    assert count_chat_input("gpt-4o-audio-preview", audio).tokens == pytest.approx(100 + 7, abs=2)
    mp3 = base64.b64encode(b"\xff\xfb" + bytes(160_000)).decode()
    audio = user([{"type": "input_audio", "input_audio": {"data": mp3, "format": "mp3"}}])
    counted = count_chat_input("gpt-4o-audio-preview", audio)
    assert counted.tokens == pytest.approx(100 + 7, abs=2)
    # 160,000 bytes are at most 160 s, at the slowest 8 kbit/s.
    assert counted.hold_tokens >= 1_600


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}},
        {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
    ],
)
def test_what_cannot_be_seen_asks_for_the_whole_context(part: dict[str, Any]) -> None:
    assert count_chat_input("gpt-4o", user([part])).whole_context
    assert not count_chat_input("gpt-4o", user("text")).whole_context


def test_earlier_audio_by_id_asks_for_the_whole_context() -> None:
    assert count_chat_input(
        "gpt-4o-audio-preview", {"messages": [{"role": "assistant", "audio": {"id": "a"}}]}
    ).whole_context


def test_an_output_schema_is_part_of_the_input() -> None:
    schema = {"name": "answer", "schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    plain = count_chat_input("gpt-4o", user("hi"))
    shaped = count_chat_input(
        "gpt-4o", {**user("hi"), "response_format": {"type": "json_schema", "json_schema": schema}}
    )
    assert shaped.tokens > plain.tokens + 15


def test_constraints_that_the_namespace_does_not_show_are_held() -> None:
    shown = {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}
    pattern = {"type": "string", "pattern": "^[a-z]+$" * 20}
    more = {"name": "f", "parameters": {"properties": {"a": pattern}}}
    held = [
        count_chat_input("gpt-4o", {**user("hi"), "functions": [one]}).hold_tokens for one in (shown, more)
    ]
    assert held[1] > held[0] + 60


def test_functions_and_tools_are_written_in_their_own_dialects() -> None:
    inner = {"type": "object", "properties": {"b": {"type": "string", "description": "deep"}}}
    function = {
        "name": "f",
        "description": "does f",
        "parameters": {"required": ["a"], "properties": {"a": inner}},
    }
    assert format_namespace([function], FUNCTIONS) == (
        "namespace functions {\n\n// does f\n"
        "type f = (_: {\na: {\n  b?: string,\n},\n}) => any;\n\n} // namespace functions"
    )
    assert format_namespace([function], TOOLS) == (
        "namespace functions {\n\n// does f\n"
        "type f = (_: { a: {\n// deep\nb?: string,\n} }) => any;\n\n} // namespace functions"
    )


def test_prompts_of_every_shape_count_texts_and_token_ids() -> None:
    assert count_prompt_input("davinci-002", {"prompt": "hello world"}).tokens == 2
    assert count_prompt_input("davinci-002", {"prompt": ["hello", "hello world"]}).tokens == 3
    assert count_prompt_input("davinci-002", {"prompt": [1, 2, 3, 4]}).tokens == 4
    assert count_prompt_input("davinci-002", {"prompt": [[1, 2], [3]]}).tokens == 3
    assert count_prompt_input("davinci-002", {}).tokens == 1
    assert count_embedding_input("text-embedding-3-small", {"input": ["hello world", "hi"]}).tokens == 3
    assert count_embedding_input("text-embedding-3-small", {"input": "hello world"}).exact
    assert not count_embedding_input("bge-m3", {"input": "hello world"}).exact


@settings(max_examples=100, deadline=None)
@given(value=requests.JSON)
def test_compact_json_is_json_and_never_longer_than_pythons(value: Any) -> None:
    import json  # noqa: PLC0415

    text = compact_json(value)
    assert json.loads(text) == value
    assert len(text) <= len(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
