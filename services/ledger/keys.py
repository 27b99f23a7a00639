"""API keys: create (shown once), disable, enable, list. Only the hash is stored."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import datetime

from services.common.contracts.lending import KeyLimits
from services.common.errors import BadRequest, NotFound
from services.common.ids import AccountId, KeyId, hash_api_key, new_api_key, new_key_id
from services.common.money import NANOS_MAX
from services.ledger import audit
from services.ledger.accounts import AccountNotFound
from services.ledger.database import Connection, Database, Row
from services.ledger.meters import MeterNotConfirmed, Meters
from services.ledger.queries import load_queries
from services.ledger.snapshots import limits as limits_of
from services.ledger.snapshots import push_key

SQL = load_queries("keys")
ACCOUNTS = load_queries("accounts")
HINT_CHARS = 4
NAME_CHARS_MAX = 100
LIST_MAX = 1_000
NO_LIMITS = KeyLimits()


class KeyNotFound(NotFound):
    """There is no such API key. Please check its id."""

    code = "key_not_found"


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """`api_key` is shown this once. `unconfirmed_meters`: those that did not confirm the new key in
    time; they ask for it when it is first used."""

    key_id: KeyId
    api_key: str = field(repr=False)
    hint: str
    unconfirmed_meters: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Key:
    id: KeyId
    account_id: AccountId
    name: str
    hint: str
    state: str
    limits: KeyLimits
    used_nanos: int
    created_at: datetime


async def create(
    database: Database,
    meters: Meters,
    *,
    account_id: str,
    name: str = "",
    limits: KeyLimits = NO_LIMITS,
    actor: str = "ledger",
) -> NewKey:
    """A new key, in force on every meter. Raises AccountNotFound, BadRequest."""
    check_key(name, limits)
    api_key, key_id = new_api_key(), new_key_id()
    hint = api_key[-HINT_CHARS:]

    async def work(connection: Connection) -> None:
        if await connection.fetchrow(ACCOUNTS["lock_account"], account_id) is None:
            raise AccountNotFound
        await connection.execute(
            SQL["insert_key"],
            key_id,
            account_id,
            hash_api_key(api_key),
            name,
            hint,
            limits.quota_nanos,
            limits.expires_at_ms,
            limits.models,
            limits.addresses,
            limits.requests_per_minute,
            limits.tokens_per_minute,
            limits.concurrency,
            limits.budget_day_nanos,
            limits.budget_month_nanos,
        )
        made = {"account_id": account_id, "name": name}
        await audit.record(connection, actor=actor, action="key.create", target=key_id, after=made)

    await database.transaction(work)
    unconfirmed: tuple[str, ...] = ()
    try:
        await push_key(database, meters, key_id=key_id)
    except MeterNotConfirmed as error:
        # The key can't be shown again: rather tell of the meter beside it than lose it.
        unconfirmed = error.urls
    return NewKey(key_id=key_id, api_key=api_key, hint=hint, unconfirmed_meters=unconfirmed)


async def disable(database: Database, meters: Meters, *, key_id: str, actor: str = "ledger") -> None:
    """In force on every meter when it returns. Raises KeyNotFound, MeterNotConfirmed."""
    await _set_state(database, meters, key_id=key_id, state="disabled", actor=actor)


async def enable(database: Database, meters: Meters, *, key_id: str, actor: str = "ledger") -> None:
    """In force on every meter when it returns. Raises KeyNotFound, MeterNotConfirmed."""
    await _set_state(database, meters, key_id=key_id, state="active", actor=actor)


async def list_keys(database: Database, *, account_id: str, after: str = "", limit: int = 100) -> list[Key]:
    """In the order of their ids, those after `after`."""
    rows = await database.fetch(SQL["keys_of_account"], account_id, after, max(1, min(limit, LIST_MAX)))
    return [_key(row) for row in rows]


async def _set_state(database: Database, meters: Meters, *, key_id: str, state: str, actor: str) -> None:
    async def work(connection: Connection) -> None:
        account_id = await connection.fetchval(SQL["owner"], key_id)
        if account_id is None:
            raise KeyNotFound
        await connection.fetchrow(ACCOUNTS["lock_account"], account_id)
        await connection.execute(SQL["set_key_state"], key_id, state)
        await audit.record(
            connection, actor=actor, action="key.set_state", target=key_id, after={"state": state}
        )

    await database.transaction(work)
    await push_key(database, meters, key_id=key_id)


def check_key(name: str, limits: KeyLimits) -> None:
    if len(name) > NAME_CHARS_MAX or "\x00" in name:
        raise BadRequest(f"A key's name has at most {NAME_CHARS_MAX} characters.", param="name")
    amounts = {
        "quota_nanos": limits.quota_nanos,
        "expires_at_ms": limits.expires_at_ms,
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "concurrency": limits.concurrency,
        "budget_day_nanos": limits.budget_day_nanos,
        "budget_month_nanos": limits.budget_month_nanos,
    }
    for field_name, amount in amounts.items():
        if amount is not None and not 0 <= amount <= NANOS_MAX:
            raise BadRequest(f"{field_name} must be between 0 and {NANOS_MAX}.", param=field_name)
    for address in limits.addresses or ():
        try:
            ipaddress.ip_network(address, strict=False)
        except ValueError as error:
            raise BadRequest(
                f"{address!r} is neither an IP address nor a network.", param="addresses"
            ) from error


def _key(row: Row) -> Key:
    return Key(
        id=KeyId(row["id"]),
        account_id=AccountId(row["account_id"]),
        name=row["name"],
        hint=row["hint"],
        state=row["state"],
        limits=limits_of(row),
        used_nanos=row["used_nanos"],
        created_at=row["created_at"],
    )
