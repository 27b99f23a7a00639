"""`reconcile --repair`: only what is proven, only through the journal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from services.common.ids import bucket_of
from services.ledger import reconcile, repair, verify
from services.ledger.app import LedgerApps
from services.ledger.database import Database
from services.ledger.settings import LedgerSettings
from tests.integration.ledger.entries import DOLLAR, entry, lend, set_price
from tests.integration.ledger_catalogue.conftest import Api, api, apps, console, meter, settings
from tests.integration.ledger_chain.conftest import ByHand

__all__ = ["api", "apps", "console", "meter", "settings"]
COST = 7_000
REST = 4 * DOLLAR - COST


@pytest.fixture
def database(apps: LedgerApps) -> Database:
    return apps.ledger.database


@pytest.fixture
async def account_id(api: Api, apps: LedgerApps, database: Database) -> str:
    """Lent 4 of 10 dollars in an epoch that has ended; its return was closed, yet something is left."""
    await set_price(database)
    account_id = (await api.call("POST", "/accounts"))["account_id"]
    await api.call("POST", f"/accounts/{account_id}/credits", {"usd": "10", "reason": "gift"})
    await lend(apps.ledger.lender, account_id, 4 * DOLLAR)
    await apps.ledger.poster.post([entry(account_id, cost=COST)])
    await database.execute("UPDATE bucket SET epoch = 2 WHERE bucket = $1", bucket_of(account_id))
    await database.execute(
        "INSERT INTO fence (bucket, epoch, run_id, reason, fenced_at, returned_at)"
        " VALUES ($1, 1, '', 'test', now() - interval '4 hours', now() - interval '3 hours')",
        bucket_of(account_id),
    )
    return str(account_id)


async def run(api: Api) -> Mapping[str, Any]:
    answer: Mapping[str, Any] = await api.call("POST", "/reconcile/repair", {"reason": "lost in a test"})
    return answer


async def available(database: Database) -> int:
    found: int = await database.fetchval("SELECT available_nanos FROM balance")
    return found


async def test_what_was_left_of_an_ended_epoch_goes_back_by_a_journal_entry(
    api: Api, database: Database, account_id: str, migrated_database_url: str
) -> None:
    found = await run(api)
    assert found == {
        "is_clean": True,
        "repaired": [{"subject": f"{account_id} epoch 1", "nanos": REST}],
        "left": [],
    }
    newest = (await api.call("GET", "/journal"))["transactions"][0]
    assert newest["kind"] == "loan_return"
    assert {entry["amount_nanos"] for entry in newest["entries"]} == {REST, -REST}
    assert await available(database) == 10 * DOLLAR - COST
    (told,) = [
        entry
        for entry in (await api.call("GET", f"/audit?target={account_id}"))["entries"]
        if entry["action"] == "reconcile.repair"
    ]
    assert (told["actor"], told["detail"]["after"]["reason"]) == ("token", "lost in a test")
    assert await run(api) == {"is_clean": True, "repaired": [], "left": []}
    assert (await verify.run(migrated_database_url)).ok


async def test_while_no_meter_answers_it_stays_where_it_is(
    api: Api, database: Database, account_id: str, settings: LedgerSettings, apps: LedgerApps
) -> None:
    await apps.ledger.background.close()

    class Away:
        async def return_due(self) -> int:
            raise repair.Unavailable("No meter can say whether the outbox is empty.")

    found = await repair.run(database, apps.ledger.meters, Away(), reason="x", actor="token")
    assert (found.is_clean, found.repaired) == (False, ())
    [left] = found.left
    assert (left.subject, "No meter" in left.why) == (f"{account_id} epoch 1", True)
    assert await available(database) == 6 * DOLLAR
    # Its fence is open again: the ordinary return finds it.
    assert await apps.ledger.frozen_loans.return_due() == REST


@pytest.mark.parametrize("statement", ["UPDATE bucket SET epoch = 1", "DELETE FROM fence"])
async def test_a_loan_whose_return_was_not_closed_is_no_matter_of_repair(
    api: Api, database: Database, account_id: str, statement: str
) -> None:
    await database.execute(statement)
    assert (await run(api))["repaired"] == []
    assert await available(database) == 6 * DOLLAR


async def test_a_row_that_contradicts_the_journal_is_left_and_told(
    api: Api, database: Database, account_id: str, by_hand: ByHand
) -> None:
    await by_hand("UPDATE fence SET returned_at = now() WHERE returned_at IS NOT NULL")
    await by_hand("UPDATE bucket SET epoch = 1")
    await by_hand("UPDATE balance SET available_nanos = available_nanos + 1")
    await by_hand("UPDATE escrow SET lent_nanos = lent_nanos + 1")
    await by_hand("UPDATE usage SET cost_nanos = cost_nanos + 1, loan_nanos = loan_nanos + 1")
    found = await run(api)
    assert (found["is_clean"], found["repaired"]) == (False, [])
    told = {row["what"]: row["why"] for row in found["left"]}
    assert "contradicts the journal" in told["balance is the sum of its entries"]
    assert "contradicts the journal" in told["lent is the sum of the loans"]
    assert "usage" in told["platform account is the sum of the usage"]
    assert await available(database) == 6 * DOLLAR + 1


@pytest.mark.parametrize("reason", ["", " ", "x" * 501])
async def test_a_repair_needs_a_reason(api: Api, reason: str) -> None:
    answer = await api.call("POST", "/reconcile/repair", {"reason": reason}, status=400)
    assert answer["error"]["param"] == "reason"


def test_every_difference_has_its_answer() -> None:
    whats = [*reconcile.BOOK_CHECKS, "exception: bad_entry", "spent and posted"]
    answers = {what: repair.why_not(what) for what in whats}
    assert "exceptions resolve" in answers["exception: bad_entry"]
    assert "Redis" in answers["spent and posted"]
    assert not [what for what in reconcile.BOOK_CHECKS if "Redis" in answers[what]]
