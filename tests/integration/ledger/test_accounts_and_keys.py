import asyncio

import pytest

from services.common.contracts.lending import KeyLimits
from services.common.errors import BadRequest, Conflict
from services.common.ids import bucket_of, hash_api_key
from services.ledger import accounts, keys, snapshots
from services.ledger.accounts import AccountNotFound
from services.ledger.database import Database
from services.ledger.keys import KeyNotFound
from services.ledger.meters import MeterNotConfirmed
from services.ledger.posting import Poster
from tests.integration.ledger.entries import DOLLAR, account_with, entry
from tests.integration.ledger.meter_double import MeterDouble, meters_client, running_meters


async def move(database: Database, account_id: str, nanos: int, ref: str) -> accounts.Movement:
    return await accounts.credit(
        database, account_id=account_id, nanos=nanos, reason="test", actor="test", ref=ref
    )


async def available(database: Database, account_id: str) -> object:
    return await database.fetchval("SELECT available_nanos FROM balance WHERE account_id = $1", account_id)


async def test_a_new_account_has_nothing(database: Database) -> None:
    account_id = await accounts.create_account(database, email="a@example.org")
    account = await accounts.get_account(database, account_id)
    assert (account.email, account.state, account.ratio_ppm) == ("a@example.org", "active", 1_000_000)
    assert await available(database, account_id) == 0
    assert [one.id for one in await accounts.list_accounts(database)] == [account_id]


async def test_an_email_has_one_account(database: Database) -> None:
    await accounts.create_account(database, email="a@example.org")
    with pytest.raises(Conflict):
        await accounts.create_account(database, email="a@example.org")


async def test_a_credit_is_carried_out_once_per_ref_whoever_races(database: Database) -> None:
    account_id = await account_with(database, 0)
    moves = await asyncio.gather(*(move(database, account_id, DOLLAR, "ref-1") for _ in range(8)))
    assert sorted(one.is_new for one in moves) == [False] * 7 + [True]
    assert len({one.transaction_id for one in moves}) == 1
    assert await available(database, account_id) == DOLLAR


async def test_a_ref_cannot_be_used_for_another_credit(database: Database) -> None:
    account_id, other = await account_with(database, 0), await account_with(database, 0)
    await move(database, account_id, DOLLAR, "ref-1")
    with pytest.raises(Conflict):
        await move(database, account_id, DOLLAR + 1, "ref-1")
    with pytest.raises(Conflict):
        await move(database, other, DOLLAR, "ref-1")
    assert await available(database, other) == 0


async def test_an_adjustment_down_takes_what_is_available_and_claims_the_rest(database: Database) -> None:
    account_id = await account_with(database, DOLLAR)
    taken = await move(database, account_id, -3 * DOLLAR, "down")
    assert (taken.moved_nanos, taken.claimed_nanos) == (-DOLLAR, 2 * DOLLAR)
    again = await move(database, account_id, -3 * DOLLAR, "down")
    assert (again.is_new, again.moved_nanos, again.claimed_nanos) == (False, -DOLLAR, 2 * DOLLAR)
    assert await available(database, account_id) == 0
    assert (await move(database, account_id, -1, "more")).claimed_nanos == 1
    for nanos, ref in ((-2 * DOLLAR, "down"), (-2, "more"), (1, "more")):
        with pytest.raises(Conflict):
            await move(database, account_id, nanos, ref)
    # What comes next pays the claims first.
    await move(database, account_id, 5 * DOLLAR, "up")
    assert await available(database, account_id) == 3 * DOLLAR - 1


async def test_amounts_and_accounts_that_cannot_be_are_refused(database: Database) -> None:
    account_id = await account_with(database, 0)
    for nanos in (0, 2**53, -(2**53)):
        with pytest.raises(BadRequest):
            await move(database, account_id, nanos, "r")
    with pytest.raises(BadRequest):
        await accounts.credit(database, account_id=account_id, nanos=1, reason=" ", actor="t", ref="r")
    with pytest.raises(AccountNotFound):
        await move(database, "acct_nobody", 1, "r")
    with pytest.raises(AccountNotFound):
        await accounts.get_account(database, "acct_nobody")


async def test_a_key_is_shown_once_and_kept_as_a_hash(database: Database, meter: MeterDouble) -> None:
    account_id = await account_with(database, 0)
    limits = KeyLimits(quota_nanos=DOLLAR, models=("m",), addresses=("10.0.0.0/8",), requests_per_minute=5)
    async with meters_client(meter.url) as meters:
        key = await keys.create(database, meters, account_id=account_id, name="laptop", limits=limits)
    assert key.api_key.startswith("sk-mw-")
    assert key.api_key not in repr(key)
    assert key.api_key.endswith(key.hint)
    assert key.unconfirmed_meters == ()
    found = await snapshots.resolve(database, hash_api_key(key.api_key))
    assert found is not None
    assert (found.key_id, found.account_id, found.bucket) == (key.key_id, account_id, bucket_of(account_id))
    assert found.limits == limits
    assert meter.configured == [found]
    [listed] = await keys.list_keys(database, account_id=account_id)
    assert (listed.name, listed.hint, listed.state) == ("laptop", key.hint, "active")
    dump = await database.fetch("SELECT to_jsonb(api_key)::text AS row FROM api_key")
    assert key.api_key not in str([row["row"] for row in dump])


