"""What a meter and the ledger say to each other (HTTP, JSON, internal credential).

Meter to ledger                                     Ledger to meter
  POST /internal/v1/keys/resolve   ResolveKey         POST /internal/v1/configure    Configure
  POST /internal/v1/loans          LoanRequests       POST /internal/v1/catalogue    Catalogue
  POST /internal/v1/postings       Postings           POST /internal/v1/init_epoch   InitEpochs
  POST /internal/v1/epochs/fence   FenceRequest       POST /internal/v1/audit        AuditRequest
  GET  /internal/v1/epochs         Epochs             POST /internal/v1/recall       Recall
  GET  /internal/v1/catalogue      Catalogue          POST /internal/v1/settle       SettleAll
                                                      POST /internal/v1/edges/forget ForgetEdge
"""

from __future__ import annotations

import msgspec

from services.common.contracts.charging import Settle, UsageRecord
from services.common.ids import AccountId, EdgeId, KeyHash, KeyId, SessionId


class ResolveKey(msgspec.Struct, frozen=True):
    key_hash: KeyHash


class KeyLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    """None: unlimited. `addresses`: IPs or CIDR networks that may use the key."""

    quota_nanos: int | None = None
    expires_at_ms: int | None = None
    models: tuple[str, ...] | None = None
    addresses: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    budget_day_nanos: int | None = None
    budget_month_nanos: int | None = None


