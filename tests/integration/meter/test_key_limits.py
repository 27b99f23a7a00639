"""Limits of a key, checked in the same script as the money."""

import asyncio
import time

import msgspec
import pytest
import redis.asyncio

from services.common.contracts.charging import Admitted, Ended, Extended, KeyHint, Refused, Resolve
from services.common.contracts.lending import Configure, KeyLimits, KeySnapshot
from services.common.ids import KeyHash
from services.common.internal_http import bearer
from services.common.money import NANOS_PER_USD
from services.common.settings import Secret
from tests.integration.meter.conftest import RunningMeter, StartMeter
from tests.integration.meter.edge_line import (
    BODY,
    CREDENTIAL,
    extend_call,
    open_call,
    open_session,
    release_call,
    settle_call,
)
from tests.integration.meter.fake_ledger import FakeLedger

HOLD_100 = (8 * 10_000_000 + 100 * 30_000_000) // 1000


async def push(meter: RunningMeter, *snapshots: KeySnapshot) -> None:
    async with meter.line._http.post(
        f"{meter.url}/internal/v1/configure",
        data=msgspec.json.encode(Configure(snapshots)),
        headers=bearer(Secret(CREDENTIAL)),
    ) as response:
        assert response.status == 200


async def refused_open(meter: RunningMeter, key: KeySnapshot, **changes: object) -> Refused:
    refused = await open_session(meter.line, open_call(key, **changes))
    assert isinstance(refused, Refused), refused
    return refused


async def test_a_key_is_resolved_to_its_account(meter: RunningMeter, ledger: FakeLedger) -> None:
    key = ledger.add_key(ledger.add_account("a", 1), models=("gpt-4o",))
    hint = await meter.line.call(Resolve(key.key_hash))
    assert hint == KeyHint(key.key_id, key.account_id, key.bucket, ("gpt-4o",))
    refused = await meter.line.call(Resolve(KeyHash("0" * 64)))
    assert isinstance(refused, Refused)
    assert (refused.error, refused.code) == ("InvalidApiKey", "invalid_api_key")


@pytest.mark.parametrize(
    ("limits", "changes", "error", "code"),
    [
        ({"expires_at_ms": 1_000}, {}, "InvalidApiKey", "api_key_expired"),
        ({"models": ("other", "gpt-4")}, {}, "ModelNotFound", "model_not_found"),
        ({"models": ()}, {}, "ModelNotFound", "model_not_found"),
        (
            {"addresses": ("10.0.0.0/8",)},
            {"client_address": "11.0.0.1"},
            "PermissionDenied",
            "address_not_allowed",
        ),
        ({"addresses": ("10.0.0.0/8",)}, {}, "PermissionDenied", "address_not_allowed"),
        ({"quota_nanos": HOLD_100 - 1}, {}, "InsufficientQuota", "insufficient_quota"),
        ({"budget_day_nanos": HOLD_100 - 1}, {}, "InsufficientQuota", "insufficient_quota"),
        ({"budget_month_nanos": HOLD_100 - 1}, {}, "InsufficientQuota", "insufficient_quota"),
        ({"requests_per_minute": 0}, {}, "RateLimited", "rate_limit_exceeded"),
        ({"tokens_per_minute": 50}, {}, "RateLimited", "rate_limit_exceeded"),
        ({"concurrency": 0}, {}, "RateLimited", "rate_limit_exceeded"),
    ],
)
async def test_each_limit_refuses_in_its_own_way(
    meter: RunningMeter,
    ledger: FakeLedger,
    limits: dict[str, object],
    changes: dict[str, object],
    error: str,
    code: str,
) -> None:
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD), **limits)
    refused = await refused_open(meter, key, **changes)
    assert (refused.error, refused.code) == (error, code)


