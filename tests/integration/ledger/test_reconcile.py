from typing import Any

import msgspec
import pytest

from services.common.contracts.lending import AccountAudit, KeyAudit
from services.common.ids import AccountId, KeyId, bucket_of
from services.ledger import reconcile
from services.ledger.database import Database
from services.ledger.late_use import LateUse
from services.ledger.loans import Lender
from services.ledger.posting import Poster
from services.ledger.reconcile import Reconciliation
from tests.integration.ledger.entries import DOLLAR, account_with, entry, lend, set_price
from tests.integration.ledger.meter_double import MeterDouble, meters_client

COST = 7_000


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "READS_MAX", 2)


@pytest.fixture
async def account_id(database: Database, lender: Lender, poster: Poster, meter: MeterDouble) -> AccountId:
    """An account whose one session is posted, the same in Redis and in the books."""
    await set_price(database)
    account_id = await account_with(database, 10 * DOLLAR)
    await lend(lender, account_id, 4 * DOLLAR)
    key_id = KeyId("key_1")
    await database.execute(
        "INSERT INTO api_key (id, account_id, key_hash, hint) VALUES ($1, $2, 'hash', 'hint')",
        key_id,
        account_id,
    )
    await poster.post([entry(account_id, cost=COST, key_id=key_id)])
    meter.accounts[account_id] = AccountAudit(
        account_id=account_id,
        bucket=bucket_of(account_id),
        epoch=1,
        granted_nanos=4 * DOLLAR,
        spent_nanos=COST,
        held_nanos=500,
        listed_held_nanos=500,
        gseq=1,
    )
    meter.keys = [KeyAudit(key_id=key_id, account_id=account_id, epoch=1, used_nanos=COST, held_nanos=500)]
    return account_id


async def run(database: Database, meter: MeterDouble) -> Reconciliation:
    async with meters_client(meter.url) as meters:
        return await reconcile.run(database, meters)


async def whats(database: Database, meter: MeterDouble) -> set[str]:
    return {row.what for row in (await run(database, meter)).differences}


async def test_books_that_agree_are_clean(
    database: Database, meter: MeterDouble, account_id: AccountId
) -> None:
    found = await run(database, meter)
    assert found.differences == ()
    assert found.is_clean
    assert (found.accounts_compared, found.moving_accounts) == (1, 0)


async def test_what_waits_in_the_outbox_is_no_difference(
    database: Database, meter: MeterDouble, account_id: AccountId
) -> None:
    change(meter, account_id, spent_nanos=COST + 900)
    meter.unposted[account_id] = {1: 900}
    meter.keys = [msgspec.structs.replace(meter.keys[0], used_nanos=COST + 900)]
    assert (await run(database, meter)).is_clean


async def test_a_loan_on_its_way_is_no_difference(
    database: Database, meter: MeterDouble, account_id: AccountId, lender: Lender
) -> None:
    await lend(lender, account_id, DOLLAR, applied_gseq=1)
    assert (await run(database, meter)).is_clean


def change(meter: MeterDouble, account_id: AccountId, **changes: Any) -> None:
    meter.accounts[account_id] = msgspec.structs.replace(meter.accounts[account_id], **changes)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"granted_nanos": 4 * DOLLAR + 1}, "granted"),
        ({"spent_nanos": COST + 1}, "spent and posted"),
        ({"spent_nanos": COST - 1}, "spent and posted"),
        ({"held_nanos": 501}, "held"),
        ({"gseq": 2}, "last loan"),
        ({"held_nanos": 5 * DOLLAR, "listed_held_nanos": 5 * DOLLAR}, "negative amount"),
    ],
)
async def test_one_nanodollar_in_redis_is_a_difference(
    database: Database, meter: MeterDouble, account_id: AccountId, changes: dict[str, int], what: str
) -> None:
    change(meter, account_id, **changes)
    assert what in await whats(database, meter)


@pytest.mark.parametrize("off_by", [1, -1])
async def test_one_nanodollar_of_key_use_is_a_difference(
    database: Database, meter: MeterDouble, account_id: AccountId, off_by: int
) -> None:
    meter.keys = [msgspec.structs.replace(meter.keys[0], used_nanos=COST + off_by)]
    assert "key use" in await whats(database, meter)


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE balance SET available_nanos = available_nanos + 1", "balance is the sum of its entries"),
        ("UPDATE escrow SET lent_nanos = lent_nanos + 1", "lent is the sum of the loans"),
        ("UPDATE escrow SET lent_nanos = lent_nanos + 1", "escrow is the sum of its entries"),
        ("UPDATE escrow SET settled_nanos = settled_nanos + 1", "settled is the sum of the usage"),
        ("UPDATE key_usage SET used_nanos = used_nanos + 1", "key use is the sum of the usage"),
        (
            "UPDATE key_usage SET used_nanos = used_nanos + 1 WHERE usage_window LIKE 'day:%'",
            "key use is the sum of the usage",
        ),
        ("DELETE FROM usage", "platform account is the sum of the usage"),
        (
            "ALTER TABLE journal_entry DISABLE TRIGGER USER;"
            " UPDATE journal_entry SET amount_nanos = amount_nanos + 1"
            " WHERE ledger_account = 'platform:revenue'",
            "journal transaction sums to zero",
        ),
    ],
)
async def test_one_nanodollar_in_the_books_is_a_difference(
    database: Database, meter: MeterDouble, account_id: AccountId, statement: str, what: str
) -> None:
    await database.execute(statement)
    assert what in await whats(database, meter)


async def test_an_account_that_redis_lost_is_a_difference(
    database: Database, meter: MeterDouble, account_id: AccountId
) -> None:
    del meter.accounts[account_id]
    meter.keys = []
    found = await run(database, meter)
    assert [(row.what, row.found) for row in found.differences] == [("account", "missing")]


async def test_use_of_a_key_that_came_past_redis_is_a_difference_once_redis_has_been_told(
    database: Database, meter: MeterDouble, account_id: AccountId, poster: Poster
) -> None:
    late = entry(account_id, cost=3_000, loan=0, key_id="key_1")
    await poster.post([msgspec.structs.replace(late, past_redis=True)])
    found = await run(database, meter)
    assert (found.is_clean, found.moving_accounts) == (True, 1)
    async with meters_client(meter.url) as meters:
        assert await LateUse(database, meters, poster.late_use_posted).push() == 1
    [told] = meter.configured
    assert (told.used_nanos, told.late_nanos) == (COST + 3_000, 3_000)
    assert await whats(database, meter) == {"key use"}
    meter.keys = [msgspec.structs.replace(meter.keys[0], used_nanos=COST + 3_000)]
    assert (await run(database, meter)).is_clean


async def test_meters_away_is_a_difference(
    database: Database, meter: MeterDouble, account_id: AccountId
) -> None:
    meter.answers_status = 503
    found = await run(database, meter)
    assert [row.found for row in found.differences] == ["not compared: no meter answers"]


async def test_a_charge_mismatch_is_a_difference_and_an_overrun_is_for_review(
    database: Database, meter: MeterDouble, account_id: AccountId, poster: Poster
) -> None:
    empty = await account_with(database, 0)
    await poster.post([entry(empty, cost=1_000, loan=0)])
    found = await run(database, meter)
    assert found.is_clean
    assert [row.kind for row in found.review] == ["overrun"]
    session_id = await database.fetchval(
        "SELECT session_id::text FROM usage WHERE account_id = $1", account_id
    )
    await poster.post([entry(account_id, cost=COST + 1_000, session_id=session_id)])
    assert await whats(database, meter) == {"exception: charge_mismatch"}
