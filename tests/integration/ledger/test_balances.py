import pytest

from services.common.contracts.lending import AccountAudit
from services.common.ids import AccountId, bucket_of
from services.ledger import balances
from services.ledger.accounts import AccountNotFound
from services.ledger.balances import Balance
from services.ledger.database import Database
from services.ledger.loans import Lender
from services.ledger.posting import Poster
from tests.integration.ledger.entries import DOLLAR, account_with, entry, lend
from tests.integration.ledger.meter_double import MeterDouble, meters_client


def in_redis(
    account_id: str, *, spent: int, held: int, granted: int = 4 * DOLLAR, epoch: int = 1
) -> AccountAudit:
    return AccountAudit(
        account_id=AccountId(account_id),
        bucket=bucket_of(account_id),
        epoch=epoch,
        granted_nanos=granted,
        spent_nanos=spent,
        held_nanos=held,
        listed_held_nanos=held,
        gseq=1,
    )


async def read(database: Database, meter: MeterDouble, account_id: str) -> Balance:
    async with meters_client(meter.url) as meters:
        return await balances.read(database, meters, account_id=account_id)


async def test_what_redis_has_spent_counts_before_it_is_posted(
    database: Database, lender: Lender, poster: Poster, meter: MeterDouble
) -> None:
    account_id = await account_with(database, 10 * DOLLAR)
    await lend(lender, account_id, 4 * DOLLAR)
    meter.accounts[account_id] = in_redis(account_id, spent=3_000, held=500)
    meter.unposted[account_id] = {1: 3_000}
    expected = Balance(
        account_id=account_id,
        balance_nanos=10 * DOLLAR - 3_000,
        held_nanos=500,
        available_nanos=10 * DOLLAR - 3_500,
    )
    assert await read(database, meter, account_id) == expected
    await poster.post([entry(account_id, cost=3_000)])
    meter.unposted.clear()
    assert await read(database, meter, account_id) == expected


async def test_what_waits_from_an_older_epoch_counts_too(
    database: Database, lender: Lender, meter: MeterDouble
) -> None:
    account_id = await account_with(database, 10 * DOLLAR)
    await lend(lender, account_id, 4 * DOLLAR)
    meter.accounts[account_id] = in_redis(account_id, spent=0, held=0, granted=0, epoch=2)
    meter.unposted[account_id] = {1: 2_000}
    assert (await read(database, meter, account_id)).balance_nanos == 10 * DOLLAR - 2_000


async def test_an_account_that_redis_does_not_know_has_what_the_books_say(
    database: Database, meter: MeterDouble
) -> None:
    account_id = await account_with(database, DOLLAR)
    assert await read(database, meter, account_id) == Balance(
        account_id=account_id, balance_nanos=DOLLAR, held_nanos=0, available_nanos=DOLLAR
    )


async def test_without_a_meter_the_answer_says_that_it_is_stale(
    database: Database, lender: Lender, meter: MeterDouble
) -> None:
    account_id = await account_with(database, 10 * DOLLAR)
    await lend(lender, account_id, 4 * DOLLAR)
    meter.answers_status = 503
    found = await read(database, meter, account_id)
    assert found.stale
    assert found.balance_nanos == 10 * DOLLAR


async def test_an_unknown_account_has_no_balance(database: Database, meter: MeterDouble) -> None:
    with pytest.raises(AccountNotFound):
        await read(database, meter, "acct_nobody")
