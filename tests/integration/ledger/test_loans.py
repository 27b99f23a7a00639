import asyncio

import pytest

from services.common.contracts.lending import FenceRequest, Loan, LoanReply, LoanRequest
from services.common.errors import BadRequest
from services.common.ids import AccountId, bucket_of
from services.ledger import accounts, epochs
from services.ledger.database import Database
from services.ledger.loans import Lender
from services.ledger.metrics import LedgerMetrics
from tests.integration.ledger.entries import DOLLAR, account_with
from tests.integration.ledger.meter_double import meters_client


def ask(
    account_id: str, *, wanted: int = 1, epoch: int = 1, applied_gseq: int = 0, hold: int = 0
) -> LoanRequest:
    return LoanRequest(
        account_id=AccountId(account_id),
        epoch=epoch,
        applied_gseq=applied_gseq,
        wanted_nanos=wanted,
        largest_hold_nanos=hold,
    )


async def test_a_loan_moves_money_from_the_balance_to_escrow(database: Database, lender: Lender) -> None:
    account_id = await account_with(database, 10 * DOLLAR)
    [answer] = await lender.lend([ask(account_id, wanted=3 * DOLLAR)])
    assert answer == LoanReply(
        account_id=account_id, epoch=1, loans=(Loan(gseq=1, nanos=3 * DOLLAR),), available_nanos=7 * DOLLAR
    )
    row = await database.fetchrow("SELECT * FROM escrow WHERE account_id = $1", account_id)
    assert row is not None
    assert row["lent_nanos"] == 3 * DOLLAR


async def test_a_request_sent_again_gets_the_same_loan_and_no_new_one(
    database: Database, lender: Lender
) -> None:
    account_id = await account_with(database, 10 * DOLLAR)
    first = await lender.lend([ask(account_id, wanted=3 * DOLLAR)])
    again = await lender.lend([ask(account_id, wanted=3 * DOLLAR)])
    assert again == first


async def test_two_requests_in_one_call_share_one_loan(database: Database, lender: Lender) -> None:
    account_id = await account_with(database, 10 * DOLLAR)
    first, second = await lender.lend([ask(account_id), ask(account_id)])
    assert first.loans == second.loans == (Loan(gseq=1, nanos=DOLLAR),)


async def test_the_next_loan_has_the_next_gseq(database: Database, lender: Lender) -> None:
    account_id = await account_with(database, 10 * DOLLAR)
    await lender.lend([ask(account_id)])
    [answer] = await lender.lend([ask(account_id, applied_gseq=1)])
    assert answer.loans == (Loan(gseq=2, nanos=DOLLAR),)
    [all_of_them] = await lender.lend([ask(account_id, applied_gseq=0)])
    assert [loan.gseq for loan in all_of_them.loans] == [1, 2]


async def test_an_account_that_has_nothing_is_lent_nothing(database: Database, lender: Lender) -> None:
    account_id = await account_with(database, 0)
    [answer] = await lender.lend([ask(account_id)])
    assert answer == LoanReply(account_id=account_id, epoch=1)


async def test_who_may_not_borrow_is_told_why(
    database: Database, lender: Lender, metrics: LedgerMetrics
) -> None:
    suspended = await account_with(database, DOLLAR)
    stale = await account_with(database, DOLLAR)
    async with meters_client() as nobody:
        await accounts.suspend(database, nobody, account_id=suspended, actor="test")
    opened = await epochs.fence(
        database,
        metrics,
        FenceRequest(buckets=(bucket_of(stale),), seen_epochs=(0,), run_id="r", reason="test"),
    )
    current = opened[bucket_of(stale)]
    answers = await lender.lend([ask("acct_nobody"), ask(suspended), ask(stale)])
    assert [answer.error for answer in answers] == ["unknown_account", "suspended", "stale_epoch"]
    assert answers[2].epoch == current == 2
    assert all(answer.loans == () for answer in answers)


async def test_many_ledgers_lending_at_once_never_lend_more_than_there_is(
    database: Database, metrics: LedgerMetrics
) -> None:
    account_ids = [await account_with(database, 10 * DOLLAR) for _ in range(4)]
    lenders = [Lender(database, metrics) for _ in range(4)]

    async def borrow(lender: Lender, order: int) -> None:
        applied = dict.fromkeys(account_ids, 0)
        for _round in range(5):
            wanted = account_ids if order else account_ids[::-1]
            answers = await lender.lend(
                [ask(account, wanted=DOLLAR, applied_gseq=applied[account]) for account in wanted]
            )
            applied |= {answer.account_id: answer.loans[-1].gseq for answer in answers if answer.loans}

    await asyncio.gather(*(borrow(lender, number % 2) for number, lender in enumerate(lenders)))
    rows = await database.fetch(
        "SELECT available_nanos, lent_nanos, (SELECT array_agg(gseq ORDER BY gseq) FROM loan"
        " WHERE loan.account_id = balance.account_id) AS gseqs FROM balance JOIN escrow USING (account_id)"
    )
    assert [row["available_nanos"] + row["lent_nanos"] for row in rows] == [10 * DOLLAR] * 4
    assert all(row["gseqs"] == list(range(1, len(row["gseqs"]) + 1)) for row in rows)
    assert all(len(row["gseqs"]) >= 5 for row in rows)


async def test_a_redis_ahead_of_the_ledger_is_fenced_and_lent_nothing(
    database: Database, lender: Lender
) -> None:
    account_id = await account_with(database, 10 * DOLLAR)
    [answer] = await lender.lend([ask(account_id, applied_gseq=3)])
    assert (answer.error, answer.loans) == ("stale_epoch", ())
    assert (await epochs.current_epochs(database))[bucket_of(account_id)] == 2
    [answer] = await lender.lend([ask(account_id, epoch=2)])
    assert [loan.gseq for loan in answer.loans] == [1]


async def test_waiting_requests_are_lent_in_one_commit(database: Database, lender: Lender) -> None:
    account_ids = [await account_with(database, 10 * DOLLAR) for _ in range(20)]
    await asyncio.gather(*(lender.lend([ask(account_id)]) for account_id in account_ids))
    commits = await database.fetchval(
        "SELECT count(DISTINCT created_at) FROM journal_transaction WHERE kind = 'loan'"
    )
    assert commits <= 2


async def test_a_negative_amount_is_refused(lender: Lender) -> None:
    with pytest.raises(BadRequest):
        await lender.lend([ask("a", wanted=-1)])
