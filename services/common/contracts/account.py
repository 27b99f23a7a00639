"""What an edge asks the ledger about the caller's own key and account (HTTP, JSON).

Edge to ledger
  POST /internal/v1/account_view   AccountQuery -> AccountAnswer
"""

from __future__ import annotations

import msgspec

from services.common.contracts.charging import Refused
from services.common.ids import AccountId, KeyHash, KeyId, SessionId
from services.common.money import TokenCounts

USAGE_ROWS_MAX = 100
DAYS_MAX = 100


class AccountQuery(msgspec.Struct, frozen=True, omit_defaults=True):
    """`usage_limit`: how many of the key's newest usage rows are wanted, at most 100; `usage_before`: only
    those before this session id."""

    key_hash: KeyHash
    client_address: str | None = None
    usage_limit: int = 0
    usage_before: str = ""


class DayUse(msgspec.Struct, frozen=True):
    """What a key used on one UTC day, such as `2026-11-24`."""

    day: str
    used_nanos: int


class UsageView(msgspec.Struct, frozen=True, omit_defaults=True):
    """One finished session of the key."""

    session_id: SessionId
    endpoint: str
    model: str
    stream: bool
    tokens: TokenCounts
    price_version: int
    cost_nanos: int
    outcome: str
    usage_source: str
    started_at_ms: int
    first_byte_ms: int
    duration_ms: int


class AccountView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key and the account that pays for it.

    `balance_nanos`: what is not charged yet; `available_nanos` = balance - held. `stale`: no meter answered:
    what was spent lately is missing, and holds are unknown (0). `key_used_nanos`: the key's posted use of
    all time. `key_quota_nanos` None: only the balance limits the key. `days`: the last 100 days with use,
    oldest first. `usage`: newest first; `usage_next_before`: ask again with it as `usage_before`, empty:
    these were the last.
    """

    account_id: AccountId
    balance_nanos: int
    held_nanos: int
    available_nanos: int
    key_id: KeyId
    key_name: str
    key_used_nanos: int
    key_created_at_ms: int
    key_quota_nanos: int | None = None
    key_expires_at_ms: int | None = None
    stale: bool = False
    days: tuple[DayUse, ...] = ()
    usage: tuple[UsageView, ...] = ()
    usage_next_before: str = ""

    @property
    def left_nanos(self) -> int:
        """What the key may still spend: what is left of its quota, at most the balance."""
        if self.key_quota_nanos is None:
            return self.balance_nanos
        return max(0, min(self.balance_nanos, self.key_quota_nanos - self.key_used_nanos))


class AccountAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of the two. `refused`: the key is unknown, disabled, expired or not for this address."""

    view: AccountView | None = None
    refused: Refused | None = None