async def test_an_unknown_key_resolves_to_nothing(database: Database) -> None:
    assert await snapshots.resolve(database, "0" * 64) is None


async def test_a_disabled_key_is_disabled_on_every_meter_when_the_call_returns(database: Database) -> None:
    account_id = await account_with(database, 0)
    async with running_meters(2) as [first, second], meters_client(first.url, second.url) as meters:
        key = await keys.create(database, meters, account_id=account_id)
        await keys.disable(database, meters, key_id=key.key_id)
        for meter in (first, second):
            assert [row.key_state for row in meter.configured] == ["active", "disabled"]
            assert meter.configured[0].revision < meter.configured[1].revision
        await keys.enable(database, meters, key_id=key.key_id)
        assert second.configured[-1].key_state == "active"
        with pytest.raises(KeyNotFound):
            await keys.disable(database, meters, key_id="key_nobody")


async def test_suspending_an_account_tells_every_meter_of_all_its_keys(
    database: Database, meter: MeterDouble
) -> None:
    account_id = await account_with(database, 0)
    async with meters_client(meter.url) as meters:
        made = {(await keys.create(database, meters, account_id=account_id)).key_id for _ in range(3)}
        revision = meter.configured[-1].revision
        meter.configured.clear()
        await accounts.suspend(database, meters, account_id=account_id, actor="test")
        assert {row.key_id for row in meter.configured} == made
        assert {row.account_state for row in meter.configured} == {"suspended"}
        assert min(row.revision for row in meter.configured) > revision
        await accounts.resume(database, meters, account_id=account_id, actor="test")
        assert meter.configured[-1].account_state == "active"
        with pytest.raises(AccountNotFound):
            await accounts.suspend(database, meters, account_id="acct_nobody", actor="test")


async def test_a_meter_that_is_not_running_is_skipped(database: Database, meter: MeterDouble) -> None:
    async with running_meters(1) as [gone]:
        stopped_url = gone.url
    account_id = await account_with(database, 0)
    async with meters_client(meter.url, stopped_url) as meters:
        key = await keys.create(database, meters, account_id=account_id)
        await keys.disable(database, meters, key_id=key.key_id)
    assert meter.configured[-1].key_state == "disabled"


async def test_a_meter_that_does_not_confirm_is_named_and_the_change_stands(database: Database) -> None:
    account_id = await account_with(database, 0)
    async with running_meters(3) as [sound, failing, slow]:
        failing.answers_status = 500
        slow.answer_delay_s = 5
        async with meters_client(sound.url, failing.url, slow.url, timeout_ms=200) as meters:
            key = await keys.create(database, meters, account_id=account_id)
            assert {url.split("/internal")[0] for url in key.unconfirmed_meters} == {failing.url, slow.url}
            with pytest.raises(MeterNotConfirmed) as caught:
                await keys.disable(database, meters, key_id=key.key_id)
    assert failing.url in caught.value.message
    assert slow.url in caught.value.message
    assert sound.url not in caught.value.message
    assert sound.configured[-1].key_state == "disabled"
    [row] = await keys.list_keys(database, account_id=account_id)
    assert row.state == "disabled"


async def test_limits_that_cannot_be_are_refused(database: Database, meter: MeterDouble) -> None:
    account_id = await account_with(database, 0)
    async with meters_client(meter.url) as meters:
        for limits in (
            KeyLimits(quota_nanos=-1),
            KeyLimits(addresses=("nowhere",)),
            KeyLimits(concurrency=2**60),
        ):
            with pytest.raises(BadRequest):
                await keys.create(database, meters, account_id=account_id, limits=limits)
        with pytest.raises(AccountNotFound):
            await keys.create(database, meters, account_id="acct_nobody")


async def test_a_snapshot_carries_what_the_key_has_used(
    database: Database, poster: Poster, meter: MeterDouble
) -> None:
    account_id = await account_with(database, DOLLAR)
    async with meters_client(meter.url) as meters:
        key = await keys.create(database, meters, account_id=account_id)
    await poster.post([entry(account_id, cost=5_000, key_id=key.key_id) for _ in range(3)])
    found = await snapshots.resolve(database, hash_api_key(key.api_key))
    assert found is not None
    assert (found.used_nanos, found.used_day_nanos, found.used_month_nanos) == (15_000,) * 3
    assert found.used_day.startswith(found.used_month)
    [listed] = await keys.list_keys(database, account_id=account_id)
    assert listed.used_nanos == 15_000
