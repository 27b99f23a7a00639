"""What the scripts answer, as types."""

from __future__ import annotations

from typing import NamedTuple


class Fence(NamedTuple):
    """The bucket can't be trusted: `cause` is `epoch_missing`, `epoch_behind` or `account_lost`."""

    cause: str
    seen_epoch: int


class Held(NamedTuple):
    """An admitted session. `requests` and `tokens`: used in the key's windows, None without a limit.

    `record`: what the first call stored, when this one is its repetition.
    """

    epoch: int
    held_nanos: int
    granted_tokens: int
    final: bool
    available_nanos: int
    free_nanos: int
    lendable_nanos: int
    gseq: int
    largest_hold_nanos: int
    requests: int | None
    tokens: int | None
    record: bytes | None


class Short(NamedTuple):
    """`wanted_nanos` must be borrowed first."""

    epoch: int
    wanted_nanos: int
    gseq: int
    largest_hold_nanos: int
    held_nanos: int


class ConfigureKey(NamedTuple):
    """This epoch doesn't know the key (`is_absent`), or knows an older revision."""

    is_absent: bool


class Stale(NamedTuple):
    """Redis knows a newer revision of the key."""


class CountInputFirst(NamedTuple):
    """The coarse input bound does not fit the money at hand."""


class Wait(NamedTuple):
    """A running stream of the account waits for money."""


class No(NamedTuple):
    """Refused; `figures` depend on the cause (see open.lua)."""

    cause: str
    figures: tuple[int, ...]


OpenAnswer = Held | Short | ConfigureKey | Stale | CountInputFirst | Wait | No | Fence


class Slice(NamedTuple):
    """The session's hold and grant after an extend."""

    held_nanos: int
    granted_tokens: int
    final: bool
    free_nanos: int
    lendable_nanos: int
    gseq: int
    largest_hold_nanos: int
    epoch: int


class SessionOver(NamedTuple):
    cause: str


ExtendAnswer = Slice | SessionOver | Short | Fence


class Settled(NamedTuple):
    loan_nanos: int


class AlreadyEnded(NamedTuple):
    state: str


class LedgerMustCharge(NamedTuple):
    """`stale_epoch`: that epoch's escrow pays up to the hold; else nothing of a loan was spent."""

    stale_epoch: bool


class Skipped(NamedTuple):
    """Not as the caller thought; nothing was done."""


SettleAnswer = Settled | AlreadyEnded | LedgerMustCharge | Skipped | Fence
ReleaseAnswer = AlreadyEnded | Skipped | Fence


class Granted(NamedTuple):
    """`is_gap`: loans after `gseq` are missing."""

    gseq: int
    free_nanos: int
    is_gap: bool


class LoansStale(NamedTuple):
    epoch: int


GrantAnswer = Granted | LoansStale | Fence


class Recalled(NamedTuple):
    """`is_out_of_order`: `rseq` is the last one here, and the call's is neither it nor the next."""

    rseq: int
    recalled_nanos: int
    granted_nanos: int
    is_out_of_order: bool


RecallAnswer = Recalled | LoansStale | Fence


class NotDue(NamedTuple):
    """`is_running`: its lease or grace is not over; else it has ended."""

    is_running: bool


class Orphaned(NamedTuple):
    held_nanos: int


class Due(NamedTuple):
    """An orphan whose grace is over, with its last checkpoint."""

    account_id: str
    key_id: str
    epoch: int
    seq: int
    held_nanos: int
    used_tokens: int
    used_nanos: int
    record: bytes


SweepAnswer = NotDue | Orphaned | Due | Fence


class OutboxEntry(NamedTuple):
    bucket: int
    entry_id: bytes
    fields: dict[bytes, bytes]

    @property
    def written_at_ms(self) -> int:
        return int(self.entry_id.partition(b"-")[0])
