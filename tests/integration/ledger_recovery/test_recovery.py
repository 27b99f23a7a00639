import asyncio

import msgspec
import pytest

from services.common.contracts.lending import PostingEntry, PostingReply
from services.common.contracts.recovery import Recovered
from services.common.errors import BadRequest, Unavailable
from services.common.ids import EdgeId, SessionId, new_session_id, uuid7_ms
from services.ledger import gone_edges
from tests.integration.ledger.entries import DOLLAR, account_with, entry, lend
from tests.integration.ledger.meter_double import MeterDouble
from tests.integration.ledger_recovery.conftest import Books, listed
from tests.integration.ledger_recovery.edge_double import EdgeDouble


def told(*charged: PostingEntry, released: tuple[str, ...] = (), edge_id: str = "edge-0") -> Recovered:
    return Recovered(EdgeId(edge_id), "log-1", charged, tuple(map(SessionId, released)))


async def counts(books: Books) -> tuple[int, int, int]:
    row = await books.database.fetchrow(
        "SELECT (SELECT count(*) FROM usage) AS usage, (SELECT count(*) FROM exception_list) AS exceptions,"
        " (SELECT coalesce(sum(cost_nanos), 0)::bigint FROM usage) AS cost"
    )
    assert row is not None
    return row["usage"], row["exceptions"], row["cost"]


async def test_only_what_is_neither_posted_nor_ended_otherwise_is_missing(books: Books) -> None:
    account_id = await account_with(books.database, DOLLAR)
    await lend(books.lender, account_id, DOLLAR)
    posted = entry(account_id, cost=1_000)
    await books.poster.post([posted])
    released, other = new_session_id(), new_session_id()
    await books.fence(account_id)
    await books.recovery.recover(told(released=(released,)))
    ids = [posted.record.session_id, other, released, SessionId("no id")]
    assert await books.recovery.missing(ids) == (other, "no id")
    assert await books.recovery.missing([]) == ()
    with pytest.raises(BadRequest):
        await books.recovery.missing([other] * 10_001)


async def test_a_session_of_an_ended_epoch_is_posted_once_however_often_it_is_told(
    books: Books, edges: list[EdgeDouble]
) -> None:
    account_id = await account_with(books.database, 4 * DOLLAR)
    await lend(books.lender, account_id, 4 * DOLLAR)
    charged, released = entry(account_id, cost=7_000), listed(account_id, DOLLAR)
    edges[0].sessions = [listed(account_id, DOLLAR, session_id=charged.record.session_id), released]
    await books.fence(account_id)
    await books.round()
    assert await books.available(account_id) == 2 * DOLLAR
    message = told(charged, released=(released.session_id,))
    assert await books.recovery.recover(message) == PostingReply(1, 0, 0)
    assert await books.recovery.recover(message) == PostingReply(0, 1, 0)
    # The outbox's own entry comes after all.
    assert (await books.poster.post([charged])).duplicates == 1
    await books.round()
    assert await books.available(account_id) == 4 * DOLLAR - 7_000
    assert await counts(books) == (1, 0, 7_000)
    assert await books.recovery.missing([charged.record.session_id, released.session_id]) == ()


async def test_a_session_of_the_current_epoch_is_settled_by_a_meter(books: Books, meter: MeterDouble) -> None:
    account_id = await account_with(books.database, DOLLAR)
    current = entry(account_id, cost=1_000)
    assert (await books.recovery.recover(told(current))).posted == 1
    [settle] = meter.settled
    assert (settle.record, settle.ref.epoch) == (current.record, 1)
    assert await counts(books) == (0, 0, 0)
    assert await books.recovery.missing([current.record.session_id]) == (current.record.session_id,)
    meter.answers_status = 503
    with pytest.raises(Unavailable):
        await books.recovery.recover(told(current))


async def test_what_cannot_be_posted_is_on_the_exception_list_and_not_missing(books: Books) -> None:
    account_id = await account_with(books.database, DOLLAR)
    await books.fence(account_id)
    poison = entry("acct_nobody", cost=1_000)
    torn = msgspec.structs.replace(entry(account_id, cost=1_000), loan_nanos=-5)
    nameless = entry(account_id, cost=1_000, session_id=SessionId("no id"))
    await books.fence("acct_nobody")
    assert (await books.recovery.recover(told(poison, torn, nameless))).exceptions == 3
    ids = [one.record.session_id for one in (poison, torn, nameless)]
    assert await books.recovery.missing(ids) == ()


async def test_the_log_of_a_forgotten_edge_charges_nothing_that_began_before(books: Books) -> None:
    account_id = await account_with(books.database, 4 * DOLLAR)
    await lend(books.lender, account_id, 4 * DOLLAR)
    double = EdgeDouble("edge-1")
    await double.register(books.database)
    late = entry(account_id, cost=5_000)
    await asyncio.sleep(0.01)
    await gone_edges.forget(books.database, edge_id="edge-1", actor="test")
    await books.fence(account_id)
    for _time in range(2):
        # Another edge has found the log.
        assert (await books.recovery.recover(told(late))).exceptions == 1
    assert await counts(books) == (0, 1, 0)
    assert await books.database.fetchval("SELECT kind FROM exception_list") == "late_log"
    assert await books.recovery.missing([late.record.session_id]) == ()
    # The edge registers again: what begins then is charged.
    await double.register(books.database)
    gone_at_ms = await books.database.fetchval(
        "SELECT (extract(epoch FROM gone_at) * 1000)::bigint FROM edge"
    )
    new = entry(account_id, cost=5_000, session_id=new_session_id())
    assert uuid7_ms(new.record.session_id) >= gone_at_ms
    assert (await books.recovery.recover(told(new))).posted == 1


async def test_the_log_of_an_edge_that_the_roll_call_gave_up_comes_too_late(
    books: Books, edges: list[EdgeDouble]
) -> None:
    account_id = await account_with(books.database, 4 * DOLLAR)
    await lend(books.lender, account_id, 4 * DOLLAR)
    late = entry(account_id, cost=5_000, edge_id=EdgeId("edge-1"))
    edges[1].answers_status = 503
    await books.fence(account_id)
    hasty = books.restart(edge_grace_ms=1)
    await asyncio.sleep(0.02)
    await edges[0].register(books.database)
    await hasty.round()
    assert await books.available(account_id) == 4 * DOLLAR
    assert (await books.recovery.recover(told(late, edge_id="edge-1"))).exceptions == 1
    assert await counts(books) == (0, 1, 0)


async def test_a_charged_checkpoint_stands_and_a_checkpoint_never_contradicts_a_record(books: Books) -> None:
    account_id = await account_with(books.database, 4 * DOLLAR)
    await lend(books.lender, account_id, 4 * DOLLAR)
    checkpoint = entry(account_id, cost=3_000, usage_source="checkpoint")
    session_id = checkpoint.record.session_id
    await books.poster.post([checkpoint])
    await books.fence(account_id)
    full = entry(account_id, cost=9_000, session_id=session_id)
    assert (await books.recovery.recover(told(full))).exceptions == 1
    assert await counts(books) == (1, 1, 3_000)
    own = entry(account_id, cost=9_000)
    await books.recovery.recover(told(own))
    swept = entry(account_id, cost=2_000, session_id=own.record.session_id, usage_source="checkpoint")
    assert (await books.poster.post([swept])).duplicates == 1
