"""Two ledgers over one database, all kinds of work at the same time."""

import asyncio
import random
from functools import partial

from services.common.contracts.lending import FenceRequest
from services.common.ids import AccountId, bucket_of
from services.common.metrics import new_registry
from services.ledger import accounts, epochs, reconcile
from services.ledger.database import Database
from services.ledger.frozen_loans import return_escrows
from services.ledger.loans import Lender
from services.ledger.metrics import LedgerMetrics
from services.ledger.posting import Poster
from tests.integration.ledger.entries import DOLLAR, account_with, entry, set_price
from tests.integration.ledger.test_loans import ask

ROUNDS = 15


class Life:
    """Random work on the same accounts, from both ledgers."""

    def __init__(self, database: Database, account_ids: list[AccountId]) -> None:
        self.database = database
        self.account_ids = account_ids
        self.metrics = LedgerMetrics(new_registry())
        self.ledgers = [
            (Poster(database, self.metrics), Lender(database, self.metrics)) for _number in range(2)
        ]
        self.random = random.Random(7)
        self.cost_nanos = 0

    def some(self) -> list[AccountId]:
        return self.random.sample(self.account_ids, 6)

    async def post(self, number: int) -> None:
        for _round in range(ROUNDS):
            sessions = [
                entry(
                    account_id,
                    cost=5_000,
                    loan=self.random.choice([0, 5_000]),
                    epoch=self.random.choice([1, 2]),
                )
                for account_id in self.some()
            ]
            self.cost_nanos += sum(session.record.cost_nanos for session in sessions)
            mine, other = self.ledgers[number][0], self.ledgers[1 - number][0]
            replies = await asyncio.gather(
                mine.post(sessions), other.post(sessions[::-1]), mine.post(sessions)
            )
            assert sum(reply.posted for reply in replies) == len(sessions)

    async def borrow(self, number: int) -> None:
        for _round in range(ROUNDS):
            current = await epochs.current_epochs(self.database)
            requests = [ask(account_id, epoch=current[bucket_of(account_id)]) for account_id in self.some()]
            await self.ledgers[number][1].lend(requests)

    async def credit(self) -> None:
        for number in range(ROUNDS):
            for account_id in self.some()[:3]:
                await accounts.credit(
                    self.database,
                    account_id=account_id,
                    nanos=self.random.choice([DOLLAR, -DOLLAR, -1_000]),
                    reason="test",
                    actor="test",
                    ref=f"{account_id}:{number}:{self.random.random()}",
                )

    async def fence_and_return(self) -> None:
        for _round in range(ROUNDS // 3):
            buckets = tuple(sorted({bucket_of(account_id) for account_id in self.some()}))
            request = FenceRequest(
                buckets=buckets, seen_epochs=(0,) * len(buckets), run_id="r", reason="test"
            )
            await epochs.fence(self.database, self.metrics, request)
            work = partial(
                return_escrows, account_ids=self.some(), bucket=buckets[0], epoch=1, unposted_nanos={}
            )
            await self.database.transaction(work)


async def test_two_ledgers_at_full_work_keep_the_books_exact_and_never_deadlock(
    migrated_database_url: str,
) -> None:
    retries: list[str] = []
    database = await Database.open(migrated_database_url, connections_max=20, observe_retry=retries.append)
    await set_price(database)
    life = Life(database, [await account_with(database, 3 * DOLLAR) for _ in range(10)])
    await asyncio.gather(
        life.post(0), life.post(1), life.borrow(0), life.borrow(1), life.credit(), life.fence_and_return()
    )
    differences, _review = await database.transaction(reconcile._check_books, isolation="repeatable_read")
    assert differences == []
    assert await database.fetchval("SELECT sum(cost_nanos)::bigint FROM usage") == life.cost_nanos
    assert "DeadlockDetectedError" not in retries
    await database.close()
