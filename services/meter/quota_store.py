"""The meters' Redis: one method a script. Nothing here decides; the scripts do.

Every method raises StoreUnavailable when Redis is away, and answers Fence when it can't be trusted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.common.contracts.charging import Extend, Open, Release, SessionRef
from services.common.contracts.lending import KeySnapshot, Loan, Recall
from services.common.ids import BUCKETS, AccountId, EdgeId, KeyId, SessionId, uuid7_ms
from services.meter import redis_keys
from services.meter.quota_answers import (
    AlreadyEnded,
    Due,
    ExtendAnswer,
    Fence,
    GrantAnswer,
    Granted,
    LedgerMustCharge,
    LoansStale,
    NotDue,
    OpenAnswer,
    Orphaned,
    RecallAnswer,
    Recalled,
    ReleaseAnswer,
    SessionOver,
    SettleAnswer,
    Settled,
    Short,
    Skipped,
    Slice,
    SweepAnswer,
)
from services.meter.redis_link import RedisLink, StoreUnavailable
from services.meter.script_replies import fence_answer, open_answer
from services.meter.scripts import Script
from services.meter.sessions import HoldAsk, edge_of_record

WAIT_FOR_EXTEND_MS = 2_000
SESSIONS_READ_AT_ONCE = 1_000


class QuotaStore:
    def __init__(self, link: RedisLink, scripts: dict[str, Script]) -> None:
        self._link = link
        self._scripts = scripts

    def link_of(self, _bucket: int) -> RedisLink:
        """The link to the node that holds a bucket."""
        return self._link

    async def open(
        self, call: Open, snapshot: KeySnapshot, ask: HoldAsk, *, epoch: int, lease_ms: int, accept_part: bool
    ) -> OpenAnswer:
        bucket, account_id, key_id = snapshot.bucket, snapshot.account_id, snapshot.key_id
        keys = (
            redis_keys.EPOCHS[bucket],
            redis_keys.account_key(bucket, account_id),
            redis_keys.limits_key(bucket, key_id),
            redis_keys.session_key(bucket, call.session_id),
            redis_keys.LEASES[bucket],
            redis_keys.concurrency_key(bucket, key_id),
            redis_keys.INDEXES[bucket],
        )
        reply = await self.link_of(bucket).run(
            self._scripts["open"],
            keys,
            (
                epoch,
                call.session_id,
                uuid7_ms(call.session_id),
                call.seq,
                account_id,
                key_id,
                snapshot.revision,
                call.model,
                ask.mode,
                ask.input_bound_nanos,
                ask.input_exact_nanos,
                ask.out_picos,
                ask.output_bound_tokens,
                ask.tokens_min,
                ask.slice_tokens,
                ask.choices,
                int(accept_part),
                lease_ms,
                ask.rate_tokens,
                ask.record,
            ),
        )
        return open_answer(reply)

    async def extend(
        self, call: Extend, *, slice_tokens: int, lease_ms: int, accept_part: bool
    ) -> ExtendAnswer:
        ref = call.ref
        reply = await self.link_of(ref.bucket).run(
            self._scripts["extend"],
            _session_keys(ref.bucket, ref.account_id, ref.key_id, ref.session_id),
            (
                ref.epoch,
                ref.session_id,
                call.seq,
                call.want_output_tokens,
                call.used_output_tokens,
                call.used_nanos,
                slice_tokens,
                int(accept_part),
                lease_ms,
                WAIT_FOR_EXTEND_MS,
            ),
        )
        status = reply[0]
        if status in (b"OK", b"OLD"):
            held, granted, final, *rest = map(int, reply[1].split(b"|"))
            return Slice(held, granted, bool(final), *rest)
        if status == b"END":
            return SessionOver(reply[1].decode())
        return Short(*map(int, reply[1:])) if status == b"SHORT" else fence_answer(reply)

    async def settle(
        self, ref: SessionRef, *, seq: int, cost_nanos: int, tokens: int, payload: bytes, by: str = "edge"
    ) -> SettleAnswer:
        """`payload`: the usage record as JSON, which becomes the outbox entry."""
        keys = _session_keys(ref.bucket, ref.account_id, ref.key_id, ref.session_id)
        reply = await self.link_of(ref.bucket).run(
            self._scripts["settle"],
            (*keys, redis_keys.OUTBOXES[ref.bucket]),
            (ref.epoch, ref.session_id, seq, ref.epoch, cost_nanos, payload, tokens, ref.account_id, by),
        )
        status = reply[0]
        if status == b"OK":
            return Settled(int(reply[1]))
        if status == b"ENDED":
            return AlreadyEnded(reply[1].decode())
        if status in (b"STALE", b"DIRECT"):
            return LedgerMustCharge(stale_epoch=status == b"STALE")
        return Skipped() if status == b"SKIP" else fence_answer(reply)

    async def release(self, call: Release, *, epoch: int, by: str = "edge") -> ReleaseAnswer:
        """A release names no account: the session itself is asked for it first."""
        bucket, link = call.bucket, self.link_of(call.bucket)
        session_key = redis_keys.session_key(bucket, call.session_id)
        for _attempt in range(3):
            account, key = await link.call("HMGET", session_key, "account", "key")
            account_id, key_id = (account or b"").decode(), (key or b"").decode()
            keys = _session_keys(bucket, account_id, key_id, call.session_id)
            reply = await link.run(
                self._scripts["release"], keys, (epoch, call.session_id, call.seq, account_id, by)
            )
            if reply[0] in (b"OK", b"ENDED"):
                return AlreadyEnded(reply[1].decode())
            if reply[0] == b"SKIP":
                return Skipped()
            if reply[0] == b"FENCE":
                return fence_answer(reply)
        raise StoreUnavailable("the session changed its account")

    async def grant(
        self, account_id: AccountId, *, bucket: int, epoch: int, loans: Sequence[Loan], lendable_nanos: int
    ) -> GrantAnswer:
        pairs = [number for loan in loans for number in (loan.gseq, loan.nanos)]
        reply = await self.link_of(bucket).run(
            self._scripts["grant"],
            (
                redis_keys.EPOCHS[bucket],
                redis_keys.account_key(bucket, account_id),
                redis_keys.INDEXES[bucket],
            ),
            (epoch, account_id, epoch, lendable_nanos, *pairs),
        )
        if reply[0] == b"OK":
            return Granted(int(reply[1]), int(reply[2]), is_gap=False)
        if reply[0] == b"GAP":
            return Granted(int(reply[1]), 0, is_gap=True)
        return LoansStale(int(reply[1])) if reply[0] == b"STALE" else fence_answer(reply)

    async def recall(self, call: Recall, *, bucket: int, known_epoch: int) -> RecallAnswer:
        """Take back up to `wanted_nanos` of what nothing holds; the last `rseq` again: the same answer."""
        keys = (
            redis_keys.EPOCHS[bucket],
            redis_keys.account_key(bucket, call.account_id),
            redis_keys.INDEXES[bucket],
        )
        reply = await self.link_of(bucket).run(
            self._scripts["recall"],
            keys,
            (known_epoch, call.account_id, call.epoch, call.rseq, call.wanted_nanos),
        )
        if reply[0] == b"OK":
            return Recalled(int(reply[1]), int(reply[2]), int(reply[3]), is_out_of_order=False)
        if reply[0] == b"ORDER":
            return Recalled(int(reply[1]), 0, 0, is_out_of_order=True)
        return LoansStale(int(reply[1])) if reply[0] == b"STALE" else fence_answer(reply)

    async def configure(self, snapshot: KeySnapshot, *, epoch: int) -> Fence | int:
        """The revision in force then; 0: this epoch needs a newer snapshot to begin the key with."""
        bucket = snapshot.bucket
        reply = await self.link_of(bucket).run(
            self._scripts["configure"],
            (
                redis_keys.EPOCHS[bucket],
                redis_keys.limits_key(bucket, snapshot.key_id),
                redis_keys.INDEXES[bucket],
            ),
            (
                epoch,
                snapshot.revision,
                snapshot.used_nanos,
                snapshot.used_day,
                snapshot.used_day_nanos,
                snapshot.used_month,
                snapshot.used_month_nanos,
                snapshot.key_id,
                snapshot.account_id,
                _packed_limits(snapshot),
                snapshot.late_nanos,
                snapshot.epoch,
            ),
        )
        return int(reply[1]) if reply[0] == b"OK" else fence_answer(reply)

    async def leases_over(self, *, limit: int) -> list[tuple[int, SessionId]]:
        """Sessions whose lease (or grace) is over, of all buckets, at most `limit` a bucket."""
        seconds, micros = await self._link.call("TIME")
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        found = await self._link.call_many(
            [("ZRANGEBYSCORE", key, "-inf", now_ms, "LIMIT", 0, limit) for key in redis_keys.LEASES]
        )
        return [(bucket, SessionId(name.decode())) for bucket in range(BUCKETS) for name in found[bucket]]

    async def sessions_of_edge(self, edge_id: EdgeId) -> list[tuple[int, SessionId]]:
        """Those that have not ended, of all buckets."""
        leases = await self._link.call_many([("ZRANGE", key, 0, -1) for key in redis_keys.LEASES])
        found = [(bucket, SessionId(name.decode())) for bucket in range(BUCKETS) for name in leases[bucket]]
        own: list[tuple[int, SessionId]] = []
        for start in range(0, len(found), SESSIONS_READ_AT_ONCE):
            some = found[start : start + SESSIONS_READ_AT_ONCE]
            records = await self._link.call_many(
                [
                    ("HGET", redis_keys.session_key(bucket, session_id), "record")
                    for bucket, session_id in some
                ]
            )
            own += [
                place
                for place, record in zip(some, records, strict=True)
                if record is not None and edge_of_record(record) == edge_id
            ]
        return own

    async def sweep(self, session_id: SessionId, *, bucket: int, epoch: int, grace_ms: int) -> SweepAnswer:
        reply = await self.link_of(bucket).run(
            self._scripts["sweep"],
            (
                redis_keys.EPOCHS[bucket],
                redis_keys.session_key(bucket, session_id),
                redis_keys.LEASES[bucket],
            ),
            (epoch, session_id, grace_ms),
        )
        status = reply[0]
        if status in (b"WAIT", b"GONE"):
            return NotDue(is_running=status == b"WAIT")
        if status == b"ORPHANED":
            return Orphaned(int(reply[1]))
        if status != b"DUE":
            return fence_answer(reply)
        account, key, epoch_then, seq, held, used_tokens, used_nanos, record = reply[1:]
        return Due(
            account.decode(), key.decode(), int(epoch_then), int(seq), int(held), int(used_tokens),
            int(used_nanos), record,
        )  # fmt: skip

    async def read_epochs(self) -> list[int]:
        """Every bucket's epoch in Redis; 0: missing."""
        found = await self._link.call_many([("GET", key) for key in redis_keys.EPOCHS])
        return [int(value or 0) for value in found]

    async def init_epochs(self, epochs: dict[int, int]) -> dict[int, int]:
        """Begin these epochs where they are newer; the epochs in force then."""

        async def begin(bucket: int, epoch: int) -> tuple[int, int]:
            keys = (redis_keys.EPOCHS[bucket], redis_keys.INDEXES[bucket])
            reply = await self.link_of(bucket).run(self._scripts["init_epoch"], keys, (epoch,))
            return bucket, int(reply[1])

        return dict(await asyncio.gather(*(begin(bucket, epoch) for bucket, epoch in epochs.items())))

    async def take_fence_lock(self, holder: str, *, ttl_ms: int) -> bool:
        """One meter at a time fences a node. The lock falls by itself."""
        reply = await self._link.call("SET", redis_keys.FENCE_LOCKS[0], holder, "NX", "PX", ttl_ms)
        return reply is not None

    async def drop_fence_lock(self) -> None:
        await self._link.call("DEL", redis_keys.FENCE_LOCKS[0])


def _session_keys(bucket: int, account_id: str, key_id: str, session_id: str) -> tuple[str, ...]:
    return (
        redis_keys.EPOCHS[bucket],
        redis_keys.account_key(bucket, account_id),
        redis_keys.limits_key(bucket, key_id),
        redis_keys.session_key(bucket, session_id),
        redis_keys.LEASES[bucket],
        redis_keys.concurrency_key(bucket, KeyId(key_id)),
    )


def _packed_limits(snapshot: KeySnapshot) -> str:
    """In the order of `read_key` in common.lua."""
    limits = snapshot.limits
    models = "" if limits.models is None else f",{','.join(limits.models)},"
    numbers = (
        limits.expires_at_ms,
        limits.quota_nanos,
        limits.budget_day_nanos,
        limits.budget_month_nanos,
        limits.requests_per_minute,
        limits.tokens_per_minute,
        limits.concurrency,
    )
    texts = ["" if number is None else str(number) for number in numbers]
    return "|".join((snapshot.key_state, snapshot.account_state, *texts, models))
