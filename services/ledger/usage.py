"""Usage: the finished sessions of an account, newest first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from services.common.errors import BadRequest
from services.common.ids import AccountId, KeyId, SessionId
from services.common.money import TOKEN_CLASSES, TokenCounts
from services.ledger.database import Database, Row
from services.ledger.queries import load_queries

SQL = load_queries("usage")
LIST_MAX = 1_000


@dataclass(frozen=True, kw_only=True)
class Usage:
    """A posted session. `cost_nanos` = from the loan + from the balance + overrun (not charged)."""

    session_id: SessionId
    account_id: AccountId
    key_id: KeyId
    endpoint: str
    model: str
    stream: bool
    tokens: TokenCounts
    price_version: int
    ratio_ppm: int
    cost_nanos: int
    loan_nanos: int
    available_nanos: int
    overrun_nanos: int
    held_nanos: int
    outcome: str
    usage_source: str
    channel_id: str
    upstream_model: str
    edge_id: str
    request_id: str
    started_at_ms: int
    first_byte_ms: int
    duration_ms: int
    usage_json: str
    flags: tuple[str, ...]
    posted_at: datetime


async def list_usage(
    database: Database, *, account_id: str, before: str | None = None, limit: int = 100
) -> list[Usage]:
    """Newest first, those before the session `before`. Raises BadRequest."""
    if before is not None:
        try:
            UUID(before)
        except ValueError as error:
            raise BadRequest("`before` must be a session id.", param="before") from error
    rows = await database.fetch(SQL["usage_of_account"], account_id, before, max(1, min(limit, LIST_MAX)))
    return [_usage(row) for row in rows]


def _usage(row: Row) -> Usage:
    return Usage(
        session_id=SessionId(str(row["session_id"])),
        account_id=AccountId(row["account_id"]),
        key_id=KeyId(row["key_id"]),
        tokens=TokenCounts(**{name: row[f"{name}_tokens"] for name in TOKEN_CLASSES}),
        flags=tuple(row["flags"]),
        **{
            name: row[name]
            for name in (
                "endpoint",
                "model",
                "stream",
                "price_version",
                "ratio_ppm",
                "cost_nanos",
                "loan_nanos",
                "available_nanos",
                "overrun_nanos",
                "held_nanos",
                "outcome",
                "usage_source",
                "channel_id",
                "upstream_model",
                "edge_id",
                "request_id",
                "started_at_ms",
                "first_byte_ms",
                "duration_ms",
                "usage_json",
                "posted_at",
            )
        },
    )
