"""CopilotKit's aimock as the upstream, with its chaos on: whatever it does, no charge is wrong."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from services.meter.counting import count_chat_input, count_text
from tests.clients.foreign import ask_json, channels_to, free_port, wait_until_it_listens
from tests.clients.payer import Payer, Usage, cost_of
from tests.clients.tools import FOLDER, PACKAGES, require_node, running
from tests.e2e.stack import Stack

MODEL = "gpt-4o-mini-by-aimock"
REQUESTS = 90
AT_ONCE = 6
# Their `userMessage` is their name.
FIXTURES = ("whole", "truncated", "disconnected", "refused", "called", "reported")
CHAOS = {"drop": "0.08", "malformed": "0.08", "disconnect": "0.08", "ratelimit": "0.05"}


@dataclass(frozen=True)
class Aimock:
    url: str

    def usage_of(self, fixture: str) -> Usage | None:
        """What it reports for a plain answer, asked directly and without chaos; None: it never answers."""
        if fixture == "refused":
            return None
        calm = {f"x-aimock-chaos-{name}": "0" for name in CHAOS}
        usage: Usage = ask_json(f"{self.url}/v1/chat/completions", request_of(fixture), calm)["usage"]
        return usage

    def attempts(self) -> dict[str, list[dict[str, Any]]]:
        """What it did, by the `x-request-id` that it received, oldest first."""
        found: dict[str, list[dict[str, Any]]] = {}
        for entry in ask_json(f"{self.url}/__aimock/journal"):
            found.setdefault(entry["headers"].get("x-request-id", ""), []).append(entry["response"])
        return found


@dataclass(frozen=True)
class Outcome:
    """What the client saw. `usage`: where it was told; `error`: what the SDK raised."""

    request_id: str
    fixture: str
    stream: bool
    text: str
    usage: Usage | None
    error: openai.APIError | None


def request_of(fixture: str) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": fixture}]}


@pytest.fixture(scope="module")
def aimock() -> Iterator[Aimock]:
    node = require_node("@copilotkit/aimock")
    port = free_port()
    program = str(PACKAGES / "@copilotkit/aimock/dist/cli.js")
    chaos = [part for name, rate in CHAOS.items() for part in (f"--chaos-{name}", rate)]
    fixtures = str(FOLDER / "aimock_fixtures.json")
    options = ["-p", str(port), "-f", fixtures, "--journal-max", "0", "--log-level", "silent", *chaos]
    with running([node, program, *options], Path("/dev/null")):
        wait_until_it_listens(port)
        yield Aimock(f"http://127.0.0.1:{port}")


async def test_whatever_the_upstream_does_no_charge_is_wrong(
    stack: Stack, payer: Payer, aimock: Aimock
) -> None:
    dice = random.Random(20)
    plan = [(dice.choice(FIXTURES), dice.random() < 0.7, dice.random() < 0.5) for _ in range(REQUESTS)]
    # Several channels, so that one with an open breaker doesn't stop the chaos.
    with channels_to(payer, [f"{aimock.url}/v1"] * 4, {MODEL: "gpt-4o-mini"}, credentials=5):
        outcomes = await _ask_all(payer, plan)
    usages = {fixture: aimock.usage_of(fixture) for fixture in FIXTURES}
    attempts = aimock.attempts()
    expected = {outcome.request_id: _due(payer, outcome, usages, attempts) for outcome in outcomes}
    assert len(expected) == REQUESTS

    charged = {request_id: cost for request_id, cost in expected.items() if cost}
    rows = payer.settled(len(charged))
    assert {row["request_id"]: row["cost_nanos"] for row in rows} == charged
    # The chaos must have happened, and so must some success.
    kinds = Counter(_kind(outcome) for outcome in outcomes)
    assert min(kinds["whole"], kinds["failed"], kinds["cut"]) >= 5, kinds
    assert stack.cli("reconcile")["differences"] == []


async def _ask_all(payer: Payer, plan: list[tuple[str, bool, bool]]) -> list[Outcome]:
    turns = asyncio.Semaphore(AT_ONCE)
    async with openai.AsyncOpenAI(base_url=payer.base_url, api_key=payer.api_key, max_retries=0) as sdk:

        async def ask(fixture: str, stream: bool, wants_usage: bool) -> Outcome:
            async with turns:
                try:
                    if stream:
                        return await _streamed(sdk, fixture, wants_usage=wants_usage)
                    return await _plain(sdk, fixture)
                except openai.APIStatusError as error:
                    request_id = error.request_id or ""
                    return Outcome(request_id, fixture, stream, "", None, error)

        return await asyncio.gather(*(ask(*one) for one in plan))


async def _plain(sdk: openai.AsyncOpenAI, fixture: str) -> Outcome:
    answer: Any = await sdk.chat.completions.create(**request_of(fixture))
    usage = answer.usage.model_dump()
    return Outcome(answer._request_id, fixture, False, answer.choices[0].message.content or "", usage, None)


async def _streamed(sdk: openai.AsyncOpenAI, fixture: str, *, wants_usage: bool) -> Outcome:
    options: Any = {"stream_options": {"include_usage": True}} if wants_usage else {}
    create = sdk.chat.completions.with_raw_response.create
    raw: Any = await create(**request_of(fixture), stream=True, **options)
    texts: list[str] = []
    usage: Usage | None = None
    error = None
    try:
        async for chunk in raw.parse():
            usage = chunk.usage.model_dump() if chunk.usage else usage
            texts += [choice.delta.content or "" for choice in chunk.choices]
    except openai.APIError as caught:
        error = caught
    assert usage is None or wants_usage
    return Outcome(raw.request_id, fixture, True, "".join(texts), usage, error)


def _kind(outcome: Outcome) -> str:
    if outcome.error is None:
        return "whole"
    return "cut" if outcome.text else "failed"


def _due(
    payer: Payer, outcome: Outcome, usages: dict[str, Usage | None], attempts: dict[str, list[dict[str, Any]]]
) -> int:
    """What `outcome` must cost, by what the upstream says of itself and by what the client read."""
    prices = payer.prices[MODEL]
    last = (attempts.get(outcome.request_id) or [{}])[-1]
    is_answered = last.get("status") == 200 and "chaosAction" not in last
    if is_answered and not last.get("interrupted"):
        assert outcome.error is None, outcome
        usage = usages[outcome.fixture]
        assert usage is not None
        if outcome.usage is not None:
            assert cost_of(prices, outcome.usage) == cost_of(prices, usage)
        return cost_of(prices, usage)
    assert outcome.error is not None, (outcome, last)
    if not outcome.text:
        return 0
    # Cut in the middle: what we count, and no more than what the client has.
    request = request_of(outcome.fixture) | {"stream": True}
    cost = count_chat_input(MODEL, request).tokens * prices["input"]
    return int(cost + count_text(MODEL, outcome.text) * prices["output"])
