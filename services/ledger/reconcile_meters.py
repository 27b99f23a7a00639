"""Redis against Postgres, account by account: pure.

Traffic may run while both are read. Postgres is read before and after Redis: what stood still in
between must be equal to the nanodollar; what moved must lie within what it moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.common.contracts.lending import AccountAudit, AuditReply, KeyAudit

KEY_USE = "key use"
KEY_USE_WAITING = "key use waiting for posting"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """`what` is compared, of which `subject`; `expected` is what the books say."""

    what: str
    subject: str
    expected: str
    found: str


@dataclass(frozen=True)
class Position:
    """An account in Postgres, for the epoch, gseq and rseq that Redis is at. `applied_nanos`: loans up to
    there less recalls. `is_recalling`: Redis has carried out a recall that the books have no answer of."""

    is_known: bool
    settled_nanos: int
    applied_nanos: int
    last_gseq: int
    last_rseq: int = 0
    is_recalling: bool = False


@dataclass(frozen=True)
class Positions:
    accounts: Mapping[str, Position]
    key_use_nanos: Mapping[str, int]


@dataclass
class Comparison:
    """`moving`: accounts that changed while they were read, and are within what they moved."""

    differences: dict[str, list[Difference]] = field(default_factory=dict)
    moving: set[str] = field(default_factory=set)

    def add(self, account_id: str, what: str, subject: str, *, expected: object, found: object) -> None:
        row = Difference(what=what, subject=subject, expected=str(expected), found=str(found))
        self.differences.setdefault(account_id, []).append(row)

    @property
    def unsure(self) -> set[str]:
        return self.moving | set(self.differences)


def compare(*, before: Positions, audit: AuditReply, after: Positions) -> Comparison:
    """Every account and key of the audit that both readings have."""
    comparison = Comparison()
    for account in audit.accounts:
        old, new = before.accounts.get(account.account_id), after.accounts.get(account.account_id)
        if old is None or new is None:
            comparison.moving.add(account.account_id)
        elif not new.is_known:
            comparison.add(
                account.account_id, "account", account.account_id, expected="unknown", found="in Redis"
            )
        else:
            unposted_nanos = audit.unposted_nanos.get(account.account_id, 0)
            _compare_account(comparison, account, old, new, unposted_nanos)
    _compare_keys(comparison, before, audit, after)
    return comparison


def _compare_account(
    comparison: Comparison, account: AccountAudit, old: Position, new: Position, unposted_nanos: int
) -> None:
    account_id, subject = account.account_id, f"{account.account_id} epoch {account.epoch}"
    if old != new or new.is_recalling:
        comparison.moving.add(account_id)
    if account.gseq > new.last_gseq:
        comparison.add(account_id, "last loan", subject, expected=new.last_gseq, found=account.gseq)
    if account.rseq < new.last_rseq:
        comparison.add(account_id, "last recall", subject, expected=new.last_rseq, found=account.rseq)
    if account.granted_nanos != new.applied_nanos and not new.is_recalling:
        comparison.add(
            account_id, "granted", subject, expected=new.applied_nanos, found=account.granted_nanos
        )
    posted_nanos = account.spent_nanos - unposted_nanos
    if not old.settled_nanos <= posted_nanos <= new.settled_nanos:
        comparison.add(
            account_id, "spent and posted", subject, expected=new.settled_nanos, found=posted_nanos
        )
    if account.held_nanos != account.listed_held_nanos:
        comparison.add(
            account_id, "held", subject, expected=account.listed_held_nanos, found=account.held_nanos
        )
    rest_nanos = account.granted_nanos - account.spent_nanos - account.held_nanos
    if min(account.granted_nanos, account.spent_nanos, account.held_nanos, rest_nanos, unposted_nanos) < 0:
        comparison.add(account_id, "negative amount", subject, expected=0, found=rest_nanos)


def _compare_keys(comparison: Comparison, before: Positions, audit: AuditReply, after: Positions) -> None:
    by_account: dict[str, list[KeyAudit]] = {}
    for key in audit.keys:
        by_account.setdefault(key.account_id, []).append(key)
    for account_id, keys in by_account.items():
        unposted_nanos = audit.unposted_nanos.get(account_id, 0)
        ahead_nanos = sum(key.used_nanos - before.key_use_nanos.get(key.key_id, 0) for key in keys)
        if unposted_nanos:
            comparison.moving.add(account_id)
        if 0 < unposted_nanos > ahead_nanos and account_id not in comparison.differences:
            comparison.add(
                account_id, KEY_USE_WAITING, account_id, expected=unposted_nanos, found=ahead_nanos
            )
        for key in keys:
            low, high = before.key_use_nanos.get(key.key_id, 0), after.key_use_nanos.get(key.key_id, 0)
            if key.used_nanos < low or (key.used_nanos > high and not unposted_nanos):
                comparison.add(account_id, KEY_USE, key.key_id, expected=high, found=key.used_nanos)
            if key.held_nanos < 0:
                comparison.add(account_id, "negative amount", key.key_id, expected=0, found=key.held_nanos)
