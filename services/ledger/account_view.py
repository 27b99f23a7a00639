"""What a key's holder may know with nothing but the key: its use, its quota, and the balance behind it.

A key sees the account's balance, but only its own usage: keys of one account may be in many hands.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from services.common.contracts.account import (
    DAYS_MAX,
    USAGE_ROWS_MAX,
    AccountQuery,
    AccountView,
    DayUse,
    UsageView,
)
from services.common.errors import BadRequest, InvalidApiKey, PermissionDenied
from services.common.ids import AccountId, KeyId, SessionId
from services.common.money import TOKEN_CLASSES, TokenCounts
from services.ledger import balances
from services.ledger.database import Database, Row
from services.ledger.meters import Meters
from services.ledger.queries import load_queries

SQL = load_queries("account_view")
ROWS_SEEN_MAX: Final = 5_000


async def read(database: Database, meters: Meters, query: AccountQuery) -> AccountView:
    """Raises InvalidApiKey, PermissionDenied, BadRequest, Unavailable (no database)."""
    key = await database.fetchrow(SQL["key_by_hash"], query.key_hash)
    if key is None:
        raise InvalidApiKey
    check_key(key, query.client_address)
    balance = await balances.read(database, meters, account_id=key["account_id"])
    days = await database.fetch(SQL["days_of_key"], key["id"], DAYS_MAX)
    usage, next_before = await _usage(database, key, query)
    return AccountView(
        account_id=AccountId(key["account_id"]),
        balance_nanos=balance.balance_nanos,
        held_nanos=balance.held_nanos,
        available_nanos=balance.available_nanos,
        key_id=KeyId(key["id"]),
        key_name=key["name"],
        key_used_nanos=key["used_nanos"],
        key_created_at_ms=key["created_at_ms"],
        key_quota_nanos=key["quota_nanos"],
        key_expires_at_ms=key["expires_at_ms"],
        stale=balance.stale,
        days=tuple(DayUse(day=row["day"], used_nanos=row["used_nanos"]) for row in reversed(days)),
        usage=usage,
        usage_next_before=next_before,
    )


def check_key(key: Row, client_address: str | None) -> None:
    """Whether the key may look. A suspended account may: its holder wants to know why nothing works.

    Raises InvalidApiKey, PermissionDenied.
    """
    if key["state"] != "active":
        raise InvalidApiKey(
            "This API key is disabled. Please use another key, or enable it in the console.",
            code="api_key_disabled",
        )
    expires_at_ms = key["expires_at_ms"]
    if expires_at_ms is not None and expires_at_ms <= time.time_ns() // 1_000_000:
        raise InvalidApiKey(
            "This API key has expired. Please create a new one in the console.", code="api_key_expired"
        )
    if key["addresses"] is not None and not _is_allowed(key["addresses"], client_address):
        raise PermissionDenied(
            "This API key may not be used from this address. Please use an allowed one, or change the key's "
            "addresses in the console.",
            code="address_not_allowed",
        )


def _is_allowed(networks: Sequence[str], client_address: str | None) -> bool:
    try:
        address = ipaddress.ip_address(client_address or "")
    except ValueError:
        return False
    return any(address in ipaddress.ip_network(network, strict=False) for network in networks)


async def _usage(database: Database, key: Row, query: AccountQuery) -> tuple[tuple[UsageView, ...], str]:
    """The rows, and where to go on."""
    if query.usage_limit <= 0:
        return (), ""
    before = _session_id(query.usage_before)
    limit = min(query.usage_limit, USAGE_ROWS_MAX)
    rows = await database.fetch(
        SQL["usage_of_key"], key["account_id"], key["id"], before, ROWS_SEEN_MAX, limit + 1
    )
    found = [row for row in rows if row["session_id"] is not None]
    if len(found) > limit:
        return tuple(map(_usage_view, found[:limit])), str(found[limit - 1]["session_id"])
    last_seen = rows[0]["last_seen"] if rows else None
    return tuple(map(_usage_view, found)), "" if last_seen is None else str(last_seen)


def _session_id(text: str) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError as error:
        raise BadRequest("`before` must be a session id.", param="before") from error


def _usage_view(row: Row) -> UsageView:
    return UsageView(
        session_id=SessionId(str(row["session_id"])),
        endpoint=row["endpoint"],
        model=row["model"],
        stream=row["stream"],
        tokens=TokenCounts(**{name: row[f"{name}_tokens"] for name in TOKEN_CLASSES}),
        price_version=row["price_version"],
        cost_nanos=row["cost_nanos"],
        outcome=row["outcome"],
        usage_source=row["usage_source"],
        started_at_ms=row["started_at_ms"],
        first_byte_ms=row["first_byte_ms"],
        duration_ms=row["duration_ms"],
    )
