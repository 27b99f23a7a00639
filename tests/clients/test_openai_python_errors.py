"""Errors as the official SDK for Python sees them: the right class, and no request too many."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import openai
import pytest

from services.meter.counting import count_chat_input
from tests.clients.payer import PRICES, Payer, sent_by
from tests.clients.reading import read_until_it_fails
from tests.clients.relay import relay_to
from tests.clients.test_openai_python import MODEL, async_client, client, said
from tests.e2e.stack import Emulator


def test_a_wrong_key_is_one_request(payer: Payer) -> None:
    with (
        relay_to(payer.edge_url) as relay,
        openai.OpenAI(base_url=f"{relay.url}/v1", api_key="sk-wrong") as sdk,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        sdk.chat.completions.create(model=MODEL, messages=said("Hello"))
    assert caught.value.code == "invalid_api_key"
    assert caught.value.request_id
    assert relay.requests == ["POST /v1/chat/completions"]


def test_an_unknown_model_is_one_request(payer: Payer) -> None:
    with relay_to(payer.edge_url) as relay, client(payer, base_url_of=relay.url) as sdk:
        with pytest.raises(openai.NotFoundError) as caught:
            sdk.chat.completions.create(model="no-such-model", messages=said("Hello"))
        with pytest.raises(openai.NotFoundError):
            sdk.models.retrieve("org/no-such-model")
    assert caught.value.code == "model_not_found"
    assert relay.requests == ["POST /v1/chat/completions", "GET /v1/models/org%2Fno-such-model"]
    payer.check(charged=0)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_no_balance_is_one_request_although_the_sdk_retries_429(beggar: Payer, *, stream: bool) -> None:
    with (
        relay_to(beggar.edge_url) as relay,
        client(beggar, base_url_of=relay.url, max_retries=2) as sdk,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        sdk.chat.completions.create(model=MODEL, messages=said("Hello"), stream=stream)
    assert caught.value.code == caught.value.type == "insufficient_quota"
    assert relay.requests == ["POST /v1/chat/completions"]
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_no_balance_without_blocking(beggar: Payer) -> None:
    with relay_to(beggar.edge_url) as relay:
        async with openai.AsyncOpenAI(base_url=f"{relay.url}/v1", api_key=beggar.api_key) as sdk:
            with pytest.raises(openai.RateLimitError):
                await sdk.embeddings.create(model="text-embedding-3-small", input="Hello")
    assert relay.requests == ["POST /v1/embeddings"]


BAD: dict[str, dict[str, Any]] = {
    "max_tokens": {"max_tokens": -1},
    "n": {"n": 0},
    "messages": {"messages": []},
    "stream_options": {"stream": True, "stream_options": "yes"},
}


@pytest.mark.parametrize("param", BAD)
def test_a_bad_parameter_is_named(payer: Payer, param: str) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": said("Hello"), **BAD[param]}
    with (
        relay_to(payer.edge_url) as relay,
        client(payer, base_url_of=relay.url) as sdk,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        sdk.chat.completions.create(**asked)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert len(relay.requests) == 1
    payer.check(charged=0)


CUTS = ("close_after:5", "end_after:5", "error_event_after:5")


@pytest.mark.parametrize("fault", CUTS)
def test_a_stream_that_the_upstream_cuts_raises_and_costs_what_arrived(payer: Payer, fault: str) -> None:
    messages = said(f"Hello [[emulate tokens=40 fault={fault}]]")
    with client(payer) as sdk:
        stream = sdk.chat.completions.create(model=MODEL, messages=messages, stream=True)
        texts, error = read_until_it_fails(chunk.choices[0].delta.content or "" for chunk in stream)
    assert isinstance(error, openai.APIError)
    # The upstream's own error goes to the client as it came.
    assert error.code or "server had an error" in error.message
    assert "".join(texts)
    _check_cut(payer, messages)


@pytest.mark.parametrize("fault", CUTS)
async def test_a_cut_stream_raises_without_blocking_too(payer: Payer, fault: str) -> None:
    messages = said(f"Hello [[emulate tokens=40 fault={fault}]]")
    async with async_client(payer) as sdk:
        stream = await sdk.chat.completions.create(model=MODEL, messages=messages, stream=True)
        with pytest.raises(openai.APIError):
            async for _chunk in stream:
                pass
    _check_cut(payer, messages)


def _check_cut(payer: Payer, messages: Any) -> None:
    """Charged: our count of the input, and the five tokens that the upstream sent before the cut."""
    (row,) = payer.settled(1)
    assert sent_by(payer.emulator)[row["request_id"]]["tokens"] == [5]
    request = {"model": MODEL, "messages": messages, "stream": True}
    input_tokens = count_chat_input(MODEL, request).tokens
    prices = PRICES[MODEL]
    assert row["cost_nanos"] == input_tokens * prices["input"] + 5 * prices["output"]
    assert row["usage_source"] == "counted"


@pytest.mark.parametrize("fault", ["status:500", "status:400", "garbage", "close_before"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_an_upstream_that_fails_first_costs_nothing(payer: Payer, fault: str, *, stream: bool) -> None:
    with client(payer, max_retries=0) as sdk, pytest.raises(openai.APIStatusError) as caught:
        sdk.chat.completions.create(
            model=MODEL, messages=said(f"Hello [[emulate fault={fault}]]"), stream=stream
        )
    assert caught.value.status_code == (400 if fault == "status:400" else 502)
    assert caught.value.request_id
    payer.check(charged=0)


def test_the_sdks_own_retries_after_a_passing_failure_are_charged_once(
    payer: Payer, emulator: Emulator
) -> None:
    with relay_to(payer.edge_url) as relay, client(payer, base_url_of=relay.url) as sdk:
        emulator_fails_next(emulator, times=1)
        answer = sdk.chat.completions.create(model=MODEL, messages=said("Hello"))
    assert answer.usage is not None
    assert len(relay.requests) == 2
    payer.check(charged=1)


def emulator_fails_next(emulator: Emulator, *, times: int) -> None:
    """The next `times` requests get 500 from the upstream."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{emulator.port}/emulator/faults",
        method="PUT",
        data=json.dumps({"fault": "status:500", "times": times}).encode(),
    )
    with urllib.request.urlopen(request, timeout=10):
        pass
