import asyncio

import msgspec
import pytest

from services.common.contracts.lending import PostingEntry, PostingReply
from services.common.errors import BadRequest
from services.common.ids import new_uuid7
from services.ledger import usage
from services.ledger.database import Database
from services.ledger.loans import Lender
from services.ledger.metrics import LedgerMetrics
from services.ledger.posting import ENTRIES_PER_CALL_MAX, Poster
from services.ledger.reconcile import _check_books
from tests.integration.ledger.entries import DOLLAR, account_with, entry, lend, set_price


@pytest.fixture(autouse=True)
async def _priced(database: Database) -> None:
    await set_price(database)


def reply(posted: int = 0, duplicates: int = 0, exceptions: int = 0) -> PostingReply:
    return PostingReply(posted=posted, duplicates=duplicates, exceptions=exceptions)


async def available(database: Database, account_id: str) -> int:
    nanos = await database.fetchval("SELECT available_nanos FROM balance WHERE account_id = $1", account_id)
    assert isinstance(nanos, int)
    return nanos


async def settled(database: Database, account_id: str, epoch: int = 1) -> int:
    nanos = await database.fetchval(
        "SELECT settled_nanos FROM escrow WHERE account_id = $1 AND epoch = $2", account_id, epoch
    )
    assert isinstance(nanos, int)
    return nanos


async def exception_kinds(database: Database) -> list[str]:
    return [row["kind"] for row in await database.fetch("SELECT kind FROM exception_list ORDER BY id")]


async def assert_books_balance(database: Database) -> None:
    differences, _review = await database.transaction(_check_books, isolation="repeatable_read")
    assert [row for row in differences if not row.what.startswith("exception")] == []


async def test_a_session_is_charged_to_its_loan_and_shown_in_usage(
    database: Database, poster: Poster, lender: Lender
) -> None:
    account_id = await account_with(database, 10 * DOLLAR)
    await lend(lender, account_id, DOLLAR)
    session = entry(account_id, cost=7_000, flags=("counted", "sampled"), usage_json='{"a": 1}')
    assert await poster.post([session]) == reply(posted=1)
    assert await settled(database, account_id) == 7_000
    assert await available(database, account_id) == 9 * DOLLAR
    [row] = await usage.list_usage(database, account_id=account_id)
    assert row.session_id == session.record.session_id
    assert row.tokens == session.record.tokens
    assert (row.cost_nanos, row.loan_nanos, row.available_nanos, row.overrun_nanos) == (7_000, 7_000, 0, 0)
    assert row.flags == ("counted", "sampled")
    assert row.price_version == 1
    assert await exception_kinds(database) == []
    await assert_books_balance(database)


async def test_a_session_posted_twice_is_charged_once(
    database: Database, poster: Poster, lender: Lender
) -> None:
    account_id = await account_with(database, 10 * DOLLAR)
    await lend(lender, account_id, DOLLAR)
    session = entry(account_id, cost=7_000)
    assert await poster.post([session, session]) == reply(posted=1, duplicates=1)
    assert await poster.post([session]) == reply(duplicates=1)
    assert await settled(database, account_id) == 7_000
    assert await exception_kinds(database) == []


async def test_two_ledgers_posting_the_same_sessions_at_once_charge_them_once(
    database: Database, metrics: LedgerMetrics, lender: Lender
) -> None:
    account_ids = [await account_with(database, 10 * DOLLAR) for _ in range(5)]
    for account_id in account_ids:
        await lend(lender, account_id, DOLLAR)
    sessions = [entry(account_id, cost=1_000) for _ in range(20) for account_id in account_ids]
    posters = [Poster(database, metrics) for _ in range(4)]
    replies = await asyncio.gather(
        *(poster.post(sessions if number % 2 else sessions[::-1]) for number, poster in enumerate(posters))
    )
    assert sum(one.posted for one in replies) == 100
    assert sum(one.duplicates for one in replies) == 300
    assert [await settled(database, account_id) for account_id in account_ids] == [20_000] * 5
    await assert_books_balance(database)


async def test_the_same_session_with_another_cost_goes_to_the_exception_list(
    database: Database, poster: Poster, lender: Lender
) -> None:
    account_id = await account_with(database, 10 * DOLLAR)
    await lend(lender, account_id, DOLLAR)
    first = entry(account_id, cost=7_000)
    other = entry(account_id, cost=9_000, session_id=first.record.session_id)
    assert await poster.post([first]) == reply(posted=1)
    assert await poster.post([other]) == reply(exceptions=1)
    assert await poster.post([other]) == reply(exceptions=1)
    assert await settled(database, account_id) == 7_000
    assert await exception_kinds(database) == ["charge_mismatch"]


async def test_the_part_beyond_the_loan_is_charged_to_the_balance_and_then_to_the_operator(
    database: Database, poster: Poster, lender: Lender, metrics: LedgerMetrics
) -> None:
    account_id = await account_with(database, 5 * DOLLAR)
    await lend(lender, account_id, DOLLAR)
    sessions = [entry(account_id, cost=3 * DOLLAR, loan=0), entry(account_id, cost=2 * DOLLAR, loan=0)]
    assert await poster.post(sessions) == reply(posted=2)
    assert await available(database, account_id) == 0
    rows = await usage.list_usage(database, account_id=account_id)
    assert sum(row.overrun_nanos for row in rows) == DOLLAR
    assert sum(row.available_nanos for row in rows) == 4 * DOLLAR
    assert await exception_kinds(database) == ["overrun"]
    assert metrics.overrun_nanos._value.get() == DOLLAR
    await assert_books_balance(database)


