"""A key's limits, an operator's channels and prices, and what pollers see, through the whole stack."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from tests.e2e.operator import ApiCustomer, Operator
from tests.e2e.stack import Emulator, Stack, chat
from tests.stores import stores_folder

USD = 1_000_000_000
TOKEN_NANOS = 1_000
"""With prices of $1 per 1M tokens."""


@pytest.fixture
def operator(stack: Stack) -> Operator:
    return Operator(stack)


@pytest.fixture(scope="module")
def upstreams() -> Iterator[tuple[Emulator, Emulator]]:
    """Two more upstreams, for channels."""
    with contextlib.ExitStack() as closing:
        emulators = tuple(Emulator(closing.enter_context(stores_folder())) for _ in range(2))
        for emulator in emulators:
            emulator.start()
            closing.callback(emulator.stop)
        yield emulators[0], emulators[1]


@pytest.fixture
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    """A connection for each request, so that both edges get some."""
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield session


async def error_of(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    error: dict[str, Any] = (await answer.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def get(customer: ApiCustomer, http: aiohttp.ClientSession, path: str, **headers: str) -> Any:
    url = f"{customer.stack.ready['edge_url']}{path}"
    headers = {"Authorization": f"Bearer {customer.api_key}", **headers}
    async with http.get(url, headers=headers) as answer:
        return answer.status, await answer.json()


async def shown_by_nextchat(customer: ApiCustomer, http: aiohttp.ClientSession) -> float:
    dates = "start_date=2026-01-01&end_date=2026-01-02"
    (_, subscription), (_, usage) = await asyncio.gather(
        get(customer, http, "/dashboard/billing/subscription"),
        get(customer, http, f"/dashboard/billing/usage?{dates}"),
    )
    left: float = subscription["hard_limit_usd"] - usage["total_usage"] / 100
    return left


# --- limits of a key ------------------------------------------------------------------------------


async def test_a_key_ends_at_its_expiry(operator: Operator, browser: aiohttp.ClientSession) -> None:
    expires_at_ms = int(time.time() * 1000) + 2_500
    customer = await operator.customer("1", expires_at=expires_at_ms)
    async with customer.post(browser, chat("Hi [[emulate tokens=3]]")) as answer:
        assert answer.status == 200, await answer.text()
    await asyncio.sleep(max(0, expires_at_ms / 1000 - time.time()) + 0.05)
    async with customer.post(browser, chat()) as answer:
        assert answer.status == 401
        assert (await error_of(answer))["code"] == "api_key_expired"
    status, body = await get(customer, browser, "/v1/balance")
    assert (status, body["error"]["code"]) == (401, "api_key_expired")
    await customer.settled(sessions=1)


async def test_a_disabled_key_stops_everywhere_within_a_second(
    operator: Operator, browser: aiohttp.ClientSession
) -> None:
    customer = await operator.customer("1")
    assert (await get(customer, browser, "/v1/balance"))[0] == 200
    await operator.call("POST", f"/keys/{customer.key_id}/disable", {})
    async with customer.post(browser, chat()) as answer:
        assert answer.status == 401
        assert (await error_of(answer))["code"] == "api_key_disabled"
    await asyncio.sleep(1.0)
    for _ in range(4):
        status, body = await get(customer, browser, "/dashboard/billing/subscription")
        assert (status, body["error"]["code"]) == (401, "api_key_disabled")


async def test_a_key_may_use_its_models_only(operator: Operator, http: aiohttp.ClientSession) -> None:
    customer = await operator.customer("1", models=["gpt-4o-mini"])
    async with customer.post(http, chat("Hi [[emulate tokens=3]]")) as answer:
        assert answer.status == 200
    async with customer.post(http, chat(model="gpt-4o")) as answer:
        assert answer.status == 404
        error = await error_of(answer)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "gpt-4o" in error["message"]
    _, models = await get(customer, http, "/v1/models")
    assert [model["id"] for model in models["data"]] == ["gpt-4o-mini"]
    await customer.settled(sessions=1)


async def test_a_key_works_from_its_addresses_only(operator: Operator, http: aiohttp.ClientSession) -> None:
    customer = await operator.customer("1", addresses=["203.0.113.0/24", "2001:db8::/32"])
    url = f"{customer.stack.ready['edge_url']}/v1/chat/completions"
    body = chat("Hi [[emulate tokens=3]]")
    for forwarded_for, is_allowed in (
        ("203.0.113.7", True),
        ("2001:db8::7", True),
        ("198.51.100.1", False),
        # What a client writes into the header itself stands left of what the proxy adds.
        ("203.0.113.7, 198.51.100.1", False),
        ("198.51.100.1, 203.0.113.7, 127.0.0.1", True),
        (None, False),
    ):
        headers = {"X-Forwarded-For": forwarded_for} if forwarded_for else {}
        headers["Authorization"] = f"Bearer {customer.api_key}"
        async with http.post(url, json=body, headers=headers) as answer:
            assert answer.status == (200 if is_allowed else 403), forwarded_for
            if not is_allowed:
                assert (await error_of(answer))["code"] == "address_not_allowed"
        status, _ = await get(customer, http, "/v1/balance", **headers)
        assert status == (200 if is_allowed else 403)
    await customer.settled(sessions=3)


async def test_requests_per_minute_are_counted_and_told(
    operator: Operator, browser: aiohttp.ClientSession
) -> None:
    customer = await operator.customer("1", requests_per_minute=2)
    for remaining in ("1", "0"):
        async with customer.post(browser, chat("Hi [[emulate tokens=3]]")) as answer:
            assert answer.status == 200
            assert answer.headers["x-ratelimit-limit-requests"] == "2"
            assert answer.headers["x-ratelimit-remaining-requests"] == remaining
    for stream in (False, True):
        async with customer.post(browser, chat(stream=stream)) as answer:
            assert answer.status == 429
            assert answer.headers["x-ratelimit-remaining-requests"] == "0"
            assert 1 <= int(answer.headers["retry-after"]) <= 120
            error = await error_of(answer)
            assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
            assert "2 requests per minute" in error["message"]
    await customer.settled(sessions=2)


async def test_tokens_per_minute_are_counted_and_told(
    operator: Operator, browser: aiohttp.ClientSession
) -> None:
    customer = await operator.customer("1", tokens_per_minute=300)
    async with customer.post(browser, chat("Hi [[emulate tokens=3]]", max_tokens=200)) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.headers["x-ratelimit-limit-tokens"] == "300"
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 100
    async with customer.post(browser, chat(max_tokens=280)) as answer:
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert "300 tokens per minute" in (await error_of(answer))["message"]
    await customer.settled(sessions=1)


async def test_concurrency_is_a_number_of_running_requests(
    operator: Operator, browser: aiohttp.ClientSession
) -> None:
    customer = await operator.customer("1", concurrency=1)
    async with customer.post(browser, chat("Hi [[emulate tokens=40 delay_ms=20]]", stream=True)) as running:
        await running.content.readany()
        async with customer.post(browser, chat()) as answer:
            assert answer.status == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert "1 requests at a time" in (await error_of(answer))["message"]
        await running.read()
    await customer.settled(sessions=1)
    async with customer.post(browser, chat("Hi [[emulate tokens=3]]")) as answer:
        assert answer.status == 200
    await customer.settled(sessions=2)


@pytest.mark.parametrize(
    ("limit", "name"),
    [
        ("budget_day_usd", "the daily budget of this API key"),
        ("budget_month_usd", "the monthly budget of this API key"),
        ("quota_usd", "the quota of this API key"),
    ],
)
async def test_what_a_key_may_spend_is_a_limit_of_its_own(
    operator: Operator, browser: aiohttp.ClientSession, limit: str, name: str
) -> None:
    await operator.price("limits/one")
    # Held are about 270 tokens (an unknown model's template is), 120 are used each time.
    customer = await operator.customer("5", **{limit: "0.00048"})
    body = chat("Hi [[emulate tokens=100]]", model="limits/one", max_tokens=100)
    spent_nanos = 0
    for sessions in (1, 2):
        async with customer.post(browser, body) as answer:
            assert answer.status == 200, await answer.text()
            spent_nanos += (await answer.json())["usage"]["total_tokens"] * TOKEN_NANOS
        await customer.settled(sessions=sessions)
    async with customer.post(browser, body) as answer:
        assert answer.status == 429
        assert answer.headers["x-should-retry"] == "false"
        error = await error_of(answer)
        assert error["code"] == "insufficient_quota"
        assert name in error["message"]
        assert "USD are missing" in error["message"]
    balance = await customer.settled(sessions=2)
    assert balance["balance_nanos"] == 5 * USD - spent_nanos
    if limit == "quota_usd":
        assert await shown_by_nextchat(customer, browser) == pytest.approx(0.00048 - spent_nanos / USD)
    else:
        assert await shown_by_nextchat(customer, browser) == pytest.approx(5 - spent_nanos / USD)


# --- channels -------------------------------------------------------------------------------------


async def put_fault(http: aiohttp.ClientSession, emulator: Emulator, **fields: Any) -> None:
    url = f"http://127.0.0.1:{emulator.port}/emulator/faults"
    async with http.delete(url) if not fields else http.put(url, json=fields) as answer:
        assert answer.status < 300, await answer.text()


@pytest.fixture
async def clean_upstreams(
    upstreams: tuple[Emulator, Emulator], http: aiohttp.ClientSession
) -> tuple[Emulator, Emulator]:
    for emulator in upstreams:
        await put_fault(http, emulator)
        await emulator.forget(http)
    return upstreams


async def until_live(
    customer: ApiCustomer, browser: aiohttp.ClientSession, model: str, seconds_max: float = 1.0
) -> None:
    """Routing reaches every edge within a second; then the model is served by each."""
    await asyncio.sleep(seconds_max)
    for _ in range(6):
        status, models = await get(customer, browser, "/v1/models")
        assert status == 200
        assert model in [one["id"] for one in models["data"]]


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


async def test_channels_are_chosen_by_priority_and_weight_and_rename_models(
    operator: Operator,
    browser: aiohttp.ClientSession,
    clean_upstreams: tuple[Emulator, Emulator],
    emulator: Emulator,
) -> None:
    one, other = clean_upstreams
    model = "channels/weighted"
    await operator.price(model)
    tier = {"models": {model: "upstream-name"}, "priority": 5}
    await operator.channel(name="heavy", base_url=one.base_url, weight=8, **tier)
    await operator.channel(name="light", base_url=other.base_url, weight=2, **tier)
    await operator.channel(name="spare", base_url=emulator.base_url, priority=1, models={model: "spare"})
    customer = await operator.customer("1")
    await until_live(customer, browser, model)

    async def ask() -> None:
        async with customer.post(browser, chat("Hi [[emulate tokens=2]]", model=model)) as answer:
            assert answer.status == 200, await answer.text()

    await asyncio.gather(*(ask() for _ in range(60)))
    heavy, light = await one.rows(browser), await other.rows(browser)
    assert len(heavy) + len(light) == 60
    assert len(heavy) > len(light) > 0
    assert {row["model"] for row in heavy + light} == {"upstream-name"}
    await customer.settled(sessions=60)
    assert {row["upstream_model"] for row in customer.usage()} == {"upstream-name"}
    assert len({row["edge_id"] for row in customer.usage()}) == 2


FAULTS = {
    "refused": None,
    "times out": "hang_before_headers",
    "closes": "close_before",
    "garbage": "garbage",
    "401": "status:401",
    "429": "status:429:1",
    "500": "status:500",
    "503": "status:503",
}


async def test_a_channel_that_fails_before_the_first_byte_is_followed_by_the_next(
    operator: Operator, browser: aiohttp.ClientSession, clean_upstreams: tuple[Emulator, Emulator]
) -> None:
    broken, sound = clean_upstreams
    models = {name: f"failover/{number}" for number, name in enumerate(FAULTS)}
    for name, model in models.items():
        await operator.price(model)
        base_url = broken.base_url if FAULTS[name] else f"http://127.0.0.1:{unused_port()}/v1"
        await operator.channel(
            name=f"broken {name}",
            base_url=base_url,
            models=[model],
            priority=2,
            first_byte_timeout_ms=300,
            connect_timeout_ms=300,
        )
    sound_id = await operator.channel(name="sound", base_url=sound.base_url, models=list(models.values()))
    customer = await operator.customer("1")
    await until_live(customer, browser, models["500"])
    for name, model in models.items():
        if FAULTS[name]:
            await put_fault(browser, broken, fault=FAULTS[name])
        for stream in (False, True):
            body = chat("Hi", model=model, stream=stream, max_tokens=7)
            async with customer.post(browser, body) as answer:
                text = await answer.text()
                assert answer.status == 200, (name, text)
                assert "error" not in text
    await customer.settled(sessions=2 * len(FAULTS))
    rows = customer.usage()
    assert {row["channel_id"] for row in rows} == {sound_id}
    assert {row["outcome"] for row in rows} == {"complete"}
    assert {row["tokens"]["output"] for row in rows} == {7}
    # Only what was delivered is charged, once.
    assert len(await sound.rows(browser)) == 2 * len(FAULTS)
    assert {row["tokens_total"] for row in await broken.rows(browser)} <= {0}


async def test_a_channel_that_fails_behind_the_first_byte_is_not_followed_by_another(
    operator: Operator, browser: aiohttp.ClientSession, clean_upstreams: tuple[Emulator, Emulator]
) -> None:
    broken, sound = clean_upstreams
    model = "failover/never-after"
    await operator.price(model)
    await operator.channel(name="breaks off", base_url=broken.base_url, models=[model], priority=2)
    await operator.channel(name="beside it", base_url=sound.base_url, models=[model])
    customer = await operator.customer("1")
    await until_live(customer, browser, model)
    for sessions, fault in enumerate(("close_after:5", "end_after:5", "error_event_after:5"), start=1):
        await put_fault(browser, broken, fault=fault, delay_ms=5)
        answer = await customer.stream(browser, chat("Hi", model=model))
        assert answer.status == 200
        assert answer.text
        assert answer.events[-1] == "[DONE]" or answer.errors
        if fault != "end_after:5":
            assert answer.errors, fault
        await customer.settled(sessions=sessions)
    assert await sound.rows(browser) == []
    delivered = [row["tokens_total"] for row in await broken.rows(browser)]
    charged = [row["tokens"]["output"] for row in reversed(customer.usage())]
    assert all(0 < tokens <= sent for tokens, sent in zip(charged, delivered, strict=True))


async def test_a_credential_that_is_refused_is_set_aside_until_an_operator_enables_it(
    operator: Operator, browser: aiohttp.ClientSession, clean_upstreams: tuple[Emulator, Emulator]
) -> None:
    upstream, _ = clean_upstreams
    model = "channels/credentials"
    await operator.price(model)
    secrets = {
        hashlib.sha256(secret.encode()).hexdigest()[:12]: secret
        for secret in ("sk-secret-one", "sk-secret-two")
    }
    channel_id = await operator.channel(
        name="two keys", base_url=upstream.base_url, models=[model], credentials=list(secrets.values())
    )
    customer = await operator.customer("1")
    await until_live(customer, browser, model)
    await put_fault(browser, upstream, fault="status:401", times=1)
    async with customer.post(browser, chat("Hi", model=model, max_tokens=3)) as answer:
        assert answer.status == 200, await answer.text()
    refused, good = await upstream.rows(browser)
    assert (refused["status"], good["status"]) == (401, 200)
    assert refused["api_key_hash"] != good["api_key_hash"]

    for _ in range(50):
        credentials = (await operator.channel_view(channel_id))["credentials"]
        aside = [one for one in credentials if one["state"] == "set_aside"]
        if aside:
            break
        await asyncio.sleep(0.05)
    [credential] = aside
    assert credential["set_aside_status"] == 401
    assert secrets[refused["api_key_hash"]].endswith(credential["hint"][-3:])
    await asyncio.sleep(1.0)
    await upstream.forget(browser)
    await _ask_often(customer, browser, model)
    assert {row["api_key_hash"] for row in await upstream.rows(browser)} == {good["api_key_hash"]}

    changes = {"activate_credentials": [credential["id"]]}
    await operator.call("PATCH", f"/channels/{channel_id}", changes)
    await asyncio.sleep(1.0)
    await upstream.forget(browser)
    await _ask_often(customer, browser, model)
    assert {row["api_key_hash"] for row in await upstream.rows(browser)} == set(secrets)
    await customer.settled(sessions=21)


async def _ask_often(customer: ApiCustomer, http: aiohttp.ClientSession, model: str) -> None:
    async def ask() -> None:
        async with customer.post(http, chat("Hi", model=model, max_tokens=2)) as answer:
            assert answer.status == 200, await answer.text()

    await asyncio.gather(*(ask() for _ in range(10)))


async def test_a_channel_change_is_live_on_every_edge_within_a_second_and_running_streams_go_on(
    operator: Operator, browser: aiohttp.ClientSession, clean_upstreams: tuple[Emulator, Emulator]
) -> None:
    old, new = clean_upstreams
    model = "channels/moved"
    await operator.price(model)
    channel_id = await operator.channel(name="moves", base_url=old.base_url, models=[model])
    customer = await operator.customer("1")
    await until_live(customer, browser, model)
    slow = chat("Hi [[emulate tokens=50 delay_ms=50]]", model=model)
    streams = [asyncio.create_task(customer.stream(browser, slow)) for _ in range(6)]
    await asyncio.sleep(0.5)
    await operator.call("PATCH", f"/channels/{channel_id}", {"base_url": new.base_url})
    await asyncio.sleep(1.0)
    assert not any(stream.done() for stream in streams)
    await asyncio.gather(*(_ask_often(customer, browser, model) for _ in range(2)))
    assert len(await new.rows(browser)) == 20
    for stream in await asyncio.gather(*streams):
        assert stream.finish_reasons == ["stop"]
        assert stream.events[-1] == "[DONE]"
        assert not stream.errors
    assert [row["tokens_total"] for row in await old.rows(browser)] == [50] * 6
    await customer.settled(sessions=26)
    by_edge = Counter(row["edge_id"] for row in customer.usage() if not row["stream"])
    assert len(by_edge) == 2


# --- prices ---------------------------------------------------------------------------------------


async def test_under_load_every_request_is_charged_by_the_version_it_was_admitted_under(
    operator: Operator, browser: aiohttp.ClientSession
) -> None:
    model = "prices/changing"
    prices = {(await operator.price(model, "1"))["price_version"]: 1_000}
    customer = await operator.customer("5")
    await until_live(customer, browser, model)
    running = True

    async def worker(number: int) -> int:
        done = 0
        while running:
            body = chat("Hi [[emulate tokens=20 delay_ms=2]]", model=model, max_tokens=40)
            if number % 2:
                assert (await customer.stream(browser, body)).finish_reasons
            else:
                async with customer.post(browser, body) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()
            done += 1
        return done

    workers = [asyncio.create_task(worker(number)) for number in range(6)]
    in_force: list[tuple[int, int]] = []
    for dollars in (2, 3, 4):
        await asyncio.sleep(0.5)
        changed = await operator.price(model, str(dollars))
        prices[changed["price_version"]] = dollars * 1_000
        in_force.append((int(time.time() * 1000), changed["price_version"]))
    await asyncio.sleep(0.5)
    running = False
    sessions = sum(await asyncio.gather(*workers))

    balance = await customer.settled(sessions=sessions)
    rows = customer.usage()
    assert {row["price_version"] for row in rows} == set(prices)
    for row in rows:
        tokens = row["tokens"]["input"] + row["tokens"]["output"]
        assert row["cost_nanos"] == tokens * prices[row["price_version"]]
        # A version is in force on every meter when the call that set it is answered.
        least = [version for answered_at_ms, version in in_force if row["time"] > answered_at_ms]
        assert row["price_version"] >= max(least, default=0)
    assert balance["balance_nanos"] == 5 * USD - sum(row["cost_nanos"] for row in rows)


# --- what pollers see -----------------------------------------------------------------------------


async def test_pollers_see_what_the_books_say(operator: Operator, browser: aiohttp.ClientSession) -> None:
    await operator.price("pollers/one")
    customer = await operator.customer("2.5")
    body = chat("Hi [[emulate tokens=50]]", model="pollers/one")
    for _ in range(3):
        assert (await customer.stream(browser, body)).finish_reasons
    balance = await customer.settled(sessions=3)
    spent = sum(row["cost_nanos"] for row in customer.usage())
    assert balance["balance_nanos"] == 2_500_000_000 - spent
    assert await shown_by_nextchat(customer, browser) == pytest.approx(balance["balance_nanos"] / USD)

    for root in ("", "/v1"):
        _, grants = await get(customer, browser, f"{root}/dashboard/billing/credit_grants")
        assert grants["total_granted"] == pytest.approx(2.5)
        assert grants["total_used"] == pytest.approx(spent / USD)
    _, seen = await get(customer, browser, "/v1/balance")
    assert {name: seen[name] for name in ("balance_nanos", "held_nanos", "available_nanos")} == {
        name: balance[name] for name in ("balance_nanos", "held_nanos", "available_nanos")
    }
    assert (seen["key"]["used_nanos"], seen["key"]["unlimited"]) == (spent, True)
    costs: list[int] = []
    before = ""
    for _ in range(3):
        _, page = await get(customer, browser, f"/v1/usage?limit=2&before={before}")
        costs += [row["cost_nanos"] for row in page["data"]]
        before = page["next_before"] or ""
        if not before:
            break
    assert costs == [row["cost_nanos"] for row in customer.usage()]


async def test_the_other_endpoints_are_charged_and_moderation_is_free(
    operator: Operator, browser: aiohttp.ClientSession
) -> None:
    customer = await operator.customer("1")
    embedding = {"model": "text-embedding-3-small", "input": "What is a hold?", "encoding_format": "base64"}
    async with customer.post(browser, embedding, "/v1/embeddings") as answer:
        assert answer.status == 200, await answer.text()
        tokens = (await answer.json())["usage"]["prompt_tokens"]
    async with customer.post(browser, {"input": "A hold."}, "/v1/moderations") as answer:
        assert answer.status == 200, await answer.text()
    balance = await customer.settled(sessions=2)
    moderation, embedded = customer.usage()
    assert (embedded["endpoint"], embedded["tokens"]["input"]) == ("embeddings", tokens)
    assert embedded["cost_nanos"] == tokens * 20
    assert (moderation["endpoint"], moderation["cost_nanos"]) == ("moderations", 0)
    assert balance["balance_nanos"] == USD - embedded["cost_nanos"]
