"""The official OpenAI SDK for JavaScript, unmodified, and what its calls cost."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.payer import Payer
from tests.clients.relay import relay_to
from tests.clients.tools import run_script


def js(case: str, payer: Payer, *, edge_url: str | None = None, api_key: str | None = None) -> Any:
    base_url = f"{edge_url or payer.edge_url}/v1"
    return run_script("openai", "openai.mjs", case, base_url=base_url, api_key=api_key or payer.api_key)


def test_a_plain_answer(payer: Payer) -> None:
    said = js("plain", payer)
    assert said["text"]
    assert said["finish"] == "stop"
    (row,) = payer.check(charged=1)
    assert said["usage"]["completion_tokens"] == row["tokens"]["output"] == 20
    assert said["requestIDs"] == [row["request_id"]] * 3


def test_a_stream_says_the_same_text_with_usage_only_when_asked(payer: Payer) -> None:
    said = js("streamed", payer)
    assert len(set(said["texts"])) == 1
    assert said["finish"] == "stop"
    assert said["bareUsages"] == 0
    assert said["lastChoices"] == []
    rows = payer.check(charged=3)
    assert [row["tokens"]["output"] for row in rows] == [said["usage"]["completion_tokens"]] * 3


@pytest.mark.parametrize("case", ["tools", "functions"])
def test_tools_and_functions_are_called(payer: Payer, case: str) -> None:
    plain, streamed = js(case, payer)["calls"]
    assert plain == streamed
    assert plain["name"] == "weather"
    payer.check(charged=2)


def test_several_choices(payer: Payer) -> None:
    said = js("choices", payer)
    assert said["plain"] == said["streamed"] == [[0, "stop"], [1, "stop"]]
    rows = payer.check(charged=2)
    assert [row["tokens"]["output"] for row in rows] == [20, 20]


def test_log_probabilities(payer: Payer) -> None:
    assert js("logprobs", payer) == {"plain": 5, "streamed": 5}
    payer.check(charged=2)


def test_embeddings_are_the_same_as_base64_and_as_numbers(payer: Payer) -> None:
    said = js("embeddings", payer)
    for packed, plain in zip(said["packed"], said["plain"], strict=True):
        assert packed == pytest.approx(plain, abs=1e-6)
    rows = payer.check(charged=2)
    assert rows[0]["tokens"]["input"] == said["usage"]["prompt_tokens"]


def test_moderations_are_free(payer: Payer) -> None:
    assert js("moderations", payer) == [False, False]
    payer.check(charged=0)


def test_legacy_completions(payer: Payer) -> None:
    plain, streamed = js("completions", payer)
    assert plain == streamed
    payer.check(charged=2)


def test_models_are_listed_and_found_even_with_a_slash(payer: Payer) -> None:
    payer.set_price("org/own-model", input_usd="1", output_usd="2.5")
    said = js("models", payer)
    assert "org/own-model" in said["ids"]
    assert said["found"]["id"] == "org/own-model"


def test_headers_of_another_vendors_clients_change_nothing(payer: Payer) -> None:
    assert js("foreignHeaders", payer)
    payer.check(charged=1)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "wrong_key": (
        "create",
        {"kinds": ["APIError", "AuthenticationError"], "status": 401, "code": "invalid_api_key"},
    ),
    "unknown_model": (
        "unknownModel",
        {"kinds": ["APIError", "NotFoundError"], "status": 404, "code": "model_not_found"},
    ),
    "bad_parameter": (
        "badParameter",
        {
            "kinds": ["APIError", "BadRequestError"],
            "status": 400,
            "param": "n",
            "type": "invalid_request_error",
        },
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_one_request_and_the_right_class(payer: Payer, name: str) -> None:
    case, expected = REFUSED[name]
    with relay_to(payer.edge_url) as relay:
        said = js(case, payer, edge_url=relay.url, api_key="sk-wrong" if name == "wrong_key" else None)
    assert said["raised"]
    assert {field: said[field] for field in expected} == expected
    assert said["requestID"]
    assert relay.requests == ["POST /v1/chat/completions"]
    payer.check(charged=0)


@pytest.mark.parametrize("case", ["create", "noBalanceStreamed"])
def test_no_balance_is_one_request_although_the_sdk_retries_429(beggar: Payer, case: str) -> None:
    with relay_to(beggar.edge_url) as relay:
        said = js(case, beggar, edge_url=relay.url)
    assert said["kinds"] == ["APIError", "RateLimitError"]
    assert said["code"] == said["type"] == "insufficient_quota"
    assert relay.requests == ["POST /v1/chat/completions"]


@pytest.mark.parametrize("case", ["closed", "ended", "errorEvent"])
def test_a_stream_that_the_upstream_cuts_raises(payer: Payer, case: str) -> None:
    said = js(case, payer)
    assert said["kinds"] == ["APIError"], said
    # The upstream's own error goes to the client as it came.
    assert said["code"] or "server had an error" in said["message"]
    (row,) = payer.settled(1)
    assert row["tokens"]["output"] == 5
    assert row["usage_source"] == "counted"


def test_an_upstream_that_fails_costs_nothing(payer: Payer) -> None:
    said = js("upstreamFails", payer)
    assert said["status"] == 502
    assert said["code"]
    payer.check(charged=0)
