from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.meter.counting import (
    InputCount,
    count_chat_input,
    count_embedding_input,
    count_prompt_input,
    input_tokens_bound,
)
from tests.unit.counting import chat_requests as requests
from tests.unit.counting.facts import facts_of

pytestmark = pytest.mark.slow

SMALL_MESSAGES: tuple[Any, ...] = (
    {},
    1,
    {"role": ""},
    {"name": "a"},
    {"content": [{}] * 3},
    {"role": "tool"},
    {"role": "system"},
    {"tool_calls": [{"function": {}}] * 9},
    {"content": [{"type": "image"}] * 3},
    {"content": [{"type": "input_audio", "input_audio": {"data": ""}}]},
    {"function_call": {}},
)


def spellings(request: Any) -> list[bytes]:
    """The shortest JSON of a request and one full of escapes."""
    short = json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return [short, json.dumps(request).encode()]


def check(model: str, request: Any, counted: InputCount) -> None:
    assert 0 <= counted.tokens <= counted.hold_tokens
    for body in spellings(request):
        assert counted.hold_tokens <= input_tokens_bound(model, facts_of(request, body))


@settings(max_examples=200, deadline=None)
@given(model=st.sampled_from(requests.MODELS), request=requests.CHATS)
def test_the_bound_by_size_is_never_below_a_chats_count(model: str, request: Any) -> None:
    check(model, request, count_chat_input(model, request))


@settings(max_examples=100, deadline=None)
@given(
    model=st.sampled_from(requests.MODELS),
    value=st.one_of(
        requests.TEXT,
        st.lists(st.one_of(requests.TEXT, st.integers(0, 9), st.lists(st.integers(0, 9)))),
        requests.JSON,
    ),
)
def test_the_bound_by_size_is_never_below_a_prompts_or_embeddings_count(model: str, value: Any) -> None:
    check(
        model, {"prompt": value, "suffix": "x"}, count_prompt_input(model, {"prompt": value, "suffix": "x"})
    )
    check(model, {"input": value}, count_embedding_input(model, {"input": value}))


@pytest.mark.parametrize("model", requests.MODELS)
@pytest.mark.parametrize("kind", ["functions", "tools"])
def test_schemas_made_to_break_the_bound_do_not(model: str, kind: str) -> None:
    deep: dict[str, Any] = {}
    for _ in range(200):
        deep = {"type": "object", "properties": {"a": deep, "b": {}}}
    schemas = [
        {"properties": {"a": {"type": "integer", "enum": [7] * 3000}}},
        {"properties": {"a": {"type": "string", "enum": [""] * 3000}}},
        {"properties": {str(n): {} for n in range(3000)}},
        {"properties": {chr(0x4E00 + n): {} for n in range(3000)}},
        {"properties": {"!" * n: {} for n in range(200)}},
        {"properties": {"a": {"anyOf": [{}] * 3000}}},
        {"properties": {"a": {"type": ["null"] * 3000}}},
        {"properties": {"a": {"type": "number", "enum": [1e15, 1e11, 1e-3] * 500}}},
        {"properties": {f"k{n}": {"type": "string", "description": "line\n" * 20} for n in range(100)}},
        deep,
    ]
    for schema in schemas:
        functions = [{"name": "f", "parameters": schema}]
        many = [{"name": "a"}] * 2000
        for definitions in (functions, many):
            wrapped = [{"function": one} for one in definitions] if kind == "tools" else definitions
            request = {"messages": [{"role": "system"}] * 50, kind: wrapped}
            check(model, request, count_chat_input(model, request))


@pytest.mark.parametrize("model", requests.MODELS)
def test_bodies_made_of_the_smallest_parts_do_not_break_the_bound(model: str) -> None:
    for message in SMALL_MESSAGES:
        request = {"messages": [message] * 500}
        check(model, request, count_chat_input(model, request))
    for texts in ([""] * 5000, ["a"] * 5000, [1] * 5000, [[1]] * 5000, [[1] * 5000], "\U0001f600" * 5000):
        check(model, {"input": texts}, count_embedding_input(model, {"input": texts}))
        check(model, {"prompt": texts}, count_prompt_input(model, {"prompt": texts}))
