"""How a batch of finished sessions is charged: pure, no I/O.

A session's loan part was spent in Redis from the loan of its epoch. What the loan (or what is left
of it in escrow) doesn't cover is charged to `available` as far as that goes; the rest is an overrun
at the operator's cost. A balance never becomes negative.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from services.common.contracts.charging import UsageRecord
from services.common.contracts.lending import PostingEntry
from services.common.ids import bucket_of, uuid7_ms
from services.common.money import NANOS_MAX, PriceVector, TokenCounts, cost_nanos

EscrowKey = tuple[str, int]
"""Account id, epoch."""
DAY_MS = 86_400_000
INT64_MAX = 2**63 - 1
TEXT_CHARS_MAX = 8_192
LATE_WINDOW = "late"
"""The usage window of what came past Redis."""
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


class Finding(StrEnum):
    """Kinds of the exception list that posting writes."""

    BAD_ENTRY = "bad_entry"
    UNKNOWN_ACCOUNT = "unknown_account"
    CHARGE_MISMATCH = "charge_mismatch"
    PRICE_MISMATCH = "price_mismatch"
    PRICE_UNKNOWN = "price_unknown"
    ESCROW_SHORT = "escrow_short"
    OVERRUN = "overrun"
    LATE_LOG = "late_log"


@dataclass(frozen=True, slots=True)
class ExceptionRow:
    """`ref`: the same finding has the same one, so that sending it again changes nothing."""

    kind: Finding
    ref: str
    session_id: str
    account_id: str
    detail: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Charge:
    """One session's cost by who pays it; the parts add up to `entry.record.cost_nanos`."""

    entry: PostingEntry
    loan_nanos: int
    available_nanos: int
    overrun_nanos: int


@dataclass(slots=True)
class AccountTotal:
    """What one batch moves for one account. `ref`: its smallest new session id."""

    ref: str
    cost_nanos: int = 0
    available_nanos: int = 0
    overrun_nanos: int = 0
    escrow_nanos: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JournalLine:
    ledger_account: str
    amount_nanos: int
    account_id: str | None = None
    epoch: int | None = None


def find_fault(entry: PostingEntry) -> str | None:
    """Why this entry can't be posted whatever the ledger holds, or None."""
    record, tokens = entry.record, entry.record.tokens
    if not is_session_id(record.session_id):
        return "the session id is not a UUIDv7 in canonical form"
    if not 0 <= entry.loan_nanos <= record.cost_nanos <= NANOS_MAX:
        return "the loan part or the cost is out of bounds"
    if not 0 < entry.epoch <= INT64_MAX:
        return "the epoch is out of bounds"
    numbers = (
        record.price_version,
        record.ratio_ppm,
        record.held_nanos,
        record.started_at_ms,
        record.first_byte_ms,
        record.duration_ms,
        tokens.input,
        tokens.cached_input,
        tokens.cache_write,
        tokens.audio_input,
        tokens.output,
        tokens.reasoning,
        tokens.audio_output,
    )
    if min(numbers) < 0 or max(numbers) > INT64_MAX:
        return "a count is out of bounds"
    return None


def is_session_id(text: str) -> bool:
    return _UUID7.fullmatch(text) is not None


def clean_text(text: str) -> str:
    """Postgres stores no NUL; an upstream's text is bounded."""
    return text[:TEXT_CHARS_MAX].replace("\x00", "\ufffd")


def split_cost(*, cost: int, loan_part: int, escrow_rest: int, available: int) -> tuple[int, int, int]:
    """(from the loan, from available, overrun), all in nanos."""
    from_loan = min(loan_part, escrow_rest)
    from_available = min(cost - from_loan, available)
    return from_loan, from_available, cost - from_loan - from_available


def charge_all(
    entries: Iterable[PostingEntry], escrow_rests: dict[EscrowKey, int], available: dict[str, int]
) -> tuple[list[Charge], list[ExceptionRow]]:
    """Charge the entries in their order; `escrow_rests` and `available` go down by what is taken."""
    charges: list[Charge] = []
    findings: list[ExceptionRow] = []
    for entry in entries:
        record = entry.record
        account_id = record.account_id
        key = (account_id, entry.epoch)
        loan, from_available, overrun = split_cost(
            cost=record.cost_nanos,
            loan_part=entry.loan_nanos,
            escrow_rest=escrow_rests.get(key, 0),
            available=available.get(account_id, 0),
        )
        if loan:
            escrow_rests[key] -= loan
        if from_available:
            available[account_id] -= from_available
        if loan < entry.loan_nanos:
            findings.append(finding(Finding.ESCROW_SHORT, entry, {"missing_nanos": entry.loan_nanos - loan}))
        if overrun:
            findings.append(finding(Finding.OVERRUN, entry, {"overrun_nanos": overrun}))
        charges.append(Charge(entry, loan, from_available, overrun))
    return charges, findings