class KeySnapshot(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key and its account as the ledger knows them.

    `revision` grows with every change of the key or its account, so that a stale snapshot never
    overwrites a newer one. `used_*_nanos`: posted use, in all and in the current UTC day and month.
    `late_nanos`: the part of `used_nanos` that ever came past Redis. It only grows: Redis adds what is
    above the `late_nanos` that it knows, so a push may come twice, late or not at all. `epoch`: the
    bucket's when this was read; totals of an older epoch may not begin a newer one (0: not known).
    `state` of key and account: `active`, `disabled` (key) or `suspended` (account).
    """

    key_hash: KeyHash
    key_id: KeyId
    account_id: AccountId
    bucket: int
    revision: int
    key_state: str
    account_state: str
    ratio_ppm: int
    limits: KeyLimits
    used_nanos: int = 0
    used_day_nanos: int = 0
    used_month_nanos: int = 0
    used_day: str = ""
    used_month: str = ""
    late_nanos: int = 0
    epoch: int = 0


class KeyUnknown(msgspec.Struct, frozen=True):
    """Answer of keys/resolve with status 404."""

    code: str = "invalid_api_key"


class LoanRequest(msgspec.Struct, frozen=True):
    """Lend to `account_id` in `epoch`; Redis has applied loans up to `applied_gseq`.

    `wanted_nanos`: what is missing now. `spend_minute_nanos`: recent spend, for the loan's size.
    """

    account_id: AccountId
    epoch: int
    applied_gseq: int
    wanted_nanos: int
    largest_hold_nanos: int
    spend_minute_nanos: int = 0


class LoanRequests(msgspec.Struct, frozen=True):
    requests: tuple[LoanRequest, ...]


class Loan(msgspec.Struct, frozen=True):
    """`gseq` is dense from 1 per (account, epoch): duplicates and gaps show."""

    gseq: int
    nanos: int


class LoanReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """All loans after `applied_gseq`, oldest first (the last may be new).

    `available_nanos`: what could still be lent. `frozen_nanos`: escrow of older epochs that may
    come back. `error`: empty, or `stale_epoch` (with the current `epoch`), `unknown_account`,
    `suspended`.
    """

    account_id: AccountId
    epoch: int
    loans: tuple[Loan, ...] = ()
    available_nanos: int = 0
    frozen_nanos: int = 0
    error: str = ""


class LoanReplies(msgspec.Struct, frozen=True):
    replies: tuple[LoanReply, ...]


class PostingEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One outbox entry. The record's cost was taken as `loan_nanos` from the loan of `epoch`; the
    rest (`cost - loan`) exceeded hold and loan, and the ledger charges it to `available`.

    `past_redis`: Redis has not counted it as its key's use; the ledger tells it (`late_nanos`)."""

    bucket: int
    epoch: int
    record: UsageRecord
    loan_nanos: int
    past_redis: bool = False


class Postings(msgspec.Struct, frozen=True):
    entries: tuple[PostingEntry, ...]


class PostingReply(msgspec.Struct, frozen=True):
    """Every entry is in the ledger now: posted, seen before, or on the exception list."""

    posted: int
    duplicates: int
    exceptions: int


class Epochs(msgspec.Struct, frozen=True):
    """`epochs[bucket]`: the current epoch of each of the 256 buckets."""

    epochs: tuple[int, ...]


class FenceRequest(msgspec.Struct, frozen=True):
    """These buckets can't be trusted (seen epoch 0: missing). The ledger opens a new epoch for each
    whose current epoch still is `seen_epochs[i]` or greater than it, and calls `init_epoch`."""

    buckets: tuple[int, ...]
    seen_epochs: tuple[int, ...]
    run_id: str
    reason: str


class InitEpochs(msgspec.Struct, frozen=True):
    epochs: dict[int, int]


class Configure(msgspec.Struct, frozen=True):
    """In force on this meter and in Redis when it is answered."""

    keys: tuple[KeySnapshot, ...]


class AuditRequest(msgspec.Struct, frozen=True):
    """`accounts` None: every account that Redis knows (paged by `bucket_from`..`bucket_to`)."""

    accounts: tuple[AccountId, ...] | None = None
    bucket_from: int = 0
    bucket_to: int = 255


class SessionAudit(msgspec.Struct, frozen=True):
    session_id: SessionId
    account_id: AccountId
    held_nanos: int
    state: str
    epoch: int
    lease_ends_at_ms: int


class AccountAudit(msgspec.Struct, frozen=True, omit_defaults=True):
    """An account in Redis. `granted_nanos`: loans up to `gseq` less recalls up to `rseq`. `spent_nanos`:
    settled in this epoch from the loan. `held_nanos`: the cached sum; `listed_held_nanos`: the sum over
    its sessions."""

    account_id: AccountId
    bucket: int
    epoch: int
    granted_nanos: int
    spent_nanos: int
    held_nanos: int
    listed_held_nanos: int
    gseq: int
    sessions: tuple[SessionAudit, ...] = ()
    rseq: int = 0


class KeyAudit(msgspec.Struct, frozen=True):
    key_id: KeyId
    account_id: AccountId
    epoch: int
    used_nanos: int
    held_nanos: int


class AuditReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """`outbox_entries`: waiting for posting. `unposted_nanos`: their loan part, by account;
    `unposted_by_epoch`: the same, by account and epoch."""

    accounts: tuple[AccountAudit, ...]
    keys: tuple[KeyAudit, ...] = ()
    outbox_entries: int = 0
    unposted_nanos: dict[str, int] = {}
    unposted_by_epoch: dict[str, dict[int, int]] = {}


class Recall(msgspec.Struct, frozen=True):
    """Take up to `wanted_nanos` of the account's unheld loan of `epoch` back. `rseq` is dense from 1 per
    (account, epoch): the last one again gets the same answer."""

    account_id: AccountId
    epoch: int
    rseq: int
    wanted_nanos: int


class RecallReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """`recalled_nanos`: what `rseq` took; `granted_nanos`: what is granted after it.

    `error`: empty, `stale_epoch` (nothing of this epoch's loan is left to Redis), or `out_of_order`: Redis
    is at another `rseq`, so one of the two stores was set back.
    """

    account_id: AccountId
    epoch: int
    rseq: int
    recalled_nanos: int = 0
    granted_nanos: int = 0
    error: str = ""


class SettleAll(msgspec.Struct, frozen=True):
    """Sessions of the current epoch that an edge's log knows the end of: settled as if the edge did."""

    settles: tuple[Settle, ...]


class AllSettled(msgspec.Struct, frozen=True):
    """Each has ended; what was charged is in the outbox or with the ledger."""

    ended: int


class ForgetEdge(msgspec.Struct, frozen=True):
    edge_id: EdgeId


class EdgeForgotten(msgspec.Struct, frozen=True):
    """`ended`: sessions of this edge that were charged at their last checkpoint or released now.
    `running`: those whose lease is not over yet: ask again."""

    ended: int
    running: int
