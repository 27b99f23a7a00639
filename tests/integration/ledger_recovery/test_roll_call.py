import asyncio

from services.ledger import gone_edges
from tests.integration.ledger.entries import DOLLAR, account_with, entry, lend
from tests.integration.ledger.meter_double import MeterDouble
from tests.integration.ledger_recovery.conftest import Books, listed
from tests.integration.ledger_recovery.edge_double import EdgeDouble


async def lent_account(books: Books, nanos: int = 4 * DOLLAR) -> str:
    """All its money is out on loan in epoch 1."""
    account_id = await account_with(books.database, nanos)
    await lend(books.lender, account_id, nanos)
    return account_id


async def rest(books: Books, account_id: str, epoch: int = 1) -> object:
    return await books.database.fetchval(
        "SELECT lent_nanos - returned_nanos - settled_nanos FROM escrow WHERE account_id = $1 AND epoch = $2",
        account_id,
        epoch,
    )


async def test_when_every_edge_has_promised_the_loan_returns_at_once(
    books: Books, edges: list[EdgeDouble]
) -> None:
    account_id = await lent_account(books)
    epoch = await books.fence(account_id)
    await books.round()
    assert [set(edge.promised.values()) for edge in edges] == [{epoch}] * 2
    assert await books.available(account_id) == 4 * DOLLAR
    assert await books.database.fetchval("SELECT count(*) FROM fence WHERE returned_at IS NULL") == 0
    assert not await books.round()


async def test_the_loan_waits_for_the_last_edge_whatever_the_others_said(
    books: Books, edges: list[EdgeDouble]
) -> None:
    account_id = await lent_account(books)
    edges[1].answers_status = 503
    await books.fence(account_id)
    for _round in range(3):
        assert await books.round()
    assert await books.available(account_id) == 0
    # A ledger that starts anew finds the first edge's promise.
    calls = edges[0].calls
    edges[1].answers_status = 200
    await books.restart().round()
    assert edges[0].calls == calls
    assert await books.available(account_id) == 4 * DOLLAR


async def test_an_edge_whose_back_off_runs_is_not_asked_every_time(
    books: Books, edges: list[EdgeDouble]
) -> None:
    account_id = await lent_account(books)
    edges[1].answers_status = 503
    await books.fence(account_id)
    for _round in range(20):
        await books.roll_calls.round()
    assert edges[1].calls < 10


