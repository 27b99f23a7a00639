import base64
import gzip
import json
import math
import struct
from typing import Any

import openai
import pytest
from backports import zstd
from openai import AsyncOpenAI

from services.emulator.text import text_of

from .conftest import Running, Started

HELLO: Any = [{"role": "user", "content": "Hello."}]


async def test_the_official_client_reads_a_plain_answer(client: AsyncOpenAI, emulator: Running) -> None:
    answer = await client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=20)
    assert answer.choices[0].message.content == text_of("ascii", 20)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 20)
    row = (await emulator.log())[0]
    assert row["usage"] == answer.usage.model_dump(exclude_unset=True)
    assert (row["tokens"], row["finished"], row["status"]) == ([20], True, 200)
    assert row["request_id"] == answer._request_id == answer.id


async def test_an_answer_has_64_tokens_unless_told_otherwise(emulator: Running) -> None:
    for fields, tokens in (({}, 64), ({"max_tokens": 100}, 64), ({"max_completion_tokens": 3}, 3)):
        answer = json.loads(await emulator.post(**fields))
        assert answer["usage"]["completion_tokens"] == tokens
    answer = json.loads(await emulator.post("tokens=30 ignore_max_tokens", max_tokens=2))
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (30, "stop")


async def test_the_same_request_gets_the_same_text(emulator: Running) -> None:
    first, second = [json.loads(await emulator.post("tokens=200")) for _ in range(2)]
    assert first["choices"] == second["choices"]
    assert first["usage"] == second["usage"]


async def test_usage_has_the_classes_that_were_asked_for(emulator: Running) -> None:
    answer = json.loads(
        await emulator.post(
            "tokens=10 prompt_tokens=1000 cached_tokens=300 cache_write_tokens=200 reasoning_tokens=40 "
            "audio_input_tokens=7 audio_output_tokens=5"
        )
    )
    assert answer["usage"] == {
        "prompt_tokens": 1000,
        "completion_tokens": 55,
        "total_tokens": 1055,
        "prompt_tokens_details": {"cached_tokens": 300, "audio_tokens": 7, "cache_write_tokens": 200},
        "completion_tokens_details": {
            "reasoning_tokens": 40,
            "audio_tokens": 5,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


async def test_hidden_reasoning_counts_against_the_limit(emulator: Running) -> None:
    answer = json.loads(await emulator.post("tokens=50 reasoning_tokens=30", max_completion_tokens=40))
    assert answer["choices"][0]["message"]["content"] == text_of("ascii", 10)
    assert answer["usage"]["completion_tokens"] == 40


@pytest.mark.parametrize(("mode", "tokens"), [("less:4", 6), ("less:40", 0), ("more:5", 15)])
async def test_usage_can_be_wrong_on_purpose(emulator: Running, mode: str, tokens: int) -> None:
    answer = json.loads(await emulator.post(f"tokens=10 usage={mode}"))
    assert answer["usage"]["completion_tokens"] == tokens
    row = (await emulator.log())[0]
    assert row["usage"]["completion_tokens"] == tokens
    assert row["tokens"] == [10]


async def test_usage_can_be_missing(emulator: Running) -> None:
    assert "usage" not in json.loads(await emulator.post("usage=none"))
    assert (await emulator.log())[0]["usage"] is None


async def test_tool_calls_refusals_and_reasoning_answer_in_their_own_fields(emulator: Running) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    answer = json.loads(await emulator.post("tokens=9 tool_calls=indexed", tools=tools))["choices"][0]
    call = answer["message"]["tool_calls"][0]
    assert (answer["finish_reason"], answer["message"]["content"]) == ("tool_calls", None)
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"text": text_of("ascii", 9)}
    answer = json.loads(await emulator.post("tokens=9 function_call"))["choices"][0]
    assert json.loads(answer["message"]["function_call"]["arguments"]) == {"text": text_of("ascii", 9)}
    answer = json.loads(await emulator.post("tokens=9 refusal"))["choices"][0]
    assert answer["message"]["refusal"] == text_of("ascii", 9)
    answer = json.loads(await emulator.post("tokens=9 reasoning_content=5"))
    assert answer["choices"][0]["message"]["reasoning_content"] == text_of("ascii", 5)
    assert answer["usage"]["completion_tokens"] == 14


async def test_several_choices_are_all_counted(client: AsyncOpenAI, emulator: Running) -> None:
    answer = await client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=5, n=3)
    assert len(answer.choices) == 3
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 15
    assert (await emulator.log())[0]["tokens"] == [5, 5, 5]


