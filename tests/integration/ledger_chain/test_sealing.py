"""Sealing: every committed transaction in exactly one block, whatever commits out of order or breaks off."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from datetime import timedelta

import asyncpg
import pytest

from services.common.metrics import new_registry
from services.ledger import chain, sealing, verify
from services.ledger.database import Connection, Database
from services.ledger.metrics import LedgerMetrics
from services.ledger.sealing import Horizon, Sealer
from tests.integration.ledger.entries import DOLLAR, account_with


async def write(
    connection: Connection | asyncpg.Connection, refs: Iterable[str], *, entries_each: int = 2
) -> None:
    """Transactions that move a nanodollar from one platform account to another."""
    await connection.execute(
        "WITH made AS (INSERT INTO journal_transaction (kind, ref) SELECT 'test', * FROM unnest($1::text[])"
        " RETURNING id) INSERT INTO journal_entry (transaction_id, ledger_account, amount_nanos)"
        " SELECT id, CASE place % 2 WHEN 0 THEN 'platform:cash' ELSE 'platform:credit' END,"
        " CASE place % 2 WHEN 0 THEN 1 ELSE -1 END FROM made, generate_series(1, $2) AS place",
        list(refs),
        entries_each,
    )


async def sealed_refs(database: Database) -> list[str | None]:
    """In the order of the chain."""
    rows = await database.fetch("SELECT content FROM journal_block ORDER BY number")
    return [t.ref for row in rows for t in chain.decode_all(chain.unpack(row["content"]))]


async def test_nothing_is_sealed_of_an_empty_journal(database: Database, sealer: Sealer) -> None:
    assert await sealer.seal_due() == 0
    assert await database.fetchval("SELECT count(*) FROM journal_block") == 0


async def test_a_transaction_that_commits_late_is_waited_for(
    database: Database, sealer: Sealer, migrated_database_url: str
) -> None:
    late = await asyncpg.connect(migrated_database_url)
    transaction = late.transaction()
    await transaction.start()
    await write(late, ["low id, late commit"])
    await write_one(database, "high id, early commit")
    # It may still commit under an id that is lower than one that can be seen.
    assert await sealer.seal_due() == 0
    assert await sealer.seal_due() == 0
    # A newer writer is not waited for: it can only have a higher id.
    await transaction.commit()
    await late.execute("BEGIN")
    await write(late, ["still open"])
    assert await sealer.seal_due() == 2
    assert await sealed_refs(database) == ["low id, late commit", "high id, early commit"]
    await late.execute("COMMIT")
    await late.close()
    assert await sealer.seal_due() == 1
    assert (await verify.run(migrated_database_url)).ok


async def test_an_id_that_was_taken_before_its_transaction_had_an_xid_is_waited_for(
    database: Database, sealer: Sealer, migrated_database_url: str
) -> None:
    """An INSERT takes its id, then waits in a trigger: it has written nothing, so no snapshot knows it."""
    await database.execute(
        "CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.ref = 'waits' THEN PERFORM pg_advisory_lock_shared(77); END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER wait_here BEFORE INSERT ON journal_transaction"
        " FOR EACH ROW EXECUTE FUNCTION wait_here()"
    )
    # The sequence logs ahead, so that an id costs its taker no xid.
    await write_one(database, "first")
    gate, writer = [await asyncpg.connect(migrated_database_url) for _ in range(2)]
    await gate.execute("SELECT pg_advisory_lock(77)")
    inserting = asyncio.create_task(
        writer.execute("INSERT INTO journal_transaction (kind, ref) VALUES ('test', 'waits')")
    )
    for _attempt in range(500):
        if await gate.fetchval("SELECT count(*) FROM pg_locks WHERE objid = 77 AND NOT granted"):
            break
        await asyncio.sleep(0.01)
    assert await gate.fetchval(
        "SELECT backend_xid IS NULL FROM pg_stat_activity WHERE pid = $1", writer.get_server_pid()
    )
    await write_one(database, "overtakes")
    assert await sealer.seal_due() == 0
    await gate.execute("SELECT pg_advisory_unlock(77)")
    await inserting
    assert await sealer.seal_due() == 3
    assert await sealed_refs(database) == ["first", "waits", "overtakes"]
    await gate.close()
    await writer.close()


async def test_a_rolled_back_transaction_leaves_a_gap_and_holds_up_nothing(
    database: Database, sealer: Sealer, migrated_database_url: str
) -> None:
    other = await asyncpg.connect(migrated_database_url)
    await other.execute("BEGIN")
    await write(other, ["never"])
    await write_one(database, "after the gap")
    await other.execute("ROLLBACK")
    await other.close()
    assert await sealer.seal_due() == 1
    assert (await verify.run(migrated_database_url)).ok


@pytest.mark.parametrize("is_same_server", [True, False])
async def test_what_was_known_of_another_server_is_forgotten(
    database: Database, is_same_server: bool
) -> None:
    """Restored from a backup: ids go back, and a writer of that name is another one."""
    await write_one(database, "one")
    newest = await database.fetchrow(sealing.SQL["newest_transaction"])
    assert newest is not None
    horizon = Horizon(database)
    started = newest["server_started"] - timedelta(seconds=0 if is_same_server else 9)
    seen_id = newest["id"] + (5 if is_same_server else -5)
    horizon._seen = sealing._Seen(started, seen_id, frozenset())
    assert await horizon.final_id() == newest["id"]


async def test_many_writers_and_three_sealers_at_once_skip_nothing_and_seal_nothing_twice(
    database: Database, migrated_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "BLOCK_TRANSACTIONS_MAX", 7)
    monkeypatch.setattr(sealing, "WRITERS_PAUSE_MS", 1)
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    sealers = [Sealer(database, LedgerMetrics(new_registry()), interval_ms=1) for _ in range(3)]
    tasks = [asyncio.create_task(sealer.run()) for sealer in sealers]
    committed: set[str] = set()

    async def write_some(writer: int) -> None:
        connection = await asyncpg.connect(migrated_database_url)
        for number in range(25):
            refs = [f"{writer}.{number}.{place}" for place in range(chance.randint(1, 4))]
            await connection.execute("BEGIN")
            for ref in refs:
                await write(connection, [ref])
                await asyncio.sleep(chance.choice((0, 0, 0.001, 0.01)))
            if chance.random() < 0.2:
                await connection.execute("ROLLBACK")
            else:
                await connection.execute("COMMIT")
                committed.update(refs)
        await connection.close()

    await asyncio.gather(*(write_some(writer) for writer in range(8)))
    meanwhile = await sealed_refs(database)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    while await sealers[0].seal_due():
        pass
    refs = await sealed_refs(database)
    assert len(refs) == len(set(refs)), f"seed {seed}"
    assert set(refs) == committed, f"seed {seed}"
    # Otherwise the sealers and the writers did not meet.
    assert len(meanwhile) > len(refs) / 4
    found = await verify.run(migrated_database_url)
    assert (found.ok, found.transactions, found.unsealed_transactions) == (True, len(committed), 0)


async def test_a_crash_before_the_commit_leaves_no_block_and_the_next_ledger_seals_it(
    database: Database, sealer: Sealer, migrated_database_url: str
) -> None:
    await write_one(database, "one")
    await database.execute(
        "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$;"
        "CREATE TRIGGER die AFTER INSERT ON journal_block FOR EACH ROW EXECUTE FUNCTION die()"
    )
    with pytest.raises(Exception, match="database"):
        await sealer.seal_due()
    assert await database.fetchval("SELECT count(*) FROM journal_block") == 0
    await database.execute("DROP TRIGGER die ON journal_block")
    assert await Sealer(database, LedgerMetrics(new_registry())).seal_due() == 1
    assert (await verify.run(migrated_database_url)).ok


async def test_a_sealer_that_another_one_holds_up_seals_nothing(
    database: Database, sealer: Sealer, migrated_database_url: str
) -> None:
    await write_one(database, "one")
    other = await asyncpg.connect(migrated_database_url)
    await other.execute("SELECT pg_advisory_lock(hashtext('meterway.journal_seal'))")
    assert await sealer.seal_due() == 0
    await other.execute("SELECT pg_advisory_unlock(hashtext('meterway.journal_seal'))")
    await other.close()
    assert await sealer.seal_due() == 1


async def test_a_block_that_does_not_continue_the_chain_is_refused(
    database: Database, sealer: Sealer
) -> None:
    await write_one(database, "one")
    await sealer.seal_due()
    copied = (
        "INSERT INTO journal_block SELECT number + 1, {first}, last_id + 5, transactions, entries,"
        " moved_nanos, sealed_at, {prev}, sha256(hash), content FROM journal_block"
    )
    for first, prev in (("last_id + 2", "hash"), ("last_id + 1", "prev_hash")):
        with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="does not continue"):
            await database.execute(copied.format(first=first, prev=prev))


async def test_a_round_is_bounded_and_the_metrics_tell_what_waits(
    database: Database, metrics: LedgerMetrics, sealer: Sealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "BLOCK_TRANSACTIONS_MAX", 2)
    monkeypatch.setattr(sealing, "BLOCKS_PER_ROUND_MAX", 3)
    await database.transaction(lambda connection: write(connection, [str(n) for n in range(8)]))
    await database.execute("SELECT pg_sleep(0.01)")
    assert await sealer.seal_due() == 6
    assert metrics.registry.get_sample_value("meterway_ledger_unsealed_transactions") == 2
    assert (metrics.registry.get_sample_value("meterway_ledger_seal_lag_seconds") or 0) >= 0.01
    assert await sealer.seal_due() == 2
    assert metrics.registry.get_sample_value("meterway_ledger_unsealed_transactions") == 0
    assert metrics.registry.get_sample_value("meterway_ledger_seal_lag_seconds") == 0
    assert metrics.registry.get_sample_value("meterway_ledger_sealed_transactions_total") == 8


async def test_sealing_goes_on_by_itself(database: Database, sealer: Sealer) -> None:
    running = asyncio.create_task(sealer.run())
    await account_with(database, DOLLAR)
    for _attempt in range(200):
        if await database.fetchval("SELECT count(*) FROM journal_block"):
            break
        await asyncio.sleep(0.01)
    running.cancel()
    assert await database.fetchval("SELECT sum(transactions) FROM journal_block") == 1


async def write_one(database: Database, ref: str) -> None:
    await database.transaction(lambda connection: write(connection, [ref]))
