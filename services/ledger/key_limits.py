"""Changing what an API key may do."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from services.common.contracts.lending import KeyLimits
from services.ledger import audit, keys
from services.ledger.database import Connection, Database
from services.ledger.meters import Meters
from services.ledger.queries import load_queries
from services.ledger.snapshots import limits as limits_of
from services.ledger.snapshots import push_key

SQL = load_queries("key_limits")


class LimitChanges(msgspec.Struct, frozen=True, kw_only=True):
    """UNSET keeps a limit, None removes it."""

    quota_nanos: int | UnsetType | None = UNSET
    expires_at_ms: int | UnsetType | None = UNSET
    models: tuple[str, ...] | UnsetType | None = UNSET
    addresses: tuple[str, ...] | UnsetType | None = UNSET
    requests_per_minute: int | UnsetType | None = UNSET
    tokens_per_minute: int | UnsetType | None = UNSET
    concurrency: int | UnsetType | None = UNSET
    budget_day_nanos: int | UnsetType | None = UNSET
    budget_month_nanos: int | UnsetType | None = UNSET


async def change_limits(
    database: Database,
    meters: Meters,
    *,
    key_id: str,
    changes: LimitChanges,
    name: str | None = None,
    actor: str,
) -> KeyLimits:
    """In force on every meter when it returns; answers all limits of the key.

    Raises KeyNotFound, BadRequest, MeterNotConfirmed.
    """
    changed = {field: value for field, value in msgspec.structs.asdict(changes).items() if value is not UNSET}

    async def change(connection: Connection) -> KeyLimits:
        account_id = await connection.fetchval(keys.SQL["owner"], key_id)
        if account_id is None:
            raise keys.KeyNotFound
        await connection.fetchrow(keys.ACCOUNTS["lock_account"], account_id)
        row = await connection.fetchrow(SQL["key"], key_id)
        assert row is not None
        before = limits_of(row)
        after = msgspec.structs.replace(before, **changed)
        new_name: str = row["name"] if name is None else name
        keys.check_key(new_name, after)
        await connection.execute(SQL["set_limits"], key_id, new_name, *msgspec.structs.astuple(after))
        await audit.record(
            connection,
            actor=actor,
            action="key.change_limits",
            target=key_id,
            before=_shown(row["name"], before),
            after=_shown(new_name, after),
        )
        return after

    limits = await database.transaction(change)
    await push_key(database, meters, key_id=key_id)
    return limits


def _shown(name: str, limits: KeyLimits) -> dict[str, Any]:
    return {"name": name, **msgspec.structs.asdict(limits)}
