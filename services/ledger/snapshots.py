"""Key snapshots: what the meters are told of keys and their accounts."""

from __future__ import annotations

from services.common.contracts.lending import KeyLimits, KeySnapshot
from services.common.ids import AccountId, KeyHash, KeyId
from services.ledger.database import Database, Row
from services.ledger.meters import SNAPSHOTS_MAX, Meters
from services.ledger.queries import load_queries

SQL = load_queries("keys")


async def resolve(database: Database, key_hash: str) -> KeySnapshot | None:
    """The key with this hash, disabled ones too, or None."""
    row = await database.fetchrow(SQL["snapshot_by_hash"], key_hash)
    return None if row is None else snapshot(row)


async def push_key(database: Database, meters: Meters, *, key_id: str) -> None:
    """Raises MeterNotConfirmed."""
    rows = await database.fetch(SQL["snapshot_of_key"], key_id)
    await meters.configure([snapshot(row) for row in rows])


async def push_account(database: Database, meters: Meters, *, account_id: str) -> None:
    """Push all keys of an account. Raises MeterNotConfirmed."""
    after = ""
    while True:
        rows = await database.fetch(SQL["snapshots_of_account"], account_id, after, SNAPSHOTS_MAX)
        if rows:
            await meters.configure([snapshot(row) for row in rows])
            after = rows[-1]["key_id"]
        if len(rows) < SNAPSHOTS_MAX:
            return


def snapshot(row: Row) -> KeySnapshot:
    return KeySnapshot(
        key_hash=KeyHash(row["key_hash"]),
        key_id=KeyId(row["key_id"]),
        account_id=AccountId(row["account_id"]),
        bucket=row["bucket"],
        revision=row["revision"],
        key_state=row["key_state"],
        account_state=row["account_state"],
        ratio_ppm=row["ratio_ppm"],
        limits=limits(row),
        used_nanos=row["used_nanos"],
        used_day_nanos=row["used_day_nanos"],
        used_month_nanos=row["used_month_nanos"],
        used_day=row["used_day"],
        used_month=row["used_month"],
        late_nanos=row["late_nanos"],
        epoch=row["epoch"],
    )


def limits(row: Row) -> KeyLimits:
    return KeyLimits(
        quota_nanos=row["quota_nanos"],
        expires_at_ms=row["expires_at_ms"],
        models=None if row["models"] is None else tuple(row["models"]),
        addresses=None if row["addresses"] is None else tuple(row["addresses"]),
        requests_per_minute=row["requests_per_minute"],
        tokens_per_minute=row["tokens_per_minute"],
        concurrency=row["concurrency"],
        budget_day_nanos=row["budget_day_nanos"],
        budget_month_nanos=row["budget_month_nanos"],
    )
