import asyncio

import pytest

from services.common.contracts.lending import FenceRequest
from services.common.errors import BadRequest
from services.common.ids import bucket_of
from services.ledger import epochs
from services.ledger.database import Database
from services.ledger.epochs import FrozenLoans
from services.ledger.loans import Lender
from services.ledger.meters import MetersAway
from services.ledger.metrics import LedgerMetrics
from services.ledger.posting import Poster
from tests.integration.ledger.entries import DOLLAR, account_with, entry, lend, set_price
from tests.integration.ledger.meter_double import MeterDouble, meters_client
from tests.integration.ledger.test_loans import ask


def fence_of(*buckets: int, seen: int = 0) -> FenceRequest:
    return FenceRequest(
        buckets=buckets, seen_epochs=(seen,) * len(buckets), run_id="run-2", reason="epoch missing"
    )


async def available(database: Database, account_id: str) -> object:
    return await database.fetchval("SELECT available_nanos FROM balance WHERE account_id = $1", account_id)


async def test_every_bucket_starts_in_epoch_one(database: Database) -> None:
    assert await epochs.current_epochs(database) == (1,) * 256


async def test_a_fence_opens_an_epoch_above_everything_seen(
    database: Database, metrics: LedgerMetrics
) -> None:
    assert await epochs.fence(database, metrics, fence_of(3, 7)) == {3: 2, 7: 2}
    assert await epochs.fence(database, metrics, fence_of(7, seen=9)) == {7: 10}
    current = await epochs.current_epochs(database)
    assert (current[3], current[7], current[8]) == (2, 10, 1)


async def test_two_fences_at_once_open_two_epochs(database: Database, metrics: LedgerMetrics) -> None:
    opened = await asyncio.gather(*(epochs.fence(database, metrics, fence_of(*range(256))) for _ in range(4)))
    assert sorted(one[0] for one in opened) == [2, 3, 4, 5]


async def test_a_fence_of_an_impossible_bucket_is_refused(database: Database, metrics: LedgerMetrics) -> None:
    for request in (fence_of(256), fence_of(1, 1), fence_of(1, seen=-1)):
        with pytest.raises(BadRequest):
            await epochs.fence(database, metrics, request)


async def test_a_loan_of_an_ended_epoch_is_frozen_then_goes_back(
    database: Database, metrics: LedgerMetrics, lender: Lender, poster: Poster, meter: MeterDouble
) -> None:
    account_id = await account_with(database, 10 * DOLLAR)
    await lend(lender, account_id, 4 * DOLLAR)
    await poster.post([entry(account_id, cost=DOLLAR)])
    await epochs.fence(database, metrics, fence_of(bucket_of(account_id)))
    [frozen] = await lender.lend([ask(account_id, epoch=2, wanted=100 * DOLLAR)])
    assert frozen.frozen_nanos == 3 * DOLLAR
    assert sum(loan.nanos for loan in frozen.loans) == 6 * DOLLAR
    async with meters_client(meter.url) as meters:
        patient = FrozenLoans(database, meters, poster, metrics, grace_ms=60_000)
        assert await patient.return_due() == 0
        due = FrozenLoans(database, meters, poster, metrics, grace_ms=1)
        await asyncio.sleep(0.01)
        assert await due.return_due() == 3 * DOLLAR
        assert await due.return_due() == 0
    assert await available(database, account_id) == 3 * DOLLAR
    [after] = await lender.lend([ask(account_id, epoch=2)])
    assert after.frozen_nanos == 0
    assert await database.fetchval("SELECT count(*) FROM fence WHERE returned_at IS NULL") == 0


async def test_a_loan_stays_frozen_while_its_use_waits_in_the_outbox(
    database: Database, metrics: LedgerMetrics, lender: Lender, poster: Poster, meter: MeterDouble
) -> None:
    account_id = await account_with(database, 4 * DOLLAR)
    await lend(lender, account_id, 4 * DOLLAR)
    await epochs.fence(database, metrics, fence_of(bucket_of(account_id)))
    meter.unposted_nanos[account_id] = DOLLAR
    async with meters_client(meter.url) as meters:
        due = FrozenLoans(database, meters, poster, metrics, grace_ms=1)
        await asyncio.sleep(0.01)
        assert await due.return_due() == 0
        await poster.post([entry(account_id, cost=DOLLAR)])
        meter.unposted_nanos.clear()
        assert await due.return_due() == 3 * DOLLAR
    assert await available(database, account_id) == 3 * DOLLAR


async def test_posting_from_the_new_epoch_shows_that_the_old_outbox_is_empty(
    database: Database, metrics: LedgerMetrics, lender: Lender, poster: Poster, meter: MeterDouble
) -> None:
    await set_price(database)
    account_id = await account_with(database, 8 * DOLLAR)
    await lend(lender, account_id, 4 * DOLLAR)
    await epochs.fence(database, metrics, fence_of(bucket_of(account_id)))
    await lend(lender, account_id, DOLLAR, epoch=2)
    # Busy: something waits at every moment.
    meter.unposted_nanos[account_id] = DOLLAR
    await poster.post([entry(account_id, cost=1_000, epoch=2)])
    async with meters_client(meter.url) as meters:
        due = FrozenLoans(database, meters, poster, metrics, grace_ms=1)
        await asyncio.sleep(0.01)
        assert await due.return_due() == 4 * DOLLAR


async def test_loans_stay_frozen_while_no_meter_can_say_what_waits(
    database: Database, metrics: LedgerMetrics, lender: Lender, poster: Poster
) -> None:
    account_id = await account_with(database, 4 * DOLLAR)
    await lend(lender, account_id, 4 * DOLLAR)
    await epochs.fence(database, metrics, fence_of(bucket_of(account_id)))
    async with meters_client() as meters:
        due = FrozenLoans(database, meters, poster, metrics, grace_ms=1)
        await asyncio.sleep(0.01)
        with pytest.raises(MetersAway):
            await due.return_due()
    assert await available(database, account_id) == 0


async def test_no_loan_is_made_in_an_epoch_that_a_fence_has_ended(
    database: Database, metrics: LedgerMetrics
) -> None:
    account_id = await account_with(database, 1_000 * DOLLAR)
    lenders = [Lender(database, metrics) for _ in range(3)]

    async def borrow(lender: Lender) -> None:
        applied_gseq = 0
        for _round in range(10):
            [answer] = await lender.lend([ask(account_id, applied_gseq=applied_gseq)])
            if answer.error:
                assert answer.error == "stale_epoch"
                return
            applied_gseq = answer.loans[-1].gseq

    async def end_epoch() -> object:
        await asyncio.sleep(0.02)
        await epochs.fence(database, metrics, fence_of(bucket_of(account_id)))
        return await database.fetchval("SELECT lent_nanos FROM escrow WHERE account_id = $1", account_id)

    *_done, lent_at_fence = await asyncio.gather(*(borrow(lender) for lender in lenders), end_epoch())
    lent = await database.fetchval("SELECT lent_nanos FROM escrow WHERE account_id = $1", account_id)
    assert lent == lent_at_fence