async def test_what_listed_sessions_hold_stays_until_they_have_ended(
    books: Books, edges: list[EdgeDouble]
) -> None:
    account_id = await lent_account(books)
    running, released, done = (listed(account_id, nanos) for nanos in (DOLLAR, DOLLAR // 2, DOLLAR // 4))
    edges[0].sessions = [running, released]
    edges[1].sessions = [done]
    await books.fence(account_id)
    await books.round()
    assert await books.available(account_id) == 4 * DOLLAR - 7 * DOLLAR // 4
    # Posted: its hold is gone, its cost is taken from the old loan.
    paid = entry(account_id, cost=DOLLAR // 5, session_id=running.session_id)
    await books.poster.post([paid])
    await books.round()
    assert await rest(books, account_id) == 3 * DOLLAR // 4
    # The same process lists it no more.
    edges[1].sessions = []
    await books.database.execute("UPDATE open_session SET listed_at = now() - interval '1 minute'")
    await books.round()
    await books.round()
    assert await rest(books, account_id) == DOLLAR // 2
    edges[0].sessions = []
    await books.database.execute("UPDATE open_session SET listed_at = now() - interval '1 minute'")
    await books.round()
    await books.round()
    assert await rest(books, account_id) == 0
    assert await books.available(account_id) == 4 * DOLLAR - DOLLAR // 5
    assert await books.database.fetchval("SELECT count(*) FROM fence WHERE returned_at IS NULL") == 0


async def test_a_new_process_must_promise_too_and_does_not_end_what_the_one_before_listed(
    books: Books, edges: list[EdgeDouble]
) -> None:
    account_id = await lent_account(books)
    edges[0].sessions = [listed(account_id, DOLLAR)]
    edges[1].answers_status = 503
    await books.fence(account_id)
    await books.round()
    edges[0].incarnation, edges[0].sessions = "edge-0-2", []
    await edges[0].register(books.database)
    edges[0].answers_status, edges[1].answers_status = 503, 200
    await books.round()
    assert await books.available(account_id) == 0
    edges[0].answers_status = 200
    await books.round()
    assert await books.available(account_id) == 3 * DOLLAR
    # It never tells of that session: after the grace it is the operator's.
    later = books.restart(edge_grace_ms=1, orphan_grace_ms=600_000)
    await books.database.execute("UPDATE open_session SET listed_at = now() - interval '1 hour'")
    await asyncio.sleep(0.01)
    await later.round()
    await later.round()
    assert await books.available(account_id) == 4 * DOLLAR
    assert await books.database.fetchval("SELECT resolution FROM open_session") == "gone"


async def test_what_waits_in_the_outbox_stays(
    books: Books, edges: list[EdgeDouble], meter: MeterDouble
) -> None:
    account_id = await lent_account(books)
    meter.unposted[account_id] = {1: DOLLAR, 2: 3 * DOLLAR}
    await books.fence(account_id)
    await books.round()
    assert await books.available(account_id) == 3 * DOLLAR
    await books.poster.post([entry(account_id, cost=DOLLAR)])
    # Of the new epoch something waits at every moment: that holds nothing up.
    meter.unposted[account_id] = {2: 3 * DOLLAR}
    await books.round()
    assert await rest(books, account_id) == 0


async def test_loans_stay_frozen_while_no_meter_can_say_what_waits(
    books: Books, edges: list[EdgeDouble], meter: MeterDouble
) -> None:
    account_id = await lent_account(books)
    meter.answers_status = 503
    await books.fence(account_id)
    await books.round()
    assert await books.available(account_id) == 0
    meter.answers_status = 200
    await books.round()
    assert await books.available(account_id) == 4 * DOLLAR


async def test_a_silent_edge_is_waited_for_and_then_given_up(books: Books, edges: list[EdgeDouble]) -> None:
    account_id = await lent_account(books)
    edges[1].answers_status = 503
    await books.fence(account_id)
    patient = books.restart(edge_grace_ms=300)
    await edges[0].register(books.database)
    await patient.round()
    assert await books.available(account_id) == 0
    await asyncio.sleep(0.35)
    await edges[0].register(books.database)
    await patient.round()
    assert await books.available(account_id) == 4 * DOLLAR
    assert patient.metrics.edges_given_up._value.get() == 1
    # It comes back: it promises, and nothing is reserved for what it lists of that epoch.
    edges[1].answers_status, edges[1].sessions = 200, [listed(account_id, DOLLAR)]
    await edges[1].register(books.database)
    await books.round()
    assert edges[1].promised
    assert await books.database.fetchval("SELECT count(*) FROM open_session") == 0


async def test_a_ledger_that_has_just_started_gives_no_edge_up(books: Books, edges: list[EdgeDouble]) -> None:
    account_id = await lent_account(books)
    edges[1].answers_status = 503
    await books.database.execute("UPDATE edge SET last_seen = now() - interval '1 day'")
    await books.fence(account_id)
    await books.restart(edge_grace_ms=60_000).round()
    assert await books.available(account_id) == 0


async def test_a_promise_that_is_repeated_or_comes_late_takes_nothing_back(
    books: Books, edges: list[EdgeDouble]
) -> None:
    account_id = await lent_account(books)
    session = listed(account_id, DOLLAR)
    edges[0].sessions = [session]
    await books.fence(account_id)
    await books.round()
    await books.poster.post([entry(account_id, cost=1_000, session_id=session.session_id)])
    await books.round()
    # The answers that were lost before are processed now.
    await books.database.execute("DELETE FROM promise")
    await books.round()
    assert await rest(books, account_id) == 0
    assert await books.database.fetchval("SELECT count(*) FROM open_session WHERE resolved_at IS NULL") == 0


async def test_a_forgotten_edge_is_not_waited_for_and_its_sessions_end_with_redis(
    books: Books, edges: list[EdgeDouble], meter: MeterDouble
) -> None:
    account_id = await lent_account(books)
    edges[1].sessions = [listed(account_id, DOLLAR)]
    await books.fence(account_id)
    await books.round()
    assert await books.available(account_id) == 3 * DOLLAR
    meter.running_sessions = 1
    await gone_edges.forget(books.database, edge_id="edge-1", actor="test")
    await books.round()
    assert await books.available(account_id) == 3 * DOLLAR
    meter.running_sessions = 0
    await asyncio.sleep(0.25)
    await books.round()
    await books.round()
    assert await books.available(account_id) == 4 * DOLLAR
    assert meter.forgotten == ["edge-1", "edge-1"]
    assert books.metrics.lost_sessions._value.get() == 1
    [row] = await books.database.fetch(
        "SELECT actor, action, target FROM audit_log WHERE action LIKE 'edge.%'"
    )
    assert tuple(row.values()) == ("test", "edge.forget", "edge-1")
    states = {edge.id: edge.state for edge in await gone_edges.list_edges(books.database)}
    assert states == {"edge-0": "active", "edge-1": "gone"}
