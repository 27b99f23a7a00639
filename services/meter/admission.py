"""The story of an `Open`: whose key, which price, how much to hold, and where the money comes from.

Outage behaviour: while nothing was sent to Redis, an outage is `Refused` with 503: nothing is held.
Once `open` was sent and not answered, nobody can know: `Failed`, and the edge releases the session
until that is acknowledged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Final, TypeVar

from services.common import logs
from services.common.contracts.catalogue import Model, PriceVersion
from services.common.contracts.charging import (
    Admitted,
    CountWanted,
    Failed,
    KeyHint,
    Open,
    Refused,
    Reply,
    Resolve,
)
from services.common.contracts.lending import KeySnapshot, LoanReply
from services.common.errors import BadRequest, InvalidApiKey, MeterwayError, Unavailable
from services.meter import refusals, sessions
from services.meter.catalogue import CatalogueCache
from services.meter.counting_desk import CountingDesk
from services.meter.epochs import Epochs
from services.meter.key_cache import KeyCache
from services.meter.ledger_client import LedgerUnavailable
from services.meter.lending import REFILL_HOLDS, Lending
from services.meter.metrics import MeterMetrics
from services.meter.quota_answers import (
    ConfigureKey,
    CountInputFirst,
    Fence,
    Held,
    No,
    OpenAnswer,
    Short,
    Stale,
    Wait,
)
from services.meter.quota_store import QuotaStore
from services.meter.redis_link import StoreUnavailable
from services.meter.sessions import HoldAsk, InputTokens
from services.meter.settings import MeterSettings

LOG = logs.get("meter.admission")
ATTEMPTS_MAX: Final = 12
LOANS_MAX: Final = 4
WAIT_S: Final = 0.1
TOKENS_PER_CALL_MAX: Final = 2**40
T = TypeVar("T")


class Admission:
    def __init__(
        self,
        *,
        settings: MeterSettings,
        store: QuotaStore,
        epochs: Epochs,
        keys: KeyCache,
        catalogue: CatalogueCache,
        lending: Lending,
        counting: CountingDesk,
        metrics: MeterMetrics,
    ) -> None:
        self._settings = settings
        self._store = store
        self._epochs = epochs
        self._keys = keys
        self._catalogue = catalogue
        self._lending = lending
        self._counting = counting
        self._metrics = metrics

    async def resolve(self, call: Resolve) -> Reply:
        try:
            snapshot = await self._keys.find(call.key_hash)
        except LedgerUnavailable:
            return refusals.refused(refusals.unavailable())
        if snapshot is None:
            return refusals.refused(InvalidApiKey())
        return KeyHint(snapshot.key_id, snapshot.account_id, snapshot.bucket, snapshot.limits.models)

    async def open(self, call: Open) -> Reply:
        attempt = _Attempt(call, time.monotonic() + self._settings.open_timeout_ms / 1000)
        try:
            reply = await self._admit(attempt)
        except MeterwayError as error:
            reply = refusals.refused(error)
        except LedgerUnavailable:
            # The script answered each time, and held nothing.
            reply = refusals.refused(refusals.unavailable())
        except (StoreUnavailable, TimeoutError):
            self._metrics.refused["store_away"] += 1
            if attempt.is_unsure:
                return Failed("Redis did not answer in time.")
            return refusals.refused(refusals.unavailable())
        if isinstance(reply, Refused):
            self._metrics.refused[reply.code] += 1
        return reply

    async def _admit(self, attempt: _Attempt) -> Reply:
        call = attempt.call
        snapshot = self._keys.cached(call.key_hash)
        if snapshot is None:
            snapshot = await self._slowly(attempt, self._keys.find(call.key_hash))
        snapshot = self._authenticate(call, snapshot)
        model, version = self._price(call)
        if call.body is not None:
            attempt.counted = await self._counting.count_input(call.endpoint, call.model, model, call.body)
        ask = self._plan(attempt, snapshot, model, version)
        accept_part, loans, loan = False, 0, None
        for _number in range(ATTEMPTS_MAX):
            if not self._epochs.is_live(snapshot.bucket):
                raise refusals.unavailable()
            answer = await self._ask_store(attempt, snapshot, ask, accept_part=accept_part)
            match answer:
                case Held():
                    return self._admitted(attempt, snapshot, model, ask, answer)
                case CountInputFirst():
                    return CountWanted(call.seq)
                case Short():
                    loan = await self._slowly(attempt, self._borrow(snapshot, answer))
                    loans += 1
                    accept_part = loans >= LOANS_MAX or not (loan.loans or loan.available_nanos)
                case ConfigureKey(is_absent):
                    snapshot = await self._configure(attempt, snapshot, is_absent=is_absent)
                    ask = self._plan(attempt, snapshot, model, version)
                case Stale():
                    snapshot = await self._slowly(attempt, self._keys.refetch(call.key_hash))
                    snapshot = self._authenticate(call, snapshot)
                    ask = self._plan(attempt, snapshot, model, version)
                case Wait():
                    await self._slowly(attempt, asyncio.sleep(WAIT_S))
                case No():
                    return self._refused(answer, snapshot, call, loan)
                case Fence():
                    self._check(answer, snapshot.bucket)
        raise refusals.unavailable()

    async def _slowly(self, attempt: _Attempt, work: Awaitable[T]) -> T:
        """Only what may wait is timed: a warm open costs no timer. Raises TimeoutError."""
        return await asyncio.wait_for(work, max(0.001, attempt.deadline_s - time.monotonic()))

    def _authenticate(self, call: Open, snapshot: KeySnapshot | None) -> KeySnapshot:
        if snapshot is None:
            raise InvalidApiKey
        if not sessions.address_is_allowed(snapshot, call.client_address):
            raise refusals.address_refused(snapshot)
        return snapshot

    async def _configure(self, attempt: _Attempt, snapshot: KeySnapshot, *, is_absent: bool) -> KeySnapshot:
        if is_absent:
            # Its totals begin this epoch: an old snapshot would forget what was used since.
            found = await self._slowly(attempt, self._keys.recent(attempt.call.key_hash))
            snapshot = self._authenticate(attempt.call, found)
        bucket = snapshot.bucket
        in_force = await self._store.configure(snapshot, epoch=self._epochs.known(bucket))
        self._check(in_force, bucket)
        if in_force == 0:
            # The snapshot is of an epoch before: what was posted since is not in it.
            found = await self._slowly(attempt, self._keys.refetch(attempt.call.key_hash))
            snapshot = self._authenticate(attempt.call, found)
            self._check(await self._store.configure(snapshot, epoch=self._epochs.known(bucket)), bucket)
        return snapshot

    def _price(self, call: Open) -> tuple[Model, PriceVersion]:
        if not self._catalogue.is_usable:
            raise Unavailable(
                "The price list is too old to charge by. Nothing was charged. Please try again shortly.",
                code="prices_unavailable",
                retry_after_ms=refusals.RETRY_AFTER_MS,
            )
        if call.choices < 1 or not 0 <= (call.output_tokens_max or 0) <= TOKENS_PER_CALL_MAX:
            raise BadRequest("The number of choices or tokens is out of bounds. Please correct it.")
        model = self._catalogue.find(call.model)
        version = model.price_at(time.time_ns() // 1_000_000) if model is not None else None
        if model is None or version is None:
            raise refusals.model_unknown(call.model)
        return model, version

    def _plan(self, attempt: _Attempt, snapshot: KeySnapshot, model: Model, version: PriceVersion) -> HoldAsk:
        return sessions.plan_hold(
            attempt.call,
            snapshot,
            model,
            version,
            bound=self._counting.bound(model, attempt.call.facts),
            counted=attempt.counted,
            slice_tokens=self._settings.stream_slice_tokens,
            unknown_tokens=self._settings.output_tokens_unknown,
        )

    async def _ask_store(
        self, attempt: _Attempt, snapshot: KeySnapshot, ask: HoldAsk, *, accept_part: bool
    ) -> OpenAnswer:
        attempt.is_unsure = True
        answer = await self._store.open(
            attempt.call,
            snapshot,
            ask,
            epoch=self._epochs.known(snapshot.bucket),
            lease_ms=self._settings.lease_ms,
            accept_part=accept_part,
        )
        # Only an unanswered open leaves it open whether money is held.
        attempt.is_unsure = False
        return answer

    async def _borrow(self, snapshot: KeySnapshot, short: Short) -> LoanReply:
        return await self._lending.borrow(
            snapshot.account_id,
            bucket=snapshot.bucket,
            epoch=short.epoch,
            gseq=short.gseq,
            wanted_nanos=short.wanted_nanos,
            largest_hold_nanos=short.largest_hold_nanos,
        )

    def _check(self, answer: Fence | int, bucket: int) -> None:
        if isinstance(answer, Fence):
            self._epochs.suspect(bucket, answer.seen_epoch, cause=answer.cause)
            raise refusals.unavailable()

    def _admitted(
        self, attempt: _Attempt, snapshot: KeySnapshot, model: Model, ask: HoldAsk, held: Held
    ) -> Admitted | Failed:
        self._epochs.learn(snapshot.bucket, held.epoch)
        reply = sessions.admitted(
            attempt.call, snapshot, model, held, held.record or ask.record, lease_ms=self._settings.lease_ms
        )
        if reply is None:
            LOG.error("an admitted session's price version is unknown", model=model.id)
            return Failed("The price version of this session is not known here.")
        self._metrics.admitted["final" if held.final else ask.mode] += 1
        self._metrics.held_nanos += held.held_nanos
        if held.lendable_nanos > 0 and held.free_nanos < REFILL_HOLDS * held.largest_hold_nanos:
            self._lending.refill(
                snapshot.account_id,
                bucket=snapshot.bucket,
                epoch=held.epoch,
                gseq=held.gseq,
                largest_hold_nanos=held.largest_hold_nanos,
            )
        return reply

    def _refused(self, no: No, snapshot: KeySnapshot, call: Open, loan: LoanReply | None) -> Refused:
        frozen_nanos = loan.frozen_nanos if loan is not None else 0
        error = refusals.error_of(no, call.model, frozen_nanos=frozen_nanos)
        limits = snapshot.limits
        # The window that refused is used up.
        requests = limits.requests_per_minute if no.cause == "requests" else None
        tokens = limits.tokens_per_minute if no.cause == "tokens" else None
        return refusals.refused(error, sessions.rate_limit_state(snapshot, requests, tokens))


class _Attempt:
    """One open's changing facts. `is_unsure`: Redis was asked and has not answered yet."""

    __slots__ = ("call", "counted", "deadline_s", "is_unsure")

    def __init__(self, call: Open, deadline_s: float) -> None:
        self.call = call
        self.deadline_s = deadline_s
        self.counted: InputTokens | None = None
        self.is_unsure = False
