"""The Vercel AI SDK, unmodified: its OpenAI provider and its provider for OpenAI-compatible servers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.payer import Payer, emulator_rows
from tests.clients.relay import relay_to
from tests.clients.tools import run_script

PROVIDERS = ["compatible", "openai"]


def js(case: str, payer: Payer, *, edge_url: str | None = None) -> Any:
    base_url = f"{edge_url or payer.edge_url}/v1"
    return run_script("ai", "vercel.mjs", case, base_url=base_url, api_key=payer.api_key)


@pytest.mark.parametrize("case", ["generated", "streamed"])
def test_text_is_answered_and_usage_agrees_with_the_charge(payer: Payer, case: str) -> None:
    said = js(case, payer)
    rows = payer.check(charged=2)
    for provider, row in zip(PROVIDERS, rows, strict=True):
        answer = said[provider]
        assert answer["text"]
        assert answer["finishReason"] == "stop"
        assert (answer["inputTokens"], answer["outputTokens"]) == (row["tokens"]["input"], 20)


def test_tools_are_called(payer: Payer) -> None:
    said = js("tools", payer)
    for provider in PROVIDERS:
        plain, streamed = said[provider]
        assert plain == streamed
        assert plain[0][0] == "weather"
    payer.check(charged=4)


def test_reasoning_is_shown_apart_from_the_text(payer: Payer) -> None:
    said = js("reasoning", payer)
    assert said["text"]
    assert said["reasoning"]
    payer.check(charged=1)


def test_embeddings(payer: Payer) -> None:
    said = js("embeddings", payer)
    assert said["lengths"] == [1536, 1536]
    (row,) = payer.check(charged=1)
    assert row["tokens"]["input"] == said["tokens"]


def test_no_balance_is_an_error_and_reaches_no_upstream(beggar: Payer) -> None:
    before = len(emulator_rows(beggar.emulator))
    with relay_to(beggar.edge_url) as relay:
        said = js("noBalance", beggar, edge_url=relay.url)
    for provider in PROVIDERS:
        assert said[provider]["raised"]
        assert any("balance" in message for message in said[provider]["messages"]), said
    assert len(relay.requests) == 2
    assert len(emulator_rows(beggar.emulator)) == before


def test_a_cut_stream_is_an_error(payer: Payer) -> None:
    said = js("cut", payer)
    assert all(said[provider]["raised"] for provider in PROVIDERS)
    rows = payer.settled(2)
    assert [row["tokens"]["output"] for row in rows] == [5, 5]
