"""From a body's bytes to what is held: the edge reads the facts, the meter bounds them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import BadRequest
from services.edge.dialects.endpoint import Endpoint
from services.edge.dialects.openai_chat import CHAT_COMPLETIONS
from services.edge.dialects.openai_embeddings import EMBEDDINGS
from services.meter.counting import (
    InputCount,
    count_chat_input,
    count_embedding_input,
    input_tokens_bound,
    whole_context_tokens,
)
from tests.unit.counting import chat_requests as requests
from tests.unit.counting.billed import png_address
from tests.unit.counting.facts import facts_of
from tests.unit.counting.test_bounds import spellings

CONTEXT_TOKENS = 1_000_000


def bodies(request: Any) -> list[bytes]:
    plain, escaped = spellings(request)
    return [plain, escaped, escaped.replace(b"/", b"\\/")]


def check(endpoint: Endpoint, model: str, request: dict[str, Any], counted: InputCount) -> None:
    """What the edge reports is at least what the parsed request says, and its bound at least the count."""
    held = counted.hold_tokens
    if counted.whole_context:
        held = max(held, whole_context_tokens(CONTEXT_TOKENS))
    for body in bodies(request):
        try:
            facts = endpoint.read_request(body).facts
        except BadRequest:
            continue
        least = facts_of(request, body)
        assert facts.image_count >= least.image_count
        assert bool(facts.file_count) >= bool(least.file_count)
        assert 0 <= facts.image_bytes <= facts.body_bytes
        assert held <= input_tokens_bound(model, facts, context_tokens=CONTEXT_TOKENS)


@settings(max_examples=300, deadline=None)
@given(
    model=st.sampled_from(requests.MODELS),
    request=requests.CHATS,
    messages=st.lists(
        requests.MESSAGES.filter(lambda message: isinstance(message, dict)), min_size=1, max_size=5
    ),
)
def test_the_bound_of_a_chats_body_is_never_below_its_count(
    model: str, request: dict[str, Any], messages: list[Any]
) -> None:
    chat = request | {"model": "m", "messages": messages}
    check(CHAT_COMPLETIONS, model, chat, count_chat_input(model, chat))


@settings(max_examples=100, deadline=None)
@given(
    model=st.sampled_from(requests.MODELS),
    parts=st.lists(st.one_of(requests.PARTS, requests.TEXT), min_size=1, max_size=5),
)
def test_the_bound_of_an_embeddings_body_is_never_below_its_count(model: str, parts: list[Any]) -> None:
    request = {"model": "m", "input": parts}
    check(EMBEDDINGS, model, request, count_embedding_input(model, request))


def _chat_with(*parts: dict[str, Any]) -> bytes:
    content = [{"type": "text", "text": "What is this?"}, *parts]
    return spellings({"model": "m", "messages": [{"role": "user", "content": content}]})[0]


def test_a_large_image_is_not_held_as_text() -> None:
    url = png_address(1_000, 1_000) + "A" * 2_000_000
    facts = CHAT_COMPLETIONS.read_request(_chat_with({"type": "image_url", "image_url": {"url": url}})).facts
    assert facts.image_bytes > 2_000_000
    assert input_tokens_bound("gpt-4o", facts) < 2_000


@pytest.mark.parametrize(
    "part",
    [{"type": "file", "file": {"file_id": "file-1"}}, {"type": "video_url", "video_url": {"url": "x"}}],
)
@pytest.mark.parametrize(("context_tokens", "held"), [(128_000, 128_000), (None, 1_048_576)])
def test_what_cannot_be_seen_holds_the_whole_context(
    part: dict[str, Any], context_tokens: int | None, held: int
) -> None:
    facts = CHAT_COMPLETIONS.read_request(_chat_with(part)).facts
    assert input_tokens_bound("gpt-4o", facts, context_tokens=context_tokens) == held