def add_up(charges: Iterable[Charge]) -> dict[str, AccountTotal]:
    """Totals by account."""
    totals: dict[str, AccountTotal] = {}
    for charge in charges:
        record = charge.entry.record
        total = totals.get(record.account_id)
        if total is None:
            total = totals[record.account_id] = AccountTotal(ref=record.session_id)
        elif record.session_id < total.ref:
            total.ref = record.session_id
        total.cost_nanos += record.cost_nanos
        total.available_nanos += charge.available_nanos
        total.overrun_nanos += charge.overrun_nanos
        if charge.loan_nanos:
            epoch = charge.entry.epoch
            total.escrow_nanos[epoch] = total.escrow_nanos.get(epoch, 0) + charge.loan_nanos
    return totals


def available_account(account_id: str) -> str:
    return f"account:{account_id}:available"


def escrow_account(account_id: str) -> str:
    return f"account:{account_id}:escrow"


def journal_lines(account_id: str, total: AccountTotal) -> list[JournalLine]:
    """The entries of one account's usage transaction; they sum to zero. Empty when it cost nothing."""
    lines = [
        JournalLine(escrow_account(account_id), -nanos, account_id, epoch)
        for epoch, nanos in sorted(total.escrow_nanos.items())
    ]
    if total.available_nanos:
        lines.append(JournalLine(available_account(account_id), -total.available_nanos, account_id))
    if total.overrun_nanos:
        lines.append(JournalLine("platform:overrun", -total.overrun_nanos))
    if total.cost_nanos:
        lines.append(JournalLine("platform:revenue", total.cost_nanos))
    return lines


def usage_windows(at_ms: int) -> tuple[str, str, str]:
    """The windows that a session of this moment counts in: all, UTC day, UTC month."""
    day = time.strftime("%Y-%m-%d", time.gmtime(at_ms / 1000))
    return "all", f"day:{day}", f"month:{day[:7]}"


def key_use(charges: Iterable[Charge]) -> dict[tuple[str, str], int]:
    """Nanos by (key, window), by the time inside the session id."""
    by_day: dict[tuple[str, int], int] = {}
    for charge in charges:
        record = charge.entry.record
        if record.cost_nanos:
            key = (record.key_id, uuid7_ms(record.session_id) // DAY_MS)
            by_day[key] = by_day.get(key, 0) + record.cost_nanos
    used: dict[tuple[str, str], int] = {}
    for (key_id, day), nanos in by_day.items():
        for window in usage_windows(day * DAY_MS):
            used[key_id, window] = used.get((key_id, window), 0) + nanos
    return used


def late_use(charges: Iterable[Charge], current_epochs: Mapping[int, int]) -> dict[str, int]:
    """Nanos by key that Redis does not count by itself: of an epoch that had ended, or posted past it."""
    late: dict[str, int] = {}
    for charge in charges:
        entry = charge.entry
        record = entry.record
        is_late = entry.past_redis or entry.epoch < current_epochs.get(bucket_of(record.account_id), 0)
        if is_late and record.cost_nanos:
            late[record.key_id] = late.get(record.key_id, 0) + record.cost_nanos
    return late


def check_price(entry: PostingEntry, price: PriceVector | None) -> ExceptionRow | None:
    """Reprice with the version named in the record. The charge stands: the loan was spent."""
    record = entry.record
    if record.tokens == TokenCounts() and record.cost_nanos == 0:
        return None
    if price is None:
        return finding(Finding.PRICE_UNKNOWN, entry, {"price_version": record.price_version})
    expected = cost_nanos(record.tokens, price, record.ratio_ppm)
    if expected == record.cost_nanos:
        return None
    return finding(
        Finding.PRICE_MISMATCH, entry, {"expected_nanos": expected, "charged_nanos": record.cost_nanos}
    )


def finding(kind: Finding, entry: PostingEntry, detail: Mapping[str, object]) -> ExceptionRow:
    record = entry.record
    ref = clean_text(record.session_id)
    if kind is Finding.CHARGE_MISMATCH:
        # Each other cost that the same session turns up with is a finding of its own.
        ref = f"{ref}:{clean_text(record.account_id)}:{record.cost_nanos}"
    return ExceptionRow(
        kind=kind,
        ref=ref,
        session_id=clean_text(record.session_id),
        account_id=clean_text(record.account_id),
        detail=detail,
    )


def raw_detail(entry: PostingEntry, reason: str) -> dict[str, object]:
    """The whole entry as it came, for a person to decide on."""
    text = msgspec.json.encode(entry).replace(b"\\u0000", b"\\ufffd")
    return {"reason": reason, "entry": msgspec.json.decode(text)}


def is_same_charge(record: UsageRecord, *, account_id: str, cost: int) -> bool:
    return record.account_id == account_id and record.cost_nanos == cost


def escrow_keys(entries: Sequence[PostingEntry]) -> list[EscrowKey]:
    return sorted({(entry.record.account_id, entry.epoch) for entry in entries})
