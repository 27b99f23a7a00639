"""What an account has: posted money, less what Redis has spent and nobody has posted yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.common import logs
from services.common.contracts.lending import AccountAudit, AuditReply, AuditRequest
from services.common.ids import AccountId
from services.ledger.accounts import AccountNotFound
from services.ledger.database import Connection, Database
from services.ledger.meters import Meters, MetersAway
from services.ledger.queries import load_queries

LOG = logs.get("ledger.balances")
SQL = load_queries("balances")
READS_MAX = 5
AUDIT_TIMEOUT_MS = 2_000


@dataclass(frozen=True, kw_only=True)
class Balance:
    """`balance_nanos`: what is not charged yet. `available_nanos` = balance - held, never negative.
    `stale`: no meter answered; what Redis spent lately is missing, and holds are unknown (0)."""

    account_id: AccountId
    balance_nanos: int
    held_nanos: int
    available_nanos: int
    stale: bool = False


@dataclass(frozen=True)
class Escrow:
    lent_nanos: int
    returned_nanos: int
    settled_nanos: int

    @property
    def rest_nanos(self) -> int:
        return self.lent_nanos - self.returned_nanos - self.settled_nanos


@dataclass(frozen=True)
class Posted:
    """An account in Postgres, read in one snapshot."""

    available_nanos: int
    epoch: int
    escrows: Mapping[int, Escrow]
    claimed_nanos: int = 0


async def read(database: Database, meters: Meters, *, account_id: str) -> Balance:
    """Raises AccountNotFound, Unavailable (no database)."""
    posted = await read_posted(database, account_id)
    for attempt in range(1, READS_MAX + 1):
        try:
            request = AuditRequest(accounts=(AccountId(account_id),))
            audit = await meters.audit(request, timeout_ms=AUDIT_TIMEOUT_MS)
        except MetersAway:
            return _balance(account_id, posted_balance_nanos(posted), held_nanos=0, stale=True)
        after = await read_posted(database, account_id)
        # Postgres stood still while Redis was read: the two belong together.
        if after == posted or attempt == READS_MAX:
            return combine(account_id, after, audit)
        posted = after
    raise AssertionError("unreachable")


async def read_posted(database: Database, account_id: str) -> Posted:
    """Raises AccountNotFound."""

    async def work(connection: Connection) -> Posted:
        row = await connection.fetchrow(SQL["balance"], account_id)
        if row is None:
            raise AccountNotFound
        escrows = await connection.fetch(SQL["escrows"], account_id)
        return Posted(
            available_nanos=row["available_nanos"],
            epoch=row["epoch"],
            claimed_nanos=row["claimed_nanos"],
            escrows={
                escrow["epoch"]: Escrow(
                    escrow["lent_nanos"], escrow["returned_nanos"], escrow["settled_nanos"]
                )
                for escrow in escrows
            },
        )

    return await database.transaction(work, isolation="repeatable_read")


def posted_balance_nanos(posted: Posted) -> int:
    """What is out on loan and claimed is not the account's any more."""
    out_nanos = sum(escrow.rest_nanos for escrow in posted.escrows.values())
    return posted.available_nanos + max(0, out_nanos - posted.claimed_nanos)


def combine(account_id: str, posted: Posted, audit: AuditReply) -> Balance:
    """`spent` of an audit is cumulative per epoch, so for that epoch it replaces what was settled;
    what else waits in the outbox belongs to older epochs."""
    in_redis = next((row for row in audit.accounts if row.account_id == account_id), None)
    unposted_nanos = audit.unposted_nanos.get(account_id, 0)
    if in_redis is not None:
        unposted_nanos = max(unposted_nanos, _spent_unposted(posted, in_redis))
    balance_nanos = max(0, posted_balance_nanos(posted) - unposted_nanos)
    held_nanos = in_redis.held_nanos if in_redis is not None else 0
    return _balance(account_id, balance_nanos, held_nanos=held_nanos, stale=False)


def _spent_unposted(posted: Posted, in_redis: AccountAudit) -> int:
    escrow = posted.escrows.get(in_redis.epoch)
    settled_nanos = escrow.settled_nanos if escrow is not None else 0
    return max(0, in_redis.spent_nanos - settled_nanos)


def _balance(account_id: str, balance_nanos: int, *, held_nanos: int, stale: bool) -> Balance:
    return Balance(
        account_id=AccountId(account_id),
        balance_nanos=balance_nanos,
        held_nanos=held_nanos,
        available_nanos=max(0, balance_nanos - held_nanos),
        stale=stale,
    )
