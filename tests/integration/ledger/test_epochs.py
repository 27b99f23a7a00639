import asyncio

import pytest

from services.common.contracts.lending import FenceRequest
from services.common.errors import BadRequest
from services.common.ids import bucket_of
from services.ledger import epochs
from services.ledger.database import Database
from services.ledger.loans import Lender
from services.ledger.metrics import LedgerMetrics
from tests.integration.ledger.entries import DOLLAR, account_with
from tests.integration.ledger.test_loans import ask


def fence_of(*buckets: int, seen: int = 0) -> FenceRequest:
    return FenceRequest(
        buckets=buckets, seen_epochs=(seen,) * len(buckets), run_id="run-2", reason="epoch missing"
    )


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
