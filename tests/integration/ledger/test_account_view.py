"""What a key's holder learns from the ledger with the key alone."""

import time

import msgspec
import pytest

from services.common.contracts.account import AccountAnswer, AccountQuery, AccountView
from services.common.contracts.lending import AccountAudit, KeyLimits
from services.common.errors import BadRequest, InvalidApiKey, PermissionDenied
from services.common.ids import KeyHash, bucket_of, hash_api_key
from services.ledger import account_view, keys
from services.ledger.app import LedgerApps
from tests.integration.ledger.entries import DOLLAR, account_with, entry, lend, set_price
from tests.integration.ledger.meter_double import MeterDouble
from tests.integration.ledger.test_internal_api import Client, apps, client

__all__ = ["apps", "client"]


class Holder:
    """An account with a key."""

    def __init__(self, apps: LedgerApps, account_id: str, key: keys.NewKey) -> None:
        self.ledger = apps.ledger
        self.account_id = account_id
        self.key_id = key.key_id
        self.key_hash = hash_api_key(key.api_key)

    async def spend(self, *costs: int, key_id: str | None = None) -> None:
        loan = await lend(self.ledger.lender, self.account_id, sum(costs))  # type: ignore[arg-type]
        assert loan >= sum(costs)
        await self.ledger.poster.post(
            tuple(entry(self.account_id, cost=cost, key_id=key_id or self.key_id) for cost in costs)
        )

    async def look(self, **fields: object) -> AccountView:
        query = AccountQuery(key_hash=self.key_hash, **fields)  # type: ignore[arg-type]
        return await account_view.read(self.ledger.database, self.ledger.meters, query)


async def holder_of(apps: LedgerApps, nanos: int, **limits: object) -> Holder:
    ledger = apps.ledger
    account_id = await account_with(ledger.database, nanos)
    new = await keys.create(
        ledger.database,
        ledger.meters,
        account_id=account_id,
        name="phone",
        limits=KeyLimits(**limits),  # type: ignore[arg-type]
    )
    return Holder(apps, account_id, new)


async def test_a_key_sees_its_use_and_what_is_left(apps: LedgerApps) -> None:
    await set_price(apps.ledger.database)
    holder = await holder_of(apps, 10 * DOLLAR, quota_nanos=3 * DOLLAR)
    await holder.spend(5_000, 7_000)
    view = await holder.look()
    assert (view.account_id, view.key_id, view.key_name) == (holder.account_id, holder.key_id, "phone")
    assert (view.key_used_nanos, view.balance_nanos) == (12_000, 10 * DOLLAR - 12_000)
    assert (view.key_quota_nanos, view.left_nanos) == (3 * DOLLAR, 3 * DOLLAR - 12_000)
    assert not view.stale
    [day] = view.days
    assert day.used_nanos == 12_000
    assert len(day.day) == 10


async def test_what_redis_spent_and_holds_is_in_the_balance(apps: LedgerApps, meter: MeterDouble) -> None:
    holder = await holder_of(apps, 10 * DOLLAR)
    lent = await lend(apps.ledger.lender, holder.account_id, DOLLAR)  # type: ignore[arg-type]
    account = AccountAudit(
        account_id=holder.account_id,  # type: ignore[arg-type]
        bucket=bucket_of(holder.account_id),
        epoch=1,
        granted_nanos=lent,
        spent_nanos=300,
        held_nanos=200,
        listed_held_nanos=200,
        gseq=1,
    )
    meter.accounts[holder.account_id] = account
    view = await holder.look()
    assert (view.balance_nanos, view.held_nanos) == (10 * DOLLAR - 300, 200)
    assert view.available_nanos == 10 * DOLLAR - 500
    assert view.left_nanos == 10 * DOLLAR - 300


async def test_without_a_meter_the_view_says_that_it_is_stale(apps: LedgerApps, meter: MeterDouble) -> None:
    holder = await holder_of(apps, DOLLAR)
    meter.answers_status = 503
    view = await holder.look()
    assert (view.stale, view.balance_nanos) == (True, DOLLAR)


async def test_a_key_sees_its_own_rows_only_page_by_page(
    apps: LedgerApps, monkeypatch: pytest.MonkeyPatch
) -> None:
    await set_price(apps.ledger.database)
    holder = await holder_of(apps, 10 * DOLLAR)
    for number in range(1, 8):
        await holder.spend(number * 1_000)
        await holder.spend(99_000, key_id="another-key")
    seen: list[int] = []
    before = ""
    for _page in range(10):
        view = await holder.look(usage_limit=3, usage_before=before)
        assert len(view.usage) <= 3
        seen += [row.cost_nanos for row in view.usage]
        before = view.usage_next_before
        if not before:
            break
    assert seen == [number * 1_000 for number in range(7, 0, -1)]
    # With few rows looked at, a page may hold less, and the cursor goes on all the same.
    monkeypatch.setattr(account_view, "ROWS_SEEN_MAX", 3)
    seen, before = [], ""
    for _page in range(10):
        view = await holder.look(usage_limit=100, usage_before=before)
        seen += [row.cost_nanos for row in view.usage]
        before = view.usage_next_before
        if not before:
            break
    assert seen == [number * 1_000 for number in range(7, 0, -1)]


async def test_a_cursor_that_is_no_session_is_refused(apps: LedgerApps) -> None:
    holder = await holder_of(apps, DOLLAR)
    with pytest.raises(BadRequest) as refused:
        await holder.look(usage_limit=1, usage_before="x")
    assert refused.value.param == "before"


async def test_keys_that_may_not_look_are_told_why(apps: LedgerApps) -> None:
    ledger = apps.ledger
    holder = await holder_of(apps, DOLLAR, addresses=("10.0.0.0/8", "2001:db8::/32"))
    for address in (None, "11.0.0.1", "nonsense", "2001:db9::1"):
        with pytest.raises(PermissionDenied) as denied:
            await holder.look(client_address=address)
        assert denied.value.code == "address_not_allowed"
    for address in ("10.1.2.3", "2001:db8::1"):
        assert (await holder.look(client_address=address)).balance_nanos == DOLLAR
    await keys.disable(ledger.database, ledger.meters, key_id=holder.key_id)
    with pytest.raises(InvalidApiKey) as disabled:
        await holder.look(client_address="10.1.2.3")
    assert disabled.value.code == "api_key_disabled"
    expired = await holder_of(apps, DOLLAR, expires_at_ms=int(time.time() * 1000) - 1)
    with pytest.raises(InvalidApiKey) as late:
        await expired.look()
    assert late.value.code == "api_key_expired"


async def test_over_http_a_view_or_a_refusal_is_answered(apps: LedgerApps, client: Client) -> None:
    holder = await holder_of(apps, DOLLAR)
    path = "/internal/v1/account_view"
    answer = await client.call(path, AccountAnswer, AccountQuery(key_hash=holder.key_hash))
    assert answer.view is not None
    assert answer.view.balance_nanos == DOLLAR
    unknown = await client.call(path, AccountAnswer, AccountQuery(key_hash=KeyHash("0" * 64)))
    assert unknown.view is None
    assert unknown.refused is not None
    assert (unknown.refused.error, unknown.refused.code) == ("InvalidApiKey", "invalid_api_key")
    assert msgspec.json.encode(unknown).startswith(b'{"refused":')
