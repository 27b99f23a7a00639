"""Balance and use by the key alone: what pollers read, and how little they cost."""

import asyncio
from decimal import Decimal
from typing import Any

import aiohttp
import msgspec
import pytest

from services.common.contracts.account import AccountAnswer, AccountView, DayUse, UsageView
from services.common.contracts.charging import Refused
from services.common.ids import AccountId, KeyId, SessionId, hash_api_key
from services.common.money import TokenCounts
from services.edge import account_views
from services.edge.routes import get_routes
from tests.integration.edge.conftest import API_KEY, Edge, StartEdge, eventually

USD = 1_000_000_000
VIEW = AccountView(
    account_id=AccountId("acct_a"),
    balance_nanos=7 * USD,
    held_nanos=USD,
    available_nanos=6 * USD,
    key_id=KeyId("key_a"),
    key_name="phone",
    key_used_nanos=1_234_567,
    key_created_at_ms=1_700_000_000_000,
    days=(DayUse("2026-11-23", 1_000_000), DayUse("2026-11-24", 234_567)),
)
ACCOUNT_PATHS = sorted(path for path, _handler in get_routes() if "models" not in path and path != "/")


async def read(edge: Edge, path: str, **options: Any) -> dict[str, Any]:
    async with edge.client.get(f"{edge.url}{path}", **options) as response:
        text = await response.text()
        assert response.status == 200, text
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-request-id"]
        document: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
        return document


async def shown_by_nextchat(edge: Edge, root: str = "") -> Decimal:
    """What NextChat computes from the two addresses that it asks at once."""
    query = {"start_date": "2026-11-01", "end_date": "2026-11-25"}
    subscription, usage = await asyncio.gather(
        read(edge, f"{root}/dashboard/billing/subscription"),
        read(edge, f"{root}/dashboard/billing/usage", params=query),
    )
    return Decimal(str(subscription["hard_limit_usd"])) - Decimal(str(usage["total_usage"])) / 100


@pytest.mark.parametrize("root", ["", "/v1"])
@pytest.mark.parametrize(
    ("quota_nanos", "left_nanos"),
    [
        (None, 7 * USD),
        (2 * USD, 2 * USD - 1_234_567),
        (100 * USD, 7 * USD),
        (1_000_000, 0),
    ],
)
async def test_nextchat_shows_what_the_key_may_still_spend(
    edge: Edge, root: str, quota_nanos: int | None, left_nanos: int
) -> None:
    edge.ledger.account_answer = AccountAnswer(
        view=msgspec.structs.replace(VIEW, key_quota_nanos=quota_nanos)
    )
    assert await shown_by_nextchat(edge, root) == Decimal(left_nanos) / USD
    grants = await read(edge, f"{root}/dashboard/billing/credit_grants")
    assert Decimal(str(grants["total_available"])) == Decimal(left_nanos) / USD
    assert grants["total_granted"] == pytest.approx(grants["total_available"] + grants["total_used"])


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"start_date": "2026-11-24", "end_date": "2026-11-25"},
        {"start_date": "2030-01-01", "end_date": "2030-01-02"},
        {"start_date": "nonsense", "end_date": "'; --"},
    ],
)
async def test_no_date_filter_changes_the_total(edge: Edge, query: dict[str, str]) -> None:
    edge.ledger.account_answer = AccountAnswer(view=VIEW)
    usage = await read(edge, "/v1/dashboard/billing/usage", params=query)
    assert usage["total_usage"] == 0.1234567
    shown = [day["line_items"][0]["cost"] for day in usage["daily_costs"]]
    is_filter = query.get("start_date", "").startswith("20")
    assert shown == ([0.1, 0.0234567] if not is_filter else [0.0234567] if "2026" in str(query) else [])


async def test_a_balance_is_told_in_nanos_usd_and_units(edge: Edge) -> None:
    view = msgspec.structs.replace(VIEW, key_quota_nanos=2 * USD, key_expires_at_ms=1_900_000_000_000)
    edge.ledger.account_answer = AccountAnswer(view=view)
    balance = await read(edge, "/v1/balance")
    assert (balance["balance_nanos"], balance["balance_usd"]) == (7 * USD, "7.00")
    assert (balance["held_nanos"], balance["available_usd"]) == (USD, "6.00")
    key = balance["key"]
    assert (key["quota_nanos"], key["quota_usd"], key["quota_units"]) == (2 * USD, "2.00", 1_000_000)
    assert (key["used_nanos"], key["used_usd"], key["used_units"]) == (1_234_567, "0.001234567", 618)
    assert (key["left_nanos"], key["unlimited"]) == (2 * USD - 1_234_567, False)
    subscription = await read(edge, "/dashboard/billing/subscription")
    assert subscription["access_until"] == 1_900_000_000


