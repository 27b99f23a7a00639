"""The official OpenAI SDK for Python, unmodified, and what its calls cost."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.clients.payer import Payer, sent_by

MODEL = "gpt-4o-mini"
WEATHER: Any = {
    "name": "weather",
    "description": "The weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["c", "f"]}},
        "required": ["city"],
    },
}
TOOLS: Any = [{"type": "function", "function": WEATHER}]


def said(content: str) -> Any:
    return [{"role": "system", "content": "You are terse."}, {"role": "user", "content": content}]


def client(payer: Payer, *, base_url_of: str | None = None, **options: Any) -> openai.OpenAI:
    """`base_url_of`: the address of a relay in front of the edge."""
    base_url = f"{base_url_of or payer.edge_url}/v1"
    return openai.OpenAI(base_url=base_url, api_key=payer.api_key, **options)


def async_client(payer: Payer) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=payer.base_url, api_key=payer.api_key)


def test_a_plain_answer(payer: Payer) -> None:
    with client(payer) as sdk:
        answer = sdk.chat.completions.create(
            model=MODEL, messages=said("Hello [[emulate tokens=20]]"), max_tokens=50, temperature=0.5, seed=7
        )
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20
    (row,) = payer.check(charged=1)
    assert answer._request_id == row["request_id"]
    assert row["tokens"]["output"] == 20


async def test_a_plain_answer_without_blocking(payer: Payer) -> None:
    async with async_client(payer) as sdk:
        answer = await sdk.chat.completions.create(
            model=MODEL, messages=said("Hello [[emulate tokens=20 cached_tokens=8 reasoning_tokens=5]]")
        )
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 5
    (row,) = payer.check(charged=1)
    assert row["tokens"]["cached_input"] == 8


def test_a_stream_says_the_same_text_and_no_usage_unasked(payer: Payer) -> None:
    with client(payer) as sdk:
        plain = sdk.chat.completions.create(model=MODEL, messages=said("Hello [[emulate tokens=30]]"))
        stream = sdk.chat.completions.create(
            model=MODEL, messages=said("Hello [[emulate tokens=30]]"), stream=True
        )
        chunks = list(stream)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain.choices[0].message.content
    )
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)
    plain_row, stream_row = payer.check(charged=2)
    assert plain_row["cost_nanos"] == stream_row["cost_nanos"]
    assert stream_row["stream"]


async def test_a_stream_with_usage_without_blocking(payer: Payer) -> None:
    async with async_client(payer) as sdk:
        stream = await sdk.chat.completions.create(
            model=MODEL,
            messages=said("Hello [[emulate tokens=30]]"),
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 30
    assert all(chunk.usage is None for chunk in chunks[:-1])
    payer.check(charged=1)


@pytest.mark.parametrize("shape", ["tool_calls=indexed", "function_call"])
def test_tools_and_functions_are_called(payer: Payer, shape: str) -> None:
    offered: Any = {"functions": [WEATHER]} if shape == "function_call" else {"tools": TOOLS}
    messages = said(f"Weather in Oslo? [[emulate tokens=12 {shape}]]")
    with client(payer) as sdk:
        plain = sdk.chat.completions.create(model=MODEL, messages=messages, **offered)
        stream = sdk.chat.completions.create(model=MODEL, messages=messages, stream=True, **offered)
        deltas = [chunk.choices[0].delta for chunk in stream]
    message = plain.choices[0].message
    if shape == "function_call":
        assert message.function_call is not None
        name, arguments = message.function_call.name, message.function_call.arguments
        parts: Any = [delta.function_call for delta in deltas if delta.function_call]
    else:
        assert message.tool_calls is not None
        function: Any = message.tool_calls[0]
        name, arguments = function.function.name, function.function.arguments
        parts = [call.function for delta in deltas for call in delta.tool_calls or ()]
    assert name == parts[0].name == "weather"
    assert arguments == "".join(part.arguments or "" for part in parts)
    payer.check(charged=2)


def test_the_streaming_helper_puts_tool_calls_together(payer: Payer) -> None:
    with (
        client(payer) as sdk,
        sdk.chat.completions.stream(
            model=MODEL,
            messages=said("Weather in Oslo? [[emulate tokens=12 tool_calls=indexed]]"),
            tools=TOOLS,
            stream_options={"include_usage": True},
        ) as stream,
    ):
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.usage is not None
    payer.check(charged=1)


def test_a_whole_tool_conversation(payer: Payer) -> None:
    with client(payer) as sdk:
        messages = said("Weather in Oslo? [[emulate tokens=9 tool_calls=indexed]]")
        first = sdk.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
        asked: Any = first.choices[0].message
        messages += [
            asked.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": "rain"},
        ]
        sdk.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, tool_choice="auto")
    payer.check(charged=2)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_several_choices(payer: Payer, *, stream: bool) -> None:
    messages = said("Hello [[emulate tokens=10]]")
    with client(payer) as sdk:
        if stream:
            chunks = list(sdk.chat.completions.create(model=MODEL, messages=messages, n=2, stream=True))
            choices: Any = [choice for chunk in chunks for choice in chunk.choices]
        else:
            choices = sdk.chat.completions.create(model=MODEL, messages=messages, n=2).choices
    assert {choice.index for choice in choices} == {0, 1}
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop", "stop"]
    (row,) = payer.check(charged=1)
    assert row["tokens"]["output"] == 20


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_log_probabilities(payer: Payer, *, stream: bool) -> None:
    messages = said("Hello [[emulate tokens=5]]")
    with client(payer) as sdk:
        if stream:
            chunks = sdk.chat.completions.create(
                model=MODEL, messages=messages, logprobs=True, top_logprobs=1, stream=True
            )
            found: Any = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices]
            tokens = [one for part in found if part for one in part.content or ()]
        else:
            answer: Any = sdk.chat.completions.create(
                model=MODEL, messages=messages, logprobs=True, top_logprobs=1
            )
            tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 5
    payer.check(charged=1)


def test_embeddings_are_the_same_as_base64_and_as_numbers(payer: Payer) -> None:
    texts = ["first", "second text"]
    with client(payer) as sdk:
        packed = sdk.embeddings.create(model="text-embedding-3-small", input=texts, dimensions=64)
        plain = sdk.embeddings.create(
            model="text-embedding-3-small", input=texts, dimensions=64, encoding_format="float"
        )
    assert [one.index for one in packed.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    packed_row, _plain_row = payer.check(charged=2)
    assert packed_row["tokens"]["input"] == packed.usage.prompt_tokens


async def test_embeddings_without_blocking(payer: Payer) -> None:
    async with async_client(payer) as sdk:
        answer = await sdk.embeddings.create(model="text-embedding-3-large", input=[[1, 2, 3], [4, 5]])
    assert answer.usage.prompt_tokens == 5
    payer.check(charged=1)


def test_moderations_are_free(payer: Payer) -> None:
    with client(payer) as sdk:
        answer = sdk.moderations.create(input=["kind words", "more of them"])
        named = sdk.moderations.create(input="kind words", model="omni-moderation-latest")
    assert [result.flagged for result in answer.results] == [False, False]
    assert len(named.results) == 1
    assert payer.check(charged=0) == []


def test_legacy_completions(payer: Payer) -> None:
    prompt = "Once upon a time [[emulate tokens=15]]"
    with client(payer) as sdk:
        plain = sdk.completions.create(model="gpt-3.5-turbo-instruct", prompt=prompt, max_tokens=40)
        stream = sdk.completions.create(
            model="gpt-3.5-turbo-instruct",
            prompt=prompt,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == plain.choices[0].text
    assert chunks[-1].usage is not None
    assert plain.usage is not None
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens == 15
    payer.check(charged=2)


def test_models_are_listed_and_found_even_with_a_slash(payer: Payer) -> None:
    payer.set_price("org/own-model", input_usd="1", output_usd="2.5")
    with client(payer) as sdk:
        ids = [model.id for model in sdk.models.list()]
        found = sdk.models.retrieve("org/own-model")
        answer = sdk.chat.completions.create(model="org/own-model", messages=said("Hi [[emulate tokens=7]]"))
    assert {"org/own-model", MODEL} <= set(ids)
    assert (found.id, found.object) == ("org/own-model", "model")
    assert answer.model == "org/own-model"
    payer.check(charged=1)


def test_raw_responses_carry_the_headers(payer: Payer) -> None:
    with client(payer) as sdk:
        raw = sdk.chat.completions.with_raw_response.create(
            model=MODEL, messages=said("Hello [[emulate tokens=4]]")
        )
        answer: Any = raw.parse()
        with sdk.chat.completions.with_streaming_response.create(
            model=MODEL, messages=said("Hello [[emulate tokens=4]]"), stream=True
        ) as streamed:
            assert streamed.headers["content-type"].startswith("text/event-stream")
            assert list(streamed.iter_lines())[-2:] == ["data: [DONE]", ""]
    first, second = payer.check(charged=2)
    assert raw.request_id == raw.headers["x-request-id"] == answer._request_id == first["request_id"]
    assert streamed.headers["x-request-id"] == second["request_id"]
    assert raw.headers["openai-processing-ms"] == "1"


def test_headers_of_another_vendors_clients_change_nothing(payer: Payer) -> None:
    foreign = {"anthropic-version": "2023-06-01", "anthropic-beta": "tools-2024-05-16,unknown-value"}
    with client(payer, default_headers=foreign) as sdk:
        answer = sdk.chat.completions.create(model=MODEL, messages=said("Hello [[emulate tokens=4]]"))
        assert answer.choices[0].finish_reason == "stop"
        chunks = list(
            sdk.chat.completions.create(model=MODEL, messages=said("Hello [[emulate tokens=4]]"), stream=True)
        )
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert len(sdk.embeddings.create(model="text-embedding-3-small", input="x").data) == 1
    rows = payer.check(charged=3)
    sent = sent_by(payer.emulator)
    for row in rows:
        assert not [name for name in sent[row["request_id"]]["headers"] if name.startswith("anthropic")]
