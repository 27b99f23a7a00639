"""Keeps a running session's grant and lease ahead of what is delivered.

`look_ahead` never blocks: counts and extends are asked for while the stream runs on. Only when
the grant is used up does `make_room` make the caller wait, which stops the reading upstream.

Outage behaviour: without an answer the session lives on what it has: to the end of its grant,
then it waits; to the end of its lease, then it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.common.contracts.charging import Counted, CountText, Extended, Refused, Reply
from services.common.errors import InsufficientQuota, MeterwayError, PermissionDenied, Unavailable
from services.edge.meter_client import MeterClient, MeterUnavailable
from services.edge.parts import lease_clock_s
from services.edge.session import Session, texts_before
from services.edge.streams.texts import TextKey

COUNT_TIMEOUT_MS = 5_000
EXTEND_TIMEOUT_MS = 5_000
RETRY_PAUSE_S = 0.25
RETRY_AFTER_MS = 1_000
STALE_EPOCH = "stale_epoch"
_DISABLED = ("disabled", "suspended", "expired")


class GrantKeeper:
    def __init__(self, session: Session, meter: MeterClient, model: str) -> None:
        self._session = session
        self._meter = meter
        self._model = model
        self._counting: asyncio.Future[Reply] | None = None
        self._extending: asyncio.Future[Reply] | None = None
        self._not_before_s = 0.0
        self._before: dict[TextKey, str] | None = None

    @property
    def must_end(self) -> bool:
        """The meter said that the session ends now. With a stale epoch it finishes inside its own hold."""
        return self._session.ended not in ("", STALE_EPOCH)

    @property
    def delivered_texts(self) -> tuple[str, ...]:
        """Uncounted text without an event that still waits for room."""
        before = self._before
        return tuple((self._session.tally.texts() if before is None else before).values())

    def look_ahead(self) -> None:
        session = self._session
        if self._counting is None and session.count_is_due:
            self._start_count()
        elif self._extending is None and self._counting is None and not session.ended:
            now_s = lease_clock_s()
            if now_s >= self._not_before_s and (session.slice_is_due or session.renewal_is_due(now_s)):
                self._start_extend(now_s)

    # --- counting -----------------------------------------------------------------------------

    def _start_count(self) -> asyncio.Future[Reply]:
        texts = self._session.tally.texts() if self._before is None else self._before
        keys = tuple(texts)
        future = self._count(tuple(texts.values()), final=False)
        self._counting = future
        future.add_done_callback(lambda done: self._counted(keys, done))
        return future

    def _count(self, texts: Sequence[str], *, final: bool) -> asyncio.Future[Reply]:
        call = CountText(model=self._model, texts=tuple(texts), final=final)
        return self._meter.send(call, bucket=self._session.ref.bucket, timeout_ms=COUNT_TIMEOUT_MS)

    def _counted(self, keys: tuple[TextKey, ...], done: asyncio.Future[Reply]) -> None:
        self._counting = None
        reply = _result(done)
        if isinstance(reply, Counted):
            if self._before is not None:
                self._before = texts_before(self._before, keys, reply)
            self._session.apply_count(keys, reply)
            self.look_ahead()

    async def delivered_tokens(self) -> int:
        """Output tokens delivered, exactly. Raises MeterUnavailable."""
        if self._counting is not None:
            await asyncio.wait((self._counting,))
        texts = self.delivered_texts
        counted_tokens = self._session.counted_tokens
        return counted_tokens + (await self.tokens_in(texts) if texts else 0)

    async def tokens_in(self, texts: Sequence[str]) -> int:
        reply = await self._count(texts, final=True)
        if not isinstance(reply, Counted):
            raise MeterUnavailable("the meter could not count")
        return sum(reply.tokens)

    # --- room ---------------------------------------------------------------------------------

    async def make_room(self, before: dict[TextKey, str]) -> bool:
        """Whether the event read last may be delivered; `before`: the uncounted texts without it.

        Waits for counts and slices as long as the lease lasts (the caller's timeout). While false
        is the answer, `delivered_texts` leaves the event out.
        """
        self._before = before
        session = self._session
        while True:
            if self._counting is not None:
                await asyncio.wait((self._counting,))
            if session.is_within_grant:
                break
            total_tokens = await self._total_tokens()
            if session.is_within_grant or (
                total_tokens is not None and total_tokens <= session.granted_tokens
            ):
                break
            if total_tokens is None:
                await asyncio.sleep(RETRY_PAUSE_S)
            elif session.final or not await self._another_slice():
                return False
        self._before = None
        return True

    async def _total_tokens(self) -> int | None:
        """The exact count with the event; beside it, in the same frame, what is before it gets counted."""
        session = self._session
        counted_tokens, texts = session.counted_tokens, tuple(session.tally.texts().values())
        total = self._count(texts, final=True)
        waiting = [total]
        if self._before and self._counting is None:
            waiting.append(self._start_count())
        await asyncio.wait(waiting)
        reply = _result(total)
        return counted_tokens + sum(reply.tokens) if isinstance(reply, Counted) else None

    async def _another_slice(self) -> bool:
        """Whether it is worth looking at the grant again."""
        if self._extending is None:
            now_s = lease_clock_s()
            if now_s < self._not_before_s:
                await asyncio.sleep(self._not_before_s - now_s)
            self._start_extend(lease_clock_s())
        assert self._extending is not None
        await asyncio.wait((self._extending,))
        return not self.must_end

    # --- extending ----------------------------------------------------------------------------

    def _start_extend(self, sent_at_s: float) -> None:
        # One call of a session is outstanding at a time; nobody but this keeper makes them meanwhile.
        session = self._session
        remaining_ms = max(1, int((session.lease_ends_s - sent_at_s) * 1000))
        future = self._meter.send(
            session.extend_call(), bucket=session.ref.bucket, timeout_ms=min(EXTEND_TIMEOUT_MS, remaining_ms)
        )
        self._extending = future
        future.add_done_callback(lambda done: self._extended(sent_at_s, done))

    def _extended(self, sent_at_s: float, done: asyncio.Future[Reply]) -> None:
        self._extending = None
        reply = _result(done)
        session, logged = self._session, self._session.logged
        if isinstance(reply, Extended) and logged is not None and logged.is_fenced:
            # A late reply of an epoch that this edge promised to leave: what is held is all there is.
            session.ended, session.final = STALE_EPOCH, True
        elif isinstance(reply, Extended):
            session.apply_extended(reply, sent_at_s)
            if logged is not None:
                logged.extended(seq=session.seq, held_nanos=session.held_nanos)
        elif isinstance(reply, Refused):
            self._session.ended = reply.code
            self._session.final = True
        else:
            self._not_before_s = lease_clock_s() + RETRY_PAUSE_S


def end_reason(session: Session, *, lease_is_over: bool, is_delivered: bool) -> MeterwayError:
    """Why a session was cut, as its client reads it: `insufficient_quota` where the money ran out."""
    charged = "What was delivered is charged." if is_delivered else "Nothing was charged."
    if session.ended and session.ended != STALE_EPOCH:
        if any(word in session.ended for word in _DISABLED):
            return PermissionDenied(
                f"The account or API key was disabled while this request ran. {charged}", code=session.ended
            )
        return Unavailable(f"The gateway lost this request's hold. {charged}", retry_after_ms=RETRY_AFTER_MS)
    if lease_is_over:
        return Unavailable(
            f"The gateway could not renew this request's hold. {charged}", retry_after_ms=RETRY_AFTER_MS
        )
    return InsufficientQuota(f"This request used up the balance or quota. {charged} Please top up.")


def _result(done: asyncio.Future[Reply]) -> Reply | None:
    """The reply; None when no meter answered."""
    if done.cancelled() or done.exception() is not None:
        return None
    return done.result()