async def test_usage_comes_page_by_page(edge: Edge) -> None:
    row = UsageView(
        session_id=SessionId("0192f0a0-0000-7000-8000-000000000001"),
        endpoint="chat.completions",
        model="gpt-4o",
        stream=True,
        tokens=TokenCounts(input=10, output=5),
        price_version=3,
        cost_nanos=2_001,
        outcome="complete",
        usage_source="upstream",
        started_at_ms=1,
        first_byte_ms=2,
        duration_ms=3,
    )
    view = msgspec.structs.replace(VIEW, usage=(row,), usage_next_before=row.session_id)
    edge.ledger.account_answer = AccountAnswer(view=view)
    page = await read(edge, "/v1/usage", params={"limit": "1", "before": row.session_id})
    [shown] = page["data"]
    assert (shown["tokens"], shown["cost_usd"], shown["cost_units"]) == (
        {"input": 10, "output": 5},
        "0.000002001",
        2,
    )
    assert (page["has_more"], page["next_before"]) == (True, row.session_id)
    asked = edge.ledger.account_queries[-1]
    assert (asked.usage_limit, asked.usage_before) == (1, row.session_id)
    for params in ({"limit": "0"}, {"limit": "101"}, {"limit": "-1"}, {"limit": "x"}, {"before": "y" * 40}):
        async with edge.client.get(f"{edge.url}/v1/usage", params=params) as response:
            assert response.status == 400
            assert (await response.json())["error"]["param"] in params


@pytest.mark.parametrize("path", ACCOUNT_PATHS)
async def test_a_key_is_needed_in_any_of_the_usual_headers(edge: Edge, path: str) -> None:
    edge.ledger.account_answer = AccountAnswer(view=VIEW)
    async with aiohttp.ClientSession() as stranger:
        async with stranger.get(f"{edge.url}{path}") as response:
            assert response.status == 401
            assert (await response.json())["error"]["code"] == "invalid_api_key"
        for headers in ({"x-api-key": API_KEY}, {"api-key": API_KEY}):
            async with stranger.get(f"{edge.url}{path}", headers=headers) as response:
                assert response.status == 200
        async with stranger.head(f"{edge.url}{path}", headers={"x-api-key": API_KEY}) as response:
            assert response.status == 200
    assert {query.key_hash for query in edge.ledger.account_queries} == {hash_api_key(API_KEY)}
    assert {query.client_address for query in edge.ledger.account_queries} == {"127.0.0.1"}


async def test_what_the_ledger_refuses_comes_in_the_apis_shape(edge: Edge) -> None:
    for number, (error, code, status) in enumerate(
        (
            ("InvalidApiKey", "api_key_disabled", 401),
            ("PermissionDenied", "address_not_allowed", 403),
            ("BadRequest", "invalid_request", 400),
        )
    ):
        edge.ledger.account_answer = AccountAnswer(refused=Refused(error, code, "No."))
        headers = {"Authorization": f"Bearer sk-{number}"}
        async with edge.client.get(f"{edge.url}/v1/balance", headers=headers) as response:
            assert response.status == status
            assert (await response.json())["error"]["code"] == code


async def test_without_a_ledger_it_is_503_with_retry_after_and_calls_go_on(edge: Edge) -> None:
    async with edge.client.get(f"{edge.url}/v1/balance") as response:
        assert response.status == 503
        assert response.headers["retry-after"] == "1"
        assert (await response.json())["error"]["code"] == "service_unavailable"
    async with edge.chat("tokens=5") as response:
        assert response.status == 200
    edge.ledger.account_answer = AccountAnswer(view=VIEW)
    await read(edge, "/v1/balance")


async def test_pollers_ask_the_ledger_once_a_second_and_together(
    start_edge: StartEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account_views, "ASKING_MAX", 1)
    edge = await start_edge()
    edge.ledger.account_answer, edge.ledger.account_delay_s = AccountAnswer(view=VIEW), 0.2
    first = asyncio.create_task(read(edge, "/v1/balance"))
    await eventually(lambda: len(edge.ledger.account_queries) == 1)
    others = [asyncio.create_task(read(edge, path)) for path in ACCOUNT_PATHS if path != "/v1/usage"]
    # One that goes away takes nobody's answer along.
    first.cancel()
    await asyncio.gather(*others)
    assert len(edge.ledger.account_queries) == 1
    # No more questions wait at the ledger than that.
    busy = asyncio.create_task(read(edge, "/v1/usage"))
    await eventually(lambda: len(edge.ledger.account_queries) == 2)
    async with edge.client.get(
        f"{edge.url}/v1/balance", headers={"x-api-key": "b", "Authorization": ""}
    ) as one:
        assert one.status == 503
    await busy
    await asyncio.sleep(1.0)
    await read(edge, "/v1/balance")
    assert len(edge.ledger.account_queries) == 3
