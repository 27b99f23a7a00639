import asyncio

import pytest

from services.common.errors import Unavailable
from services.ledger import accounts, epochs, reconcile
from tests.integration.ledger.entries import DOLLAR, account_with, lend
from tests.integration.ledger.meter_double import MeterDouble
from tests.integration.ledger_recovery.conftest import Books, listed
from tests.integration.ledger_recovery.edge_double import EdgeDouble


async def adjust(books: Books, account_id: str, nanos: int, ref: str = "down") -> accounts.Movement:
    return await accounts.credit(
        books.database, account_id=account_id, nanos=nanos, reason="refund", actor="test", ref=ref
    )


async def owed(books: Books, account_id: str) -> object:
    return await books.database.fetchval(
        "SELECT coalesce(sum(nanos - served_nanos), 0)::bigint FROM claim WHERE account_id = $1", account_id
    )


async def lent(books: Books, nanos: int = 4 * DOLLAR, *, in_hand: int = 0) -> str:
    account_id = await account_with(books.database, nanos)
    await lend(books.lender, account_id, nanos)
    if in_hand:
        await adjust(books, account_id, in_hand, ref="more")
    return account_id


async def assert_books_agree(books: Books) -> None:
    differences, _review = await books.database.transaction(
        reconcile._check_books, isolation="repeatable_read"
    )
    assert differences == []


async def test_an_adjustment_is_taken_from_the_balance_then_from_the_unheld_loan(
    books: Books, meter: MeterDouble
) -> None:
    account_id = await lent(books, in_hand=DOLLAR)
    meter.unheld_nanos[account_id] = 3 * DOLLAR
    moved = await adjust(books, account_id, -3 * DOLLAR)
    assert (moved.moved_nanos, moved.claimed_nanos) == (-DOLLAR, 2 * DOLLAR)
    await books.recalls.try_recall(account_id)
    assert await owed(books, account_id) == 0
    assert await books.available(account_id) == 0
    [recall] = meter.recalls
    assert (recall.epoch, recall.rseq, recall.wanted_nanos) == (1, 1, 2 * DOLLAR)
    row = await books.database.fetchrow("SELECT lent_nanos, returned_nanos FROM escrow")
    assert row is not None
    assert (row["lent_nanos"], row["returned_nanos"]) == (4 * DOLLAR, 2 * DOLLAR)
    await assert_books_agree(books)


async def test_a_recall_whose_answer_is_lost_is_asked_again_with_the_same_rseq(
    books: Books, meter: MeterDouble
) -> None:
    account_id = await lent(books)
    meter.unheld_nanos[account_id] = DOLLAR
    meter.is_recall_answer_lost = True
    with pytest.raises(Unavailable):
        await books.recalls.recall(account_id, DOLLAR)
    assert await books.available(account_id) == 0
    meter.is_recall_answer_lost = False
    # Another ledger asks at the same time.
    again = [books.recalls.ask_due(), books.restart().recalls.ask_due()]
    assert sum(await asyncio.gather(*again)) == DOLLAR
    assert {recall.rseq for recall in meter.recalls} == {1}
    assert await books.available(account_id) == DOLLAR
    await assert_books_agree(books)


async def test_claims_are_asked_for_again_and_served_from_what_returns_oldest_first(
    books: Books, meter: MeterDouble, edges: list[EdgeDouble]
) -> None:
    account_id = await lent(books)
    await adjust(books, account_id, -DOLLAR, "first")
    await adjust(books, account_id, -2 * DOLLAR, "second")
    await books.recalls.try_recall(account_id)
    assert await owed(books, account_id) == 3 * DOLLAR
    # A hold ends.
    meter.unheld_nanos[account_id] = DOLLAR
    await books.database.execute("UPDATE claim SET ask_at = now()")
    await books.round()
    assert await owed(books, account_id) == 2 * DOLLAR
    served = await books.database.fetch("SELECT served_nanos FROM claim ORDER BY id")
    assert [row["served_nanos"] for row in served] == [DOLLAR, 0]
    edges[0].sessions = [listed(account_id, DOLLAR // 2)]
    await books.fence(account_id)
    await books.round()
    assert (await owed(books, account_id), await books.available(account_id)) == (0, DOLLAR // 2)
    await assert_books_agree(books)


async def test_what_nothing_serves_is_a_receivable_that_the_next_credit_pays(books: Books) -> None:
    account_id = await account_with(books.database, DOLLAR)
    await adjust(books, account_id, -3 * DOLLAR)
    await books.round()
    receivable = (
        "SELECT sum(amount_nanos)::bigint FROM journal_entry WHERE ledger_account = 'platform:receivable'"
    )
    assert await books.database.fetchval(receivable) == -2 * DOLLAR
    await adjust(books, account_id, 5 * DOLLAR, "up")
    assert (await owed(books, account_id), await books.available(account_id)) == (0, 3 * DOLLAR)
    assert await books.database.fetchval(receivable) == 0
    await assert_books_agree(books)


async def test_a_recall_of_an_ended_epoch_takes_nothing(books: Books, meter: MeterDouble) -> None:
    account_id = await lent(books)
    meter.is_recall_answer_lost = True
    meter.unheld_nanos[account_id] = DOLLAR
    await books.recalls.try_recall(account_id, all_unheld=True)
    await books.fence(account_id)
    meter.is_recall_answer_lost = False
    meter._recalled.clear()
    meter.recall_error = "stale_epoch"
    assert await books.recalls.ask_due() == 0
    assert await books.database.fetchval("SELECT recalled_nanos FROM recall") == 0
    await books.round()
    assert await books.available(account_id) == 4 * DOLLAR
    await assert_books_agree(books)


@pytest.mark.parametrize("unheld", [0, 9 * DOLLAR])
async def test_a_redis_that_was_set_back_is_fenced(books: Books, meter: MeterDouble, unheld: int) -> None:
    account_id = await lent(books)
    meter.recall_error = "" if unheld else "out_of_order"
    meter.unheld_nanos[account_id] = unheld
    # More than the books have: Redis has forgotten what was recalled and settled.
    await books.database.execute(
        "INSERT INTO recall (account_id, epoch, rseq, wanted_nanos) VALUES ($1, 1, 1, $2)",
        account_id,
        9 * DOLLAR,
    )
    await books.recalls.ask_due()
    current = await epochs.current_epochs(books.database)
    assert max(current) == 2
    assert await books.available(account_id) == (4 * DOLLAR if unheld else 0)
    await assert_books_agree(books)


async def test_two_recalls_at_once_are_one_after_the_other(books: Books, meter: MeterDouble) -> None:
    account_id = await lent(books)
    meter.unheld_nanos[account_id] = 3 * DOLLAR
    came = await asyncio.gather(*(books.recalls.recall(account_id, DOLLAR) for _ in range(3)))
    rows = await books.database.fetch("SELECT rseq, recalled_nanos FROM recall ORDER BY rseq")
    assert [row["rseq"] for row in rows] == list(range(1, len(rows) + 1))
    assert sum(came) == sum(row["recalled_nanos"] for row in rows) == await books.available(account_id)
    await assert_books_agree(books)
