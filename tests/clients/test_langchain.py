"""LangChain, unmodified, for Python and for JavaScript."""

from __future__ import annotations

import importlib
from typing import Any

import openai
import pytest

from tests.clients.payer import Payer
from tests.clients.reading import read_until_it_fails
from tests.clients.tools import require_distribution, run_script

MODEL = "gpt-4o-mini"
PROMPT = "Hello [[emulate tokens=20]]"


def js(case: str, payer: Payer) -> Any:
    return run_script(
        "@langchain/openai", "langchain.mjs", case, base_url=payer.base_url, api_key=payer.api_key
    )


@pytest.fixture
def langchain_openai() -> Any:
    """The module; LangChain may not be installed."""
    require_distribution("langchain-openai", "requirements-clients.txt")
    return importlib.import_module("langchain_openai")


def options_of(payer: Payer) -> dict[str, Any]:
    return {"base_url": payer.base_url, "api_key": payer.api_key, "max_retries": 0}


def weather(text: str) -> str:
    """The weather of a city."""
    return f"rain in {text}"


def test_python_invokes(payer: Payer, langchain_openai: Any) -> None:
    answer = langchain_openai.ChatOpenAI(model=MODEL, **options_of(payer)).invoke(PROMPT)
    assert answer.content
    (row,) = payer.check(charged=1)
    assert answer.usage_metadata["output_tokens"] == row["tokens"]["output"] == 20


async def test_python_streams_without_blocking(payer: Payer, langchain_openai: Any) -> None:
    # LangChain keeps a client of its own open for ever.
    async with openai.DefaultAsyncHttpxClient() as own:
        options = options_of(payer) | {"stream_usage": True, "http_async_client": own}
        model = langchain_openai.ChatOpenAI(model=MODEL, **options)
        chunks = [chunk async for chunk in model.astream(PROMPT)]
    assert "".join(chunk.content for chunk in chunks)
    (usage,) = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    (row,) = payer.check(charged=1)
    assert usage["output_tokens"] == row["tokens"]["output"]


def test_python_calls_tools(payer: Payer, langchain_openai: Any) -> None:
    model = langchain_openai.ChatOpenAI(model=MODEL, **options_of(payer)).bind_tools([weather])
    answer = model.invoke("Weather? [[emulate tokens=12 tool_calls=indexed]]")
    assert [call["name"] for call in answer.tool_calls] == ["weather"]
    payer.check(charged=1)


def test_python_embeds(payer: Payer, langchain_openai: Any) -> None:
    # With `check_embedding_ctx_length` it would fetch a tokenizer from the network.
    embedder = langchain_openai.OpenAIEmbeddings(
        model="text-embedding-3-small", check_embedding_ctx_length=False, **options_of(payer)
    )
    assert [len(one) for one in embedder.embed_documents(["one", "two"])] == [1536, 1536]
    payer.check(charged=1)


def test_python_raises_when_the_upstream_cuts_the_stream(payer: Payer, langchain_openai: Any) -> None:
    model = langchain_openai.ChatOpenAI(model=MODEL, **options_of(payer))
    stream = model.stream("Hello [[emulate tokens=40 fault=close_after:5]]")
    texts, error = read_until_it_fails(chunk.content for chunk in stream)
    assert isinstance(error, openai.APIError)
    assert "".join(texts)
    (row,) = payer.settled(1)
    assert row["tokens"]["output"] == 5


@pytest.mark.parametrize("case", ["invoked", "streamed"])
def test_javascript_answers_and_usage_agrees_with_the_charge(payer: Payer, case: str) -> None:
    said = js(case, payer)
    assert said["text"]
    (row,) = payer.check(charged=1)
    assert said["usage"]["output_tokens"] == row["tokens"]["output"] == 20


def test_javascript_calls_tools(payer: Payer) -> None:
    assert [name for name, _arguments in js("tools", payer)] == ["weather"]
    payer.check(charged=1)


def test_javascript_embeds(payer: Payer) -> None:
    assert js("embeddings", payer) == [1536, 1536]
    payer.check(charged=1)


def test_javascript_raises_when_the_upstream_cuts_the_stream(payer: Payer) -> None:
    assert js("cut", payer)["raised"]
    (row,) = payer.settled(1)
    assert row["tokens"]["output"] == 5