@pytest.mark.parametrize(
    "limits",
    [
        {"expires_at_ms": 4_000_000_000_000},
        {"models": ("other", "gpt-4o")},
        {"addresses": ("10.0.0.0/8", "192.168.1.7")},
        {"quota_nanos": HOLD_100},
        {"budget_day_nanos": HOLD_100},
        {"budget_month_nanos": HOLD_100},
        {"requests_per_minute": 1},
        {"tokens_per_minute": 1_000},
        {"concurrency": 1},
    ],
)
async def test_a_request_within_each_limit_is_admitted(
    meter: RunningMeter, ledger: FakeLedger, limits: dict[str, object]
) -> None:
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD), **limits)
    reply = await open_session(meter.line, open_call(key, client_address="192.168.1.7", body=BODY))
    assert isinstance(reply, Admitted)


async def test_the_message_names_the_limit_and_what_is_missing(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    account = ledger.add_account("a", 10 * NANOS_PER_USD)
    refused = await refused_open(meter, ledger.add_key(account, "quota", quota_nanos=2_080_000))
    assert "the quota of this API key (0.00208 USD)" in refused.message
    assert "0.001 USD are missing" in refused.message
    refused = await refused_open(meter, ledger.add_key(account, "day", budget_day_nanos=1))
    assert "daily budget" in refused.message


async def test_a_quota_counts_what_was_used_and_what_is_held(meter: RunningMeter, ledger: FakeLedger) -> None:
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD), quota_nanos=HOLD_100 * 5 // 2)
    first = await open_session(meter.line, open_call(key))
    second = await open_session(meter.line, open_call(key))
    assert isinstance(first, Admitted)
    assert isinstance(second, Admitted)
    assert "Running requests hold" in (await refused_open(meter, key)).message
    assert isinstance(await meter.line.call(settle_call(first, output_tokens=100)), Ended)
    await refused_open(meter, key)
    assert isinstance(await meter.line.call(release_call(key, second.ref.session_id, 3)), Ended)
    assert isinstance(await open_session(meter.line, open_call(key)), Admitted)


async def test_totals_of_the_ledger_count_for_quota_and_budgets(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    account = ledger.add_account("a", 10 * NANOS_PER_USD)
    day, month = time.strftime("%Y-%m-%d", time.gmtime()), time.strftime("%Y-%m", time.gmtime())
    used = {"used_nanos": 1_000, "used_day_nanos": 1_000, "used_month_nanos": 1_000, "used_month": month}
    for name, limits, changes, is_allowed in (
        ("q", {"quota_nanos": HOLD_100 + 999}, {}, False),
        ("d", {"budget_day_nanos": HOLD_100 + 999}, {"used_day": day}, False),
        ("m", {"budget_month_nanos": HOLD_100 + 999}, {"used_day": day}, False),
        ("yesterday", {"budget_day_nanos": HOLD_100 + 999}, {"used_day": "2026-01-01"}, True),
    ):
        key = ledger.change_key(ledger.add_key(account, name, **limits), **used, **changes)
        reply = await open_session(meter.line, open_call(key, body=BODY))
        assert isinstance(reply, Admitted if is_allowed else Refused), name


async def test_a_stream_gets_what_is_left_of_a_quota_as_its_final_part(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD), quota_nanos=80_000 + 40 * 30_000)
    admitted = await open_session(meter.line, open_call(key, stream=True, output_tokens_max=500))
    assert isinstance(admitted, Admitted)
    assert (admitted.granted_output_tokens, admitted.final) == (40, True)


async def test_requests_per_minute_are_counted_and_told(meter: RunningMeter, ledger: FakeLedger) -> None:
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD), requests_per_minute=3)
    for remaining in (2, 1, 0):
        admitted = await open_session(meter.line, open_call(key, body=BODY))
        assert isinstance(admitted, Admitted)
        assert admitted.rate_limits is not None
        assert admitted.rate_limits.requests_limit == 3
        assert admitted.rate_limits.requests_remaining == remaining
        assert admitted.rate_limits.tokens_limit is None
    refused = await refused_open(meter, key)
    assert refused.rate_limits is not None
    assert refused.rate_limits.requests_remaining == 0
    assert refused.retry_after_ms is not None
    assert 0 < refused.retry_after_ms <= 120_000


