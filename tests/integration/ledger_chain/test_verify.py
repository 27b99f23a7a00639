"""Row 50 of the failure matrix: what was changed in the journal by hand is named by `verify`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import asyncpg
import pytest

from services.common.errors import BadRequest, Conflict
from services.common.ids import AccountId
from services.ledger import accounts, verify
from services.ledger.database import Database
from services.ledger.loans import Lender
from services.ledger.posting import Poster
from services.ledger.sealing import Sealer
from services.ledger.verify import Noted, Verification
from tests.integration.ledger.entries import DOLLAR, account_with, entry, lend, set_price
from tests.integration.ledger_chain.conftest import ByHand

COST = 7_000


@dataclass
class Books:
    """Two accounts; the transactions are: credit, credit, loan, usage (block 1), then three credits of the
    second account (block 2), then one more that no block has yet."""

    url: str
    first: AccountId
    second: AccountId
    ids: list[int]

    async def verify(self, *, from_block: int = 1, noted: Noted | None = None) -> Verification:
        return await verify.run(self.url, from_block=from_block, noted=noted)

    async def chain_faults(self) -> list[tuple[str, str, str | None]]:
        """(what, subject, field) of what the chain names."""
        found = await self.verify()
        assert not found.ok
        return [(f.what, f.subject, f.field) for f in found.faults if f.what.split()[0] in CHAIN]


CHAIN = ("transaction", "block", "entry")


@pytest.fixture
async def books(
    migrated_database_url: str, database: Database, lender: Lender, poster: Poster, sealer: Sealer
) -> Books:
    await set_price(database)
    first = await account_with(database, 10 * DOLLAR)
    second = await account_with(database, 3 * DOLLAR)
    await lend(lender, first, 4 * DOLLAR)
    await poster.post([entry(first, cost=COST), entry(first, cost=2 * COST)])
    assert await sealer.seal_due() == 4
    for number in range(3):
        await credit(database, second, f"gift {number}")
    assert await sealer.seal_due() == 3
    await credit(database, second, "unsealed")
    ids = [row["id"] for row in await database.fetch("SELECT id FROM journal_transaction ORDER BY id")]
    return Books(migrated_database_url, first, second, ids)


async def credit(database: Database, account_id: AccountId, reason: str) -> None:
    await accounts.credit(
        database, account_id=account_id, nanos=DOLLAR, reason=reason, actor="token", ref=f"ref of {reason}"
    )


async def test_untouched_books_are_ok(books: Books) -> None:
    found = await books.verify()
    assert found.faults == ()
    assert (found.ok, found.blocks, found.transactions, found.unsealed_transactions) == (True, 2, 7, 1)
    assert found.entries == 14
    assert found.head is not None
    assert found.head.number == 2


async def test_a_changed_amount_is_named_with_what_it_was(books: Books, by_hand: ByHand) -> None:
    await by_hand(
        "UPDATE journal_entry SET amount_nanos = amount_nanos + 5"
        " WHERE transaction_id = $1 AND ledger_account = 'platform:revenue'",
        books.ids[3],
    )
    found = await books.verify()
    subject = f"transaction {books.ids[3]}"
    [altered] = [fault for fault in found.faults if fault.what == "transaction altered"]
    assert (altered.subject, altered.transaction_id, altered.block, altered.field) == (
        subject, books.ids[3], 1, "entry"
    )  # fmt: skip
    assert altered.expected == f"{3 * COST} nanodollars at platform:revenue"
    assert altered.found == f"{3 * COST + 5} nanodollars at platform:revenue"
    # The trial balance sees it too, each sum that it is in.
    assert {fault.what for fault in found.faults} == {
        "transaction altered",
        "sum of all entries is zero",
        "journal transaction sums to zero",
        "platform account is the sum of the usage",
    }


@pytest.mark.parametrize("place", [0, 3, 6])
@pytest.mark.parametrize(
    ("field", "value"),
    [("reason", "bribe"), ("actor", "operator:other@example.com"), ("ref", "other"), ("kind", "repair")],
)
async def test_a_changed_text_is_named(
    books: Books, by_hand: ByHand, place: int, field: str, value: str
) -> None:
    number = books.ids[place]
    await by_hand(f"UPDATE journal_transaction SET {field} = $2 WHERE id = $1", number, value)
    found = await books.verify()
    [fault] = [fault for fault in found.faults if fault.what.split()[0] in CHAIN]
    assert (fault.what, fault.transaction_id, fault.field) == ("transaction altered", number, field)
    assert fault.found == value


@pytest.mark.parametrize("moment", ["created_at + interval '1 microsecond'", "'infinity'"])
async def test_a_changed_time_is_named(books: Books, by_hand: ByHand, moment: str) -> None:
    await by_hand(f"UPDATE journal_transaction SET created_at = {moment} WHERE id = $1", books.ids[5])
    assert await books.chain_faults() == [
        ("transaction altered", f"transaction {books.ids[5]}", "created_at_us")
    ]


async def test_a_deleted_transaction_is_named(books: Books, by_hand: ByHand) -> None:
    number = books.ids[1]
    await by_hand("DELETE FROM journal_entry WHERE transaction_id = $1", number)
    await by_hand("DELETE FROM journal_transaction WHERE id = $1", number)
    found = await books.verify()
    [deleted] = [
        fault for fault in found.faults if fault.what in ("transaction deleted", "transaction altered")
    ]
    assert (deleted.what, deleted.transaction_id, deleted.found) == ("transaction deleted", number, "none")
    assert f"{3 * DOLLAR} nanodollars at account:{books.second}:available" in deleted.expected


async def test_a_deleted_transaction_whose_entries_were_left_is_named(books: Books, by_hand: ByHand) -> None:
    number = books.ids[1]
    await by_hand("DELETE FROM journal_transaction WHERE id = $1", number)
    named = await books.chain_faults()
    assert set(named) == {
        ("transaction deleted", f"transaction {number}", None),
        ("entry without its transaction", f"transaction {number}", None),
    }


async def test_a_deleted_entry_is_named(books: Books, by_hand: ByHand) -> None:
    await by_hand(
        "DELETE FROM journal_entry WHERE transaction_id = $1 AND ledger_account = 'platform:credit'",
        books.ids[0],
    )
    found = await books.verify()
    [fault] = [fault for fault in found.faults if fault.what == "transaction altered"]
    assert (fault.expected, fault.found) == (f"{-10 * DOLLAR} nanodollars at platform:credit", "none")


async def test_a_transaction_put_in_between_is_named(
    books: Books, by_hand: ByHand, database: Database, sealer: Sealer
) -> None:
    await burn_an_id(database)
    await credit(database, books.second, "behind the gap")
    gap = books.ids[-1] + 1
    assert await sealer.seal_due() == 2
    await insert_by_hand(by_hand, gap, books.second)
    assert ("transaction inserted", f"transaction {gap}", None) in await books.chain_faults()


async def test_a_transaction_put_in_below_all_others_is_named(books: Books, by_hand: ByHand) -> None:
    await insert_by_hand(by_hand, -4, books.second)
    assert ("transaction inserted", "transaction -4", None) in await books.chain_faults()


async def test_a_pair_of_entries_put_into_a_sealed_transaction_is_named(
    books: Books, by_hand: ByHand
) -> None:
    for ledger_account, nanos in (("platform:cash", -5), ("platform:revenue", 5)):
        await by_hand(
            "INSERT INTO journal_entry (transaction_id, ledger_account, amount_nanos) VALUES ($1, $2, $3)",
            books.ids[4],
            ledger_account,
            nanos,
        )
    found = await books.verify()
    added = [fault for fault in found.faults if fault.what == "transaction altered"]
    assert {(fault.transaction_id, fault.expected) for fault in added} == {(books.ids[4], "none")}
    assert {fault.found for fault in added} == {
        "-5 nanodollars at platform:cash",
        "5 nanodollars at platform:revenue",
    }


async def test_entries_swapped_between_two_transactions_are_named_though_every_sum_is_right(
    books: Books, by_hand: ByHand
) -> None:
    """Both credits are of one dollar to one account: no sum tells it, nothing was really moved."""
    four, five = books.ids[4], books.ids[5]
    await by_hand(
        "UPDATE journal_transaction SET reason = CASE id WHEN $1::bigint THEN 'gift 1' ELSE 'gift 0' END"
        " WHERE id IN ($1::bigint, $2::bigint)",
        four,
        five,
    )
    found = await books.verify()
    assert [(f.transaction_id, f.field, f.expected, f.found) for f in found.faults] == [
        (four, "reason", "gift 0", "gift 1"),
        (five, "reason", "gift 1", "gift 0"),
    ]


async def test_amounts_swapped_between_two_accounts_are_named(books: Books, by_hand: ByHand) -> None:
    """The two opening credits change hands; every transaction still sums to zero."""
    await by_hand(
        "UPDATE journal_entry SET account_id = CASE account_id WHEN $1 THEN $2 ELSE $1 END, ledger_account ="
        " 'account:' || CASE account_id WHEN $1 THEN $2 ELSE $1 END || ':available'"
        " WHERE transaction_id = ANY($3::bigint[]) AND account_id IS NOT NULL",
        str(books.first),
        str(books.second),
        books.ids[:2],
    )
    found = await books.verify()
    altered = [fault for fault in found.faults if fault.what == "transaction altered"]
    assert [fault.transaction_id for fault in altered] == books.ids[:2]
    assert books.first in altered[0].expected
    assert books.second in altered[0].found
    assert "balance is the sum of its entries" in {fault.what for fault in found.faults}


async def test_the_order_of_rows_on_disk_does_not_matter(books: Books, by_hand: ByHand) -> None:
    await by_hand(
        "UPDATE journal_entry SET amount_nanos = amount_nanos WHERE transaction_id = $1", books.ids[2]
    )
    await by_hand("UPDATE journal_transaction SET reason = reason WHERE id = $1", books.ids[0])
    assert (await books.verify()).ok


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("last_id = last_id + 1", "last_id"),
        ("first_id = 0", "first_id"),
        ("transactions = transactions + 1", "transactions"),
        ("entries = entries - 1", "entries"),
        ("moved_nanos = moved_nanos + 1", "moved_nanos"),
        ("sealed_at = sealed_at - interval '1 day'", "hash"),
        ("hash = sha256('x')", "hash"),
        ("prev_hash = sha256('x')", "prev_hash"),
        ("content = 'x'", "content"),
    ],
)
@pytest.mark.parametrize("number", [1, 2])
async def test_an_altered_block_is_named_and_no_transaction_is_blamed(
    books: Books, by_hand: ByHand, number: int, change: str, field: str
) -> None:
    await by_hand(f"UPDATE journal_block SET {change} WHERE number = $1", number)
    assert await books.chain_faults() == [("block altered", f"block {number}", field)]


async def test_a_deleted_block_is_named_and_no_transaction_is_blamed(books: Books, by_hand: ByHand) -> None:
    await by_hand("DELETE FROM journal_block WHERE number = 1")
    found = await books.verify()
    assert [(fault.what, fault.subject) for fault in found.faults] == [("block deleted", "block 1")]


async def test_a_cut_off_end_of_the_chain_shows_against_what_was_noted(books: Books, by_hand: ByHand) -> None:
    noted = (await books.verify()).head
    assert (await books.verify(noted=noted)).ok
    await by_hand("DELETE FROM journal_block WHERE number = 2")
    assert (await books.verify()).ok
    [fault] = (await books.verify(noted=noted)).faults
    assert (fault.what, fault.block, fault.found) == ("block is not the one noted", 2, "none")


async def test_only_the_later_part_can_be_checked(books: Books, by_hand: ByHand) -> None:
    await by_hand("UPDATE journal_transaction SET reason = 'other' WHERE id = $1", books.ids[0])
    assert not (await books.verify()).ok
    later = await books.verify(from_block=2)
    assert (later.ok, later.blocks, later.transactions) == (True, 1, 3)
    with pytest.raises(BadRequest, match="no block 8"):
        await books.verify(from_block=9)


async def test_a_balance_set_by_hand_and_a_deleted_one_are_named(books: Books, by_hand: ByHand) -> None:
    await by_hand("UPDATE balance SET available_nanos = 1 WHERE account_id = $1", books.first)
    await by_hand("DELETE FROM balance WHERE account_id = $1", books.second)
    assert {(fault.what, fault.subject) for fault in (await books.verify()).faults} == {
        ("balance is the sum of its entries", books.first),
        ("account has a balance", books.second),
    }


async def test_an_unsealed_entry_that_belongs_nowhere_is_named(books: Books, by_hand: ByHand) -> None:
    await by_hand(
        "UPDATE journal_entry SET account_id = $2 WHERE transaction_id = $1 AND account_id IS NOT NULL",
        books.ids[-1],
        books.first,
    )
    found = await books.verify()
    assert ("entry stands where it can't belong", books.ids[-1]) in {
        (fault.what, fault.transaction_id) for fault in found.faults
    }


async def test_an_amount_too_large_for_a_sum_is_named_and_the_other_checks_go_on(
    books: Books, by_hand: ByHand
) -> None:
    await by_hand(
        "UPDATE journal_entry SET amount_nanos = 9223372036854775807"
        " WHERE transaction_id = ANY($1::bigint[]) AND account_id IS NOT NULL",
        books.ids[4:6],
    )
    found = await books.verify()
    assert {f.transaction_id for f in found.faults if f.what == "transaction altered"} == set(books.ids[4:6])
    assert "a number out of range" in {fault.found for fault in found.faults}


async def test_the_list_of_faults_is_bounded(
    books: Books, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "FAULTS_MAX", 3)
    await by_hand("UPDATE journal_transaction SET reason = 'all'")
    found = await books.verify()
    assert (len(found.faults), found.more_faults) == (3, 4)


async def test_small_reads_find_the_same(
    books: Books, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "ROWS_PER_READ", 2)
    monkeypatch.setattr(verify, "BLOCKS_PER_READ", 1)
    found = await books.verify()
    assert (found.ok, found.transactions, found.entries, found.unsealed_transactions) == (True, 7, 14, 1)
    await by_hand("UPDATE journal_transaction SET reason = 'x' WHERE id = $1", books.ids[6])
    assert await books.chain_faults() == [("transaction altered", f"transaction {books.ids[6]}", "reason")]


async def test_two_verifications_do_not_run_at_once(books: Books) -> None:
    connection = await asyncpg.connect(books.url)
    await connection.execute("SELECT pg_advisory_lock(hashtext('meterway.verify'))")
    with pytest.raises(Conflict, match="running already"):
        await books.verify()
    await connection.close()
    for _attempt in range(100):
        try:
            assert (await books.verify()).ok
            break
        except Conflict:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "statement",
    ["UPDATE journal_block SET entries = 1", "DELETE FROM journal_block", "TRUNCATE journal_block"],
)
async def test_blocks_cannot_be_changed(books: Books, database: Database, statement: str) -> None:
    with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
        await database.execute(statement)


async def burn_an_id(database: Database) -> None:
    with pytest.raises(asyncpg.UniqueViolationError):
        await database.execute(
            "INSERT INTO journal_transaction (kind, ref) SELECT kind, ref FROM journal_transaction LIMIT 1"
        )


async def insert_by_hand(by_hand: ByHand, number: int, account_id: str) -> None:
    await by_hand(
        "INSERT INTO journal_transaction (id, kind, ref) OVERRIDING SYSTEM VALUE VALUES ($1, 'credit', 'x')",
        number,
    )
    await by_hand(
        "INSERT INTO journal_entry (transaction_id, ledger_account, amount_nanos, account_id)"
        " VALUES ($1, 'platform:credit', -5, NULL), ($1, $2, 5, $3)",
        number,
        f"account:{account_id}:available",
        account_id,
    )