async def test_a_session_of_an_epoch_whose_loan_went_back_is_charged_to_the_balance(
    database: Database, poster: Poster
) -> None:
    account_id = await account_with(database, 5 * DOLLAR)
    assert await poster.post([entry(account_id, cost=DOLLAR, epoch=7)]) == reply(posted=1)
    assert await available(database, account_id) == 4 * DOLLAR
    assert await exception_kinds(database) == ["escrow_short"]
    await assert_books_balance(database)


async def test_a_free_session_needs_no_loan_and_moves_no_money(database: Database, poster: Poster) -> None:
    account_id = await account_with(database, 0)
    assert await poster.post([entry(account_id, cost=0)]) == reply(posted=1)
    assert len(await usage.list_usage(database, account_id=account_id)) == 1
    assert await database.fetchval("SELECT count(*) FROM journal_transaction") == 0
    assert await exception_kinds(database) == []


async def test_poison_goes_to_the_exception_list_as_it_came_and_the_rest_posts(
    database: Database, poster: Poster, lender: Lender
) -> None:
    account_id = await account_with(database, 10 * DOLLAR)
    await lend(lender, account_id, DOLLAR)
    poison = [
        entry(account_id, cost=1_000, session_id="not a uuid \x00"),
        entry("acct_nobody", cost=1_000),
        entry(account_id, cost=1_000, loan=2_000),
        entry(account_id, cost=1_000, duration_ms=2**70),
    ]
    sound = [entry(account_id, cost=1_000) for _ in range(3)]
    batch = [sound[0], *poison[:2], sound[1], *poison[2:], sound[2]]
    assert await poster.post(batch) == reply(posted=3, exceptions=4)
    assert await poster.post(batch) == reply(duplicates=3, exceptions=4)
    assert await settled(database, account_id) == 3_000
    rows = await database.fetch("SELECT kind, detail FROM exception_list ORDER BY id")
    assert sorted(row["kind"] for row in rows) == ["bad_entry", "bad_entry", "bad_entry", "unknown_account"]
    kept = {row["detail"]["entry"]["record"]["session_id"] for row in rows}
    assert poison[1].record.session_id in kept
    await assert_books_balance(database)


async def test_an_entry_that_only_the_database_refuses_is_found_by_halving(
    database: Database, poster: Poster, lender: Lender
) -> None:
    account_id = await account_with(database, 10 * DOLLAR)
    await lend(lender, account_id, DOLLAR)
    # A rule of the database that the poster does not know.
    await database.execute("ALTER TABLE usage ADD CHECK (edge_id <> 'cursed')")
    sessions = [entry(account_id, cost=1_000, edge_id="cursed" if n == 5 else "edge") for n in range(9)]
    assert await poster.post(sessions) == reply(posted=8, exceptions=1)
    assert await settled(database, account_id) == 8_000
    assert await exception_kinds(database) == ["bad_entry"]
    await assert_books_balance(database)


async def test_a_charge_that_its_price_version_does_not_explain_stands_and_is_listed(
    database: Database, poster: Poster, lender: Lender
) -> None:
    account_id = await account_with(database, 10 * DOLLAR)
    await lend(lender, account_id, DOLLAR)
    wrong = entry(account_id, cost=7_000, cost_nanos=7_001)
    wrong = msgspec.structs.replace(wrong, loan_nanos=7_001)
    unknown = entry(account_id, cost=1_000, price_version=99)
    assert await poster.post([wrong, unknown]) == reply(posted=2)
    assert await settled(database, account_id) == 8_001
    assert sorted(await exception_kinds(database)) == ["price_mismatch", "price_unknown"]


async def test_sessions_of_any_month_find_a_partition(database: Database, poster: Poster) -> None:
    account_id = await account_with(database, DOLLAR)
    moments_ms = [1_000, 1_700_000_000_000, 1_785_600_000_000, 2**48 - 1]
    sessions = [entry(account_id, cost=1_000, session_id=new_uuid7(moment)) for moment in moments_ms]
    assert await poster.post(sessions) == reply(posted=4)
    assert await poster.post(sessions) == reply(duplicates=4)
    await assert_books_balance(database)


async def test_partitions_are_made_ahead_once(database: Database, poster: Poster) -> None:
    await poster.prepare()
    await poster.prepare()
    count = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'usage'::regclass"
    assert await database.fetchval(count) == 4
    account_id = await account_with(database, DOLLAR)
    await poster.post([entry(account_id, cost=1_000)])
    assert await database.fetchval("SELECT count(*) FROM usage_default") == 0


async def test_more_than_a_call_may_hold_is_refused(poster: Poster) -> None:
    too_many: list[PostingEntry] = [entry("a", cost=0)] * (ENTRIES_PER_CALL_MAX + 1)
    with pytest.raises(BadRequest):
        await poster.post(too_many)
    assert await poster.post([]) == reply()


async def test_usage_is_listed_newest_first_and_page_by_page(database: Database, poster: Poster) -> None:
    account_id = await account_with(database, DOLLAR)
    now_ms = 1_795_000_000_000
    sessions = [entry(account_id, cost=1_000, session_id=new_uuid7(now_ms + n)) for n in range(5)]
    await poster.post(sessions)
    ids = [session.record.session_id for session in reversed(sessions)]
    first = await usage.list_usage(database, account_id=account_id, limit=2)
    rest = await usage.list_usage(database, account_id=account_id, before=first[-1].session_id)
    assert [row.session_id for row in [*first, *rest]] == ids
    with pytest.raises(BadRequest):
        await usage.list_usage(database, account_id=account_id, before="x")
