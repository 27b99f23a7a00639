"""What Redis holds: sums and sessions, one bucket at a time, each at one instant."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

from services.common.contracts.lending import (
    AccountAudit,
    AuditReply,
    AuditRequest,
    KeyAudit,
    SessionAudit,
)
from services.common.errors import Unavailable
from services.common.ids import BUCKETS, AccountId, KeyId, SessionId, bucket_of
from services.meter import redis_keys
from services.meter.epochs import Epochs
from services.meter.redis_link import RedisLink, StoreUnavailable
from services.meter.scripts import Script

ATTEMPTS_MAX: Final = 5
BUCKETS_AT_ONCE: Final = 16
OUTBOX_MAX: Final = 10_000
KEYS_PER_SCRIPT_MAX: Final = 20_000


class Audit:
    def __init__(self, link: RedisLink, script: Script, epochs: Epochs) -> None:
        self._link = link
        self._script = script
        self._epochs = epochs

    async def look(self, request: AuditRequest) -> AuditReply:
        """Raises Unavailable when Redis can't be read."""
        wanted = None if request.accounts is None else set(request.accounts)
        if wanted is None:
            buckets = range(max(0, request.bucket_from), min(BUCKETS - 1, request.bucket_to) + 1)
            chosen = list(buckets)
        else:
            chosen = sorted({bucket_of(account_id) for account_id in wanted})
        try:
            full = await self._not_empty(chosen)
            found: list[AuditReply] = []
            for start in range(0, len(full), BUCKETS_AT_ONCE):
                some = full[start : start + BUCKETS_AT_ONCE]
                found += await asyncio.gather(*(self._look_at(bucket) for bucket in some))
        except StoreUnavailable as error:
            raise Unavailable(
                f"Redis can't be read: {error}. Please try again.", retry_after_ms=1_000
            ) from error
        return _joined(found, wanted)

    async def _not_empty(self, buckets: Sequence[int]) -> list[int]:
        """Those that have accounts, sessions or outbox entries."""
        counts = await self._link.call_many(
            [
                command
                for bucket in buckets
                for command in (
                    ("HLEN", redis_keys.INDEXES[bucket]),
                    ("ZCARD", redis_keys.LEASES[bucket]),
                    ("XLEN", redis_keys.OUTBOXES[bucket]),
                )
            ]
        )
        return [bucket for at, bucket in enumerate(buckets) if any(counts[3 * at : 3 * at + 3])]

    async def _look_at(self, bucket: int) -> AuditReply:
        for _attempt in range(ATTEMPTS_MAX):
            names, sessions = await self._link.call_many(
                [("HKEYS", redis_keys.INDEXES[bucket]), ("ZRANGE", redis_keys.LEASES[bucket], 0, -1)]
            )
            if len(names) + len(sessions) > KEYS_PER_SCRIPT_MAX:
                raise StoreUnavailable(f"bucket {bucket} is too full for one look")
            account_ids = sorted(name[2:].decode() for name in names if name.startswith(b"a:"))
            key_ids = sorted(name[2:].decode() for name in names if name.startswith(b"k:"))
            session_ids = [name.decode() for name in sessions]
            reply = await self._link.run(
                self._script,
                (
                    redis_keys.EPOCHS[bucket],
                    redis_keys.LEASES[bucket],
                    redis_keys.OUTBOXES[bucket],
                    *(redis_keys.account_key(bucket, account_id) for account_id in account_ids),
                    *(redis_keys.limits_key(bucket, key_id) for key_id in key_ids),
                    *(redis_keys.session_key(bucket, session_id) for session_id in session_ids),
                ),
                (0, len(account_ids), len(key_ids), OUTBOX_MAX, *session_ids),
            )
            if reply[0] == b"OK":
                return _audit_reply(bucket, account_ids, key_ids, reply)
            if reply[0] == b"FENCE":
                # No epoch, no money: whatever was there is lost, and the ledger knows what it lent.
                self._epochs.suspect(bucket, int(reply[2]), cause=reply[1].decode())
                return AuditReply(())
        raise StoreUnavailable(f"bucket {bucket} changes too fast to be looked at")


def _joined(replies: Iterable[AuditReply], wanted: set[AccountId] | None) -> AuditReply:
    """One reply of all; of the wanted accounts only. `outbox_entries`: of their whole buckets."""
    accounts: list[AccountAudit] = []
    keys: list[KeyAudit] = []
    unposted: dict[str, int] = {}
    by_epoch: dict[str, dict[int, int]] = {}
    outbox_entries = 0
    for reply in replies:
        accounts += [one for one in reply.accounts if wanted is None or one.account_id in wanted]
        keys += [one for one in reply.keys if wanted is None or one.account_id in wanted]
        outbox_entries += reply.outbox_entries
        for account_id, nanos in reply.unposted_nanos.items():
            if wanted is None or account_id in wanted:
                unposted[account_id] = nanos
                by_epoch[account_id] = reply.unposted_by_epoch[account_id]
    return AuditReply(tuple(accounts), tuple(keys), outbox_entries, unposted, by_epoch)


def _audit_reply(bucket: int, account_ids: list[str], key_ids: list[str], reply: list[Any]) -> AuditReply:
    _ok, raw_epoch, account_rows, key_rows, session_rows, outbox_entries, sums = reply
    current = int(raw_epoch)
    sessions = [
        SessionAudit(
            SessionId(row[0].decode()), AccountId(row[1].decode()), int(row[2]), row[3].decode(), int(row[4]),
            int(row[5]),
        )
        for row in session_rows
    ]  # fmt: skip
    accounts = []
    for account_id, row in zip(account_ids, account_rows, strict=True):
        if row[0] is None or int(row[0]) != current:
            continue
        own = tuple(one for one in sessions if one.account_id == account_id)
        accounts.append(
            AccountAudit(
                AccountId(account_id), bucket, current, int(row[1]), int(row[2]), int(row[3]),
                sum(one.held_nanos for one in own if one.epoch == current), int(row[4]), own,
                int(row[5] or 0),
            )
        )  # fmt: skip
    keys = tuple(
        KeyAudit(KeyId(key_id), AccountId(row[0].decode()), int(row[1]), int(row[2]), int(row[3]))
        for key_id, row in zip(key_ids, key_rows, strict=True)
        if row[0] is not None and int(row[1]) == current
    )
    by_epoch: dict[str, dict[int, int]] = {}
    for at in range(0, len(sums), 3):
        by_epoch.setdefault(sums[at].decode(), {})[int(sums[at + 1])] = int(sums[at + 2])
    unposted = {account_id: sum(nanos.values()) for account_id, nanos in by_epoch.items()}
    return AuditReply(tuple(accounts), keys, int(outbox_entries), unposted, by_epoch)
