"""What is read from requests, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import BadRequest
from services.edge.dialects.endpoint import Endpoint
from services.edge.dialects.openai_chat import CHAT_COMPLETIONS
from services.edge.dialects.openai_completions import COMPLETIONS
from services.edge.dialects.openai_embeddings import EMBEDDINGS
from services.edge.dialects.openai_moderations import MODERATIONS
from services.edge.dialects.registry import ENDPOINTS

MESSAGES = [{"role": "user", "content": "Hi"}]
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "gpt-4o", "messages": MESSAGES, **fields}).encode()


def param_of(endpoint: Endpoint, body: bytes) -> str | None:
    with pytest.raises(BadRequest) as caught:
        endpoint.read_request(body)
    assert caught.value.status == 400
    assert caught.value.message
    return caught.value.param


def test_a_chat_request_is_read() -> None:
    body = chat(stream=True, n=2, max_tokens=100, stream_options={"include_usage": True}, unknown={"x": [1]})
    request = CHAT_COMPLETIONS.read_request(body)
    assert (request.model, request.stream, request.wants_usage) == ("gpt-4o", True, True)
    assert (request.output_tokens_max, request.choices) == (100, 2)
    assert (request.facts.body_bytes, request.facts.message_count) == (len(body), 1)
    assert (request.facts.image_count, request.facts.has_tools) == (0, False)


def test_what_is_null_counts_as_absent() -> None:
    request = CHAT_COMPLETIONS.read_request(
        chat(
            stream=None, n=None, max_tokens=None, max_completion_tokens=None, stream_options=None, tools=None
        )
    )
    assert (request.stream, request.wants_usage, request.output_tokens_max) == (False, False, None)
    assert (request.choices, request.facts.has_tools) == (1, False)


def test_the_larger_of_both_limits_is_held_because_upstreams_differ_in_which_they_obey() -> None:
    request = CHAT_COMPLETIONS.read_request(chat(max_tokens=10, max_completion_tokens=2_000))
    assert request.output_tokens_max == 2_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"5",
        b"not json",
        b'{"model":"x"',
        b'{"model":"gpt-4o","messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":"gpt-4o","messages":[{"role":"user","content":"x"}],"max_tokens":NaN}',
        b'{"model":"gpt-4o","messages":[{"role":"user","content":"x"}],"temperature":Infinity}',
        b"[" * 100_000,
        b'{"model":"gpt-4o","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"\xef\xbb\xbf{}",
    ],
    ids=range(13),
)
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_what_is_no_json_object_is_refused(endpoint: Endpoint, body: bytes) -> None:
    assert param_of(endpoint, body) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"model": "x" * 300}, "model"),
        ({"model": ["gpt-4o"]}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": {"role": "user"}}, "messages"),
        ({"messages": ["Hi"]}, "messages"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": True}, "stream_options"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"n": "2"}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "x"}, "max_tokens"),
        ({"max_tokens": 1e30}, "max_tokens"),
        ({"max_tokens": 10**400}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10.0}, "max_tokens"),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
        ({"max_completion_tokens": 2**31}, "max_completion_tokens"),
    ],
    ids=str,
)
def test_fields_that_bound_the_hold_are_checked(fields: dict[str, Any], param: str) -> None:
    assert param_of(CHAT_COMPLETIONS, chat(**fields)) == param


@pytest.mark.parametrize(
    ("smuggled", "param"),
    [
        (b'"max_tokens":100000', "max_tokens"),
        (rb'"max\u005ftokens":100000', "max_tokens"),
        (b'"MAX_TOKENS":100000', "MAX_TOKENS"),
        (b'"maxtoKens":100000', None),
        ('"max_to\u212aens":100000'.encode(), "max_to\u212aens"),
        ('"me\u017fsages":[]'.encode(), "me\u017fsages"),
    ],
)
def test_a_second_reading_of_a_field_can_not_be_smuggled_in(smuggled: bytes, param: str | None) -> None:
    body = chat(max_tokens=1)[:-1] + b", " + smuggled + b"}"
    if param is None:
        assert CHAT_COMPLETIONS.read_request(body).output_tokens_max == 1
    else:
        assert param_of(CHAT_COMPLETIONS, body) == param


def test_duplicate_stream_options_are_refused_inside_too() -> None:
    body = chat()[:-1] + b',"stream_options":{"include_usage":false,"include_usage":true}}'
    assert param_of(CHAT_COMPLETIONS, body) == "stream_options"


@pytest.mark.parametrize(
    ("content", "images"),
    [
        ("Hi", 0),
        (None, 0),
        ([], 0),
        ([{"type": "text", "text": "Hi"}], 0),
        ([{"type": "text", "text": "Hi"}, IMAGE, IMAGE], 2),
        ([{"type": "input_image"}, {"type": "input_audio"}, {"type": "file"}], 1),
        ([{"type": "my_image_v2"}, {"type": "text"}, {"type": "new"}], 2),
        (["Hi", "there"], 1),
        ({"type": "image_url"}, 1),
        (5, 1),
        ([{"type": "tool_result", "content": [IMAGE, IMAGE]}], 5),
        ([{"type": 5}, IMAGE], 3),
    ],
    ids=str,
)
def test_images_are_never_counted_too_low(content: object, images: int) -> None:
    body = chat(messages=[{"role": "user", "content": content}])
    assert CHAT_COMPLETIONS.read_request(body).facts.image_count == images


@pytest.mark.parametrize(
    ("message", "files"),
    [
        ({"content": "Hi"}, 0),
        ({"content": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}]}, 0),
        ({"content": [{"type": "file"}, {"type": "input_file"}, {"type": "video_url"}, IMAGE]}, 3),
        ({"content": [{"type": "document"}, {"type": "text", "text": "file"}]}, 1),
        ({"content": None, "audio": {"id": "audio_1"}}, 1),
        ({"content": "Hi", "audio": None}, 0),
        ({"content": [{"type": "tool_result", "content": [{"type": "document"}]}]}, 1),
        ({"content": {"type": "file"}}, 1),
        ({"content": [{"type": 5}, {"type": "file"}]}, 1),
    ],
    ids=str,
)
def test_files_are_never_counted_too_low(message: dict[str, Any], files: int) -> None:
    body = chat(messages=[{"role": "user", **message}])
    assert CHAT_COMPLETIONS.read_request(body).facts.file_count == files


DATA = "A" * 1_000


@pytest.mark.parametrize(
    ("part", "image_bytes"),
    [
        ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}}, 1_000),
        ({"type": "input_image", "image_url": f"data:image/jpeg;base64,{DATA}"}, 1_000),
        ({"type": "image_url", "image_url": {"url": f"data:text/plain;base64,{DATA}"}}, 0),
        ({"type": "image_url", "image_url": {"url": f"https://example.com/{DATA}"}}, 0),
        ({"type": "image_url", "image_url": {"url": f"data:image/png,{DATA}"}}, 0),
        ({"type": "image_url", "image_url": {"url": 5}}, 0),
        ({"type": "image_url", "image_url": [DATA]}, 0),
        ({"type": "image_url"}, 0),
        ({"type": "text", "text": "", "image_url": {"url": f"data:image/png;base64,{DATA}"}}, 0),
        ({"type": "new", "image_url": {"url": f"data:image/png;base64,{DATA}"}}, 0),
    ],
    ids=range(10),
)
def test_only_an_images_own_data_is_no_text(part: dict[str, Any], image_bytes: int) -> None:
    body = chat(messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}, part]}])
    assert CHAT_COMPLETIONS.read_request(body).facts.image_bytes == image_bytes
    escaped = body.replace(b"image/", b"image\\/")
    assert CHAT_COMPLETIONS.read_request(escaped).facts.image_bytes == image_bytes


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, True),
        ({"functions": [{"name": "f"}]}, True),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, True),
        ({"response_format": {"type": "json_object"}}, False),
        ({"tools": []}, False),
    ],
    ids=str,
)
def test_tools_are_noticed(fields: dict[str, Any], expected: bool) -> None:
    assert CHAT_COMPLETIONS.read_request(chat(**fields)).facts.has_tools is expected


@pytest.mark.parametrize(
    ("fields", "choices", "limit"),
    [
        ({"prompt": "Hi"}, 1, None),
        ({"prompt": "Hi", "n": 2, "best_of": 5}, 5, None),
        ({"prompt": ["a", "b", "c"], "n": 2}, 6, None),
        ({"prompt": [1, 2, 3]}, 1, None),
        ({"prompt": [[1, 2], [3]], "best_of": 3}, 6, None),
        ({"prompt": "Hi", "max_tokens": 0}, 1, 1),
        ({"prompt": None, "max_tokens": 7}, 1, 7),
    ],
    ids=str,
)
def test_completions_count_every_answer_that_is_generated(
    fields: dict[str, Any], choices: int, limit: int | None
) -> None:
    request = COMPLETIONS.read_request(json.dumps({"model": "m", **fields}).encode())
    assert (request.choices, request.output_tokens_max) == (choices, limit)


@pytest.mark.parametrize(
    ("given_input", "count"), [("Hi", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2]], 2)], ids=str
)
def test_embeddings_have_inputs_and_no_output(given_input: object, count: int) -> None:
    request = EMBEDDINGS.read_request(json.dumps({"model": "m", "input": given_input}).encode())
    assert (request.facts.message_count, request.output_tokens_max, request.stream) == (count, 0, False)


@pytest.mark.parametrize("given_input", [None, [], {}, 5, True], ids=str)
def test_embeddings_without_input_are_refused(given_input: object) -> None:
    assert param_of(EMBEDDINGS, json.dumps({"model": "m", "input": given_input}).encode()) == "input"


def test_embeddings_do_not_stream() -> None:
    assert param_of(EMBEDDINGS, b'{"model":"m","input":"x","stream":true}') == "stream"


def test_moderations_have_a_default_model_and_may_hold_images() -> None:
    request = MODERATIONS.read_request(json.dumps({"input": [{"type": "text", "text": "x"}, IMAGE]}).encode())
    assert (request.model, request.facts.image_count) == ("omni-moderation-latest", 1)


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=80), endpoint=st.sampled_from(ENDPOINTS))
def test_no_body_raises_anything_but_bad_request(body: bytes, endpoint: Endpoint) -> None:
    with pytest.raises(BadRequest):
        endpoint.read_request(body)


# --- what goes upstream -----------------------------------------------------------------------


def test_a_body_that_needs_no_change_is_the_same_object() -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    assert CHAT_COMPLETIONS.upstream_body(body) is body
    assert CHAT_COMPLETIONS.upstream_body(body, include_usage=True) is body
    assert CHAT_COMPLETIONS.upstream_body(body, model_rename="gpt-4o") is body


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"include_usage": True}),
        ({"stream_options": None}, {"include_usage": True}),
        ({"stream_options": {}}, {"include_usage": True}),
        ({"stream_options": {"include_usage": False, "x": 1}}, {"include_usage": True, "x": 1}),
    ],
    ids=str,
)
def test_usage_is_asked_for(options: dict[str, Any], expected: dict[str, Any]) -> None:
    body = chat(stream=True, **options)
    changed = json.loads(CHAT_COMPLETIONS.upstream_body(body, include_usage=True))
    assert changed == {**json.loads(body), "stream_options": expected}


@pytest.mark.parametrize(
    ("model", "rename", "fields", "written"),
    [
        ("gpt-4o", None, {}, {"max_tokens": 77}),
        ("gpt-4o", None, {"max_tokens": None}, {"max_tokens": 77}),
        ("gpt-4o", None, {"max_completion_tokens": 500}, {"max_completion_tokens": 77}),
        (
            "gpt-4o",
            None,
            {"max_tokens": 5, "max_completion_tokens": 5},
            {"max_tokens": 77, "max_completion_tokens": 77},
        ),
        ("o3-mini", None, {}, {"max_completion_tokens": 77}),
        ("gpt-5.1", None, {}, {"max_completion_tokens": 77}),
        ("best", "openai/gpt-5", {}, {"max_completion_tokens": 77}),
        ("o3", "deepseek-chat", {}, {"max_tokens": 77}),
    ],
    ids=str,
)
def test_the_output_limit_is_written_where_the_model_reads_it(
    model: str, rename: str | None, fields: dict[str, Any], written: dict[str, int]
) -> None:
    body = chat(model=model, **fields)
    changed = json.loads(CHAT_COMPLETIONS.upstream_body(body, output_tokens_max=77, model_rename=rename))
    assert changed == {**json.loads(body), "model": rename or model, **written}


def test_the_rest_of_a_body_keeps_its_bytes() -> None:
    body = b'{ "messages" : [ {"content":"\\u4e16 1.0e0 \xe4\xb8\x96"} ],\n "model":"a", "x": 1.50 }'
    changed = CHAT_COMPLETIONS.upstream_body(body, model_rename='b"')
    assert changed == body.replace(b'"a"', rb'"b\""')


def test_embeddings_get_no_output_limit() -> None:
    body = b'{"model":"m","input":"x"}'
    assert EMBEDDINGS.upstream_body(body, output_tokens_max=5) is body