async def test_tokens_per_minute_are_corrected_by_what_was_used(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD), tokens_per_minute=250)
    first = await open_session(meter.line, open_call(key, body=BODY))
    second = await open_session(meter.line, open_call(key, body=BODY))
    assert isinstance(first, Admitted)
    assert isinstance(second, Admitted)
    assert (await refused_open(meter, key)).code == "rate_limit_exceeded"
    assert isinstance(await meter.line.call(settle_call(first, output_tokens=1)), Ended)
    assert isinstance(await open_session(meter.line, open_call(key, body=BODY)), Admitted)


async def test_a_concurrency_slot_is_freed_by_the_end_or_by_the_lease(
    start_meter: StartMeter, ledger: FakeLedger
) -> None:
    meter = await start_meter(lease_ms=400)
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD), concurrency=1)
    first = await open_session(meter.line, open_call(key, body=BODY))
    assert isinstance(first, Admitted)
    assert "1 requests at a time" in (await refused_open(meter, key)).message
    assert isinstance(await meter.line.call(settle_call(first, output_tokens=1)), Ended)
    assert isinstance(await open_session(meter.line, open_call(key, body=BODY)), Admitted)
    await refused_open(meter, key)
    await asyncio.sleep(0.45)
    assert isinstance(await open_session(meter.line, open_call(key, body=BODY)), Admitted)


async def test_a_disabled_key_stops_at_once_on_every_meter(
    start_meter: StartMeter, ledger: FakeLedger
) -> None:
    first, second = await start_meter(), await start_meter()
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD))
    call = open_call(key, stream=True, output_tokens_max=5_000)
    admitted = await open_session(second.line, call)
    assert isinstance(admitted, Admitted)
    disabled = ledger.change_key(key, key_state="disabled")
    await push(first, disabled)
    for meter in (first, second):
        assert (await refused_open(meter, key)).code == "api_key_disabled"
    ended = await second.line.call(extend_call(admitted, want=6_000, seq=5))
    assert isinstance(ended, Extended)
    assert ended.ended == "key_disabled"
    await push(first, ledger.change_key(disabled, key_state="active", account_state="suspended"))
    assert (await refused_open(second, key)).code == "account_suspended"
    # What was pushed first, and comes late, changes nothing.
    await push(first, key)
    assert (await refused_open(first, key)).code == "account_suspended"


async def test_a_raised_limit_is_in_force_when_the_push_is_answered(
    meter: RunningMeter, ledger: FakeLedger
) -> None:
    key = ledger.add_key(ledger.add_account("a", 10 * NANOS_PER_USD), quota_nanos=0)
    await refused_open(meter, key)
    await push(meter, ledger.change_key(key, limits=KeyLimits(quota_nanos=NANOS_PER_USD)))
    assert isinstance(await open_session(meter.line, open_call(key)), Admitted)


async def test_amounts_near_two_to_the_53_are_kept_exactly(
    meter: RunningMeter, ledger: FakeLedger, admin: redis.asyncio.Redis
) -> None:
    account = ledger.add_account("whale", 9_007_199_254_740_000)
    key = ledger.add_key(account, quota_nanos=9_007_199_254_740_991)
    assert isinstance(await open_session(meter.line, open_call(key)), Admitted)
    name = f"a:{{b{key.bucket}}}:{account}"
    ledger.balances[account] = 0
    answer = await meter.parts.store.grant(
        account,
        bucket=key.bucket,
        epoch=2,
        loans=_loan(2, 8_000_000_000_000_001),
        lendable_nanos=9_007_199_254_740_991,
    )
    assert answer.gseq == 2  # type: ignore[union-attr]
    assert int(await admin.hget(name, "granted_nanos")) == 8_000_000_000_000_001 + ledger.loans[account, 2][0]
    assert await admin.hget(name, "lendable_nanos") == b"9007199254740991"


def _loan(gseq: int, nanos: int) -> tuple[object, ...]:
    from services.common.contracts.lending import Loan  # noqa: PLC0415

    return (Loan(gseq, nanos),)
