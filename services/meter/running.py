"""What happens to an admitted session: extended, settled, released. Nothing is remembered between calls.

Outage behaviour: `Failed`, and the edge sends the call again. A settle that Redis can't take (an older
epoch, an unknown session) is answered only after the ledger has it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from services.common import logs
from services.common.contracts.charging import (
    Ended,
    Extend,
    Extended,
    Failed,
    Release,
    Reply,
    SessionRef,
    Settle,
)
from services.common.contracts.lending import PostingEntry
from services.common.ids import AccountId
from services.meter.epochs import Epochs
from services.meter.ledger_client import LedgerClient, LedgerUnavailable
from services.meter.lending import REFILL_HOLDS, Lending
from services.meter.metrics import MeterMetrics
from services.meter.outbox import Outbox
from services.meter.quota_answers import (
    AlreadyEnded,
    Fence,
    LedgerMustCharge,
    SessionOver,
    Settled,
    Short,
    Skipped,
    Slice,
)
from services.meter.quota_store import QuotaStore
from services.meter.redis_link import StoreUnavailable
from services.meter.sessions import total_tokens
from services.meter.settings import MeterSettings

LOG = logs.get("meter.running")
LOANS_MAX: Final = 3
DIRECT_POSTING_TIMEOUT_MS: Final = 3_000
_encoder = msgspec.json.Encoder()


class RunningSessions:
    def __init__(
        self,
        *,
        settings: MeterSettings,
        store: QuotaStore,
        epochs: Epochs,
        ledger: LedgerClient,
        lending: Lending,
        outbox: Outbox,
        metrics: MeterMetrics,
    ) -> None:
        self._settings = settings
        self._store = store
        self._epochs = epochs
        self._ledger = ledger
        self._lending = lending
        self._outbox = outbox
        self._metrics = metrics

    async def extend(self, call: Extend) -> Reply:
        accept_part, ledger_is_away = False, False
        try:
            for loans in range(1, LOANS_MAX + 2):
                answer = await self._store.extend(
                    call,
                    slice_tokens=self._settings.stream_slice_tokens,
                    lease_ms=self._settings.lease_ms,
                    accept_part=accept_part,
                )
                match answer:
                    case Slice():
                        return self._extended(call, answer, ledger_is_away=ledger_is_away)
                    case SessionOver(cause):
                        self._metrics.extends[cause] += 1
                        return Extended(call.seq, 0, 0, True, 0, ended=cause)
                    case Fence(cause, seen_epoch):
                        self._epochs.suspect(call.ref.bucket, seen_epoch, cause=cause)
                        return Failed("The store is being checked.")
                    case Short():
                        try:
                            accept_part = not await self._borrow(call.ref, answer) or loans >= LOANS_MAX
                        except LedgerUnavailable:
                            accept_part = ledger_is_away = True
        except StoreUnavailable as error:
            return Failed(str(error))
        return Failed("The loan did not suffice.")

    async def _borrow(self, ref: SessionRef, short: Short) -> bool:
        """Whether asking again may bring more."""
        loan = await self._lending.borrow(
            ref.account_id,
            bucket=ref.bucket,
            epoch=short.epoch,
            gseq=short.gseq,
            wanted_nanos=short.wanted_nanos,
            largest_hold_nanos=short.largest_hold_nanos,
        )
        return bool(loan.loans or loan.available_nanos)

    def _extended(self, call: Extend, held: Slice, *, ledger_is_away: bool) -> Extended:
        self._metrics.extends["final" if held.final else "granted"] += 1
        if held.lendable_nanos > 0 and held.free_nanos < REFILL_HOLDS * held.largest_hold_nanos:
            self._lending.refill(
                call.ref.account_id,
                bucket=call.ref.bucket,
                epoch=held.epoch,
                gseq=held.gseq,
                largest_hold_nanos=held.largest_hold_nanos,
            )
        return Extended(
            seq=call.seq,
            held_nanos=held.held_nanos,
            granted_output_tokens=held.granted_tokens,
            # Without the ledger nobody can say that there is no more: the edge asks again.
            final=held.final and not ledger_is_away,
            lease_ms=self._settings.lease_ms,
        )

    async def settle(self, call: Settle) -> Reply:
        record, ref = call.record, call.ref
        if (
            record.session_id != ref.session_id
            or record.account_id != ref.account_id
            or record.cost_nanos < 0
        ):
            LOG.error("a settle contradicts itself", session_id=ref.session_id)
            return Failed("The record is of another session.")
        try:
            answer = await self._store.settle(
                ref,
                seq=call.seq,
                cost_nanos=record.cost_nanos,
                tokens=total_tokens(record.tokens),
                payload=_encoder.encode(record),
            )
            match answer:
                case Settled():
                    self.note_charge(ref.account_id, record.cost_nanos)
                    self._outbox.wake(ref.bucket)
                    return Ended(call.seq, "settled")
                case AlreadyEnded(state):
                    return Ended(call.seq, state)
                case LedgerMustCharge(stale_epoch):
                    return await self._charge_directly(call, stale_epoch=stale_epoch)
                case Fence(cause, seen_epoch):
                    self._epochs.suspect(ref.bucket, seen_epoch, cause=cause)
                    return Failed("The store is being checked.")
                case Skipped():
                    return Failed("The session changed meanwhile.")
        except (StoreUnavailable, LedgerUnavailable) as error:
            return Failed(str(error))

    async def _charge_directly(self, call: Settle, *, stale_epoch: bool) -> Ended:
        """The ledger knows each session once, whatever is sent again.

        An older epoch's escrow still has the hold. A session of this epoch that Redis does not know (any
        more) holds nothing: its cost is no part of a loan.
        """
        record, ref = call.record, call.ref
        loan_nanos = min(record.cost_nanos, record.held_nanos) if stale_epoch else 0
        entry = PostingEntry(ref.bucket, ref.epoch, record, loan_nanos, past_redis=True)
        reply = await self._ledger.post([entry], timeout_ms=DIRECT_POSTING_TIMEOUT_MS)
        self._metrics.direct_postings += 1
        self.note_charge(ref.account_id, record.cost_nanos if reply.posted else 0)
        try:
            # The ledger tells Redis of the key's use: it knows whether it was new.
            await self._store.settle(ref, seq=call.seq, cost_nanos=0, tokens=0, payload=b"", by="ledger")
        except StoreUnavailable:
            # It is charged; should it come again, the ledger knows it.
            LOG.warning("a directly charged session could not be marked", session_id=ref.session_id)
        return Ended(call.seq, "settled")

    async def release(self, call: Release) -> Reply:
        try:
            answer = await self._store.release(call, epoch=self._epochs.known(call.bucket))
        except StoreUnavailable as error:
            return Failed(str(error))
        if isinstance(answer, AlreadyEnded):
            self._metrics.ended[answer.state] += 1
            return Ended(call.seq, answer.state)
        if isinstance(answer, Fence):
            self._epochs.suspect(call.bucket, answer.seen_epoch, cause=answer.cause)
        return Failed("The store is being checked.")

    def note_charge(self, account_id: AccountId, nanos: int) -> None:
        self._metrics.ended["settled"] += 1
        self._metrics.charged_nanos += nanos
        self._lending.rates.note(account_id, nanos)