async def test_text_completions_count_best_of(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="gpt-3.5-turbo-instruct", prompt="Say it", max_tokens=4, best_of=3
    )
    assert answer.choices[0].text == text_of("ascii", 4)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 12)


async def test_embeddings_are_unit_vectors_as_numbers_and_as_base64(
    client: AsyncOpenAI, emulator: Running
) -> None:
    numbers = await client.embeddings.create(
        model="text-embedding-3-small", input=["one", "two"], encoding_format="float", dimensions=256
    )
    first, second = (entry.embedding for entry in numbers.data)
    assert len(first) == 256
    assert first != second
    assert math.isclose(sum(part * part for part in first), 1.0, rel_tol=1e-6)
    assert numbers.usage.prompt_tokens == 2
    async with emulator.session.post(
        emulator.url + "/v1/embeddings",
        json={"model": "m", "input": "one", "encoding_format": "base64", "dimensions": 256},
    ) as answer:
        text = (await answer.json())["data"][0]["embedding"]
    assert struct.unpack("256f", base64.b64decode(text)) == pytest.approx(first, rel=1e-6)
    # Without a format of its own the client asks for base64 and decodes it.
    default = await client.embeddings.create(model="text-embedding-3-small", input="one", dimensions=256)
    assert default.data[0].embedding == pytest.approx(first, rel=1e-6)


async def test_moderations_and_models_are_served(client: AsyncOpenAI) -> None:
    verdict = await client.moderations.create(input=["one", "two"])
    assert [result.flagged for result in verdict.results] == [False, False]
    models = await client.models.list()
    assert "gpt-4o" in {model.id for model in models.data}
    assert (await client.models.retrieve("org/any-model")).id == "org/any-model"


async def test_only_the_given_keys_and_models_are_let_in(start_emulator: Started) -> None:
    running = await start_emulator(api_keys=frozenset({"sk-good"}), models=frozenset({"m"}))
    async with AsyncOpenAI(base_url=running.url + "/v1", api_key="sk-bad", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            await client.chat.completions.create(model="m", messages=HELLO)
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
    async with running.session.post(running.url + "/v1/chat/completions", json=running.body()) as answer:
        assert answer.status == 401
        assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}
    async with AsyncOpenAI(base_url=running.url + "/v1", api_key="sk-good", max_retries=0) as client:
        assert await client.chat.completions.create(model="m", messages=HELLO)
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="other", messages=HELLO)
        assert [model.id for model in (await client.models.list()).data] == ["m"]
    assert [row["status"] for row in await running.log(rows=4)] == [401, 401, 200, 404]


@pytest.mark.parametrize(
    "raw",
    [b"", b"nonsense", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"model":"m"}',
     b'{"model":"m","messages":[]}',
     b'{"model":"m","messages":"x"}', b'{"model":1,"messages":[{"role":"user","content":"x"}]}',
     b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":"yes"}',
     b'{"model":"m","messages":[{"role":"user","content":"x"}],"n":1000000000}',
     b'{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":-1}',
     b'{"model":"m","messages":[{"role":"user","content":"[[emulate nonsense=1]]"}]}'],
)  # fmt: skip
async def test_a_bad_body_gets_400_in_the_usual_shape(emulator: Running, raw: bytes) -> None:
    async with emulator.session.post(emulator.url + "/v1/chat/completions", data=raw) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["message"]
    row = (await emulator.log())[0]
    assert (row["status"], row["tokens"], row["usage"]) == (400, [], None)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstd.compress)])
async def test_compressed_request_bodies_are_read(emulator: Running, encoding: str, compress: Any) -> None:
    raw = json.dumps(emulator.body()).encode()
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    url = emulator.url + "/v1/chat/completions"
    async with emulator.session.post(url, data=compress(raw), headers=headers) as answer:
        assert answer.status == 200
    assert (await emulator.log())[0]["body_bytes"] == len(raw)
    async with emulator.session.post(url, data=b"nonsense", headers=headers) as answer:
        assert answer.status == 400


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
async def test_plain_answers_can_be_compressed(emulator: Running, encoding: str) -> None:
    answer = json.loads(await emulator.post(f"encoding={encoding} tokens=30"))
    assert answer["choices"][0]["message"]["content"] == text_of("ascii", 30)
