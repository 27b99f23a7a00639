"""The story of one request: open, ask upstream, deliver, settle. Read it from top to bottom.

    open       hold what it may cost, in the edge's log   nothing goes upstream without a hold
    upstream   the first channel that answers             nothing is charged for a failed attempt
    deliver    plain: the whole reply; streamed: event by event, never past the grant
    settle     charge what was used, in the background    the client never waits for it

However a call ends (client gone, upstream dead, no meter, shutdown), `_end` settles or releases it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from aiohttp import web

from services.common import logs
from services.common.contracts.charging import Release
from services.common.errors import BadRequest, MeterwayError, ModelNotFound, UpstreamFailed
from services.edge.accounting import (
    NOTHING,
    Charge,
    charge_headers,
    charge_of_usage,
    is_believable,
)
from services.edge.admission import Admission, Incoming
from services.edge.delivery import Delivery
from services.edge.dialects.endpoint import PlainFacts
from services.edge.errors_http import rate_limit_headers
from services.edge.grant_keeper import GrantKeeper, end_reason
from services.edge.own_count import OwnCount
from services.edge.parts import EdgeParts, lease_clock_s
from services.edge.pulse import Pulse
from services.edge.relay import Relay, StreamEnd
from services.edge.session import Session
from services.edge.session_log import Held
from services.edge.settlement import CallEnd, Settlement
from services.edge.streams.sse import EventTooLarge
from services.edge.streams.texts import TextTally
from services.edge.upstreams.attempts import Answer, RequestRejected
from services.edge.upstreams.headers import request_headers
from services.edge.upstreams.transport import TransportError

LOG = logs.get("edge.metered_call")
LINGER_S: Final = 0.5
"""How long an upstream may take to end its body after `[DONE]`, so that its connection can be used again."""
BROKEN_OFF: Final = (
    "The model's provider broke off this answer. What was delivered is charged. Please try again."
)


class MeteredCall:
    """One request; `run` it once. `outcome`: as in `UsageRecord`, or `refused` before there is a hold."""

    def __init__(self, parts: EdgeParts, incoming: Incoming, delivery: Delivery) -> None:
        self._parts = parts
        self._incoming = incoming
        self._endpoint = incoming.endpoint
        self._delivery = delivery
        self._reader = incoming.endpoint.chunk_reader() if incoming.request.stream else None
        self._admission = Admission()
        self._session: Session | None = None
        self._settlement: Settlement | None = None
        self._answer: Answer | None = None
        self._plain: PlainFacts | None = None
        self._charge: Charge | None = None
        self.outcome = "refused"

    async def run(self) -> web.StreamResponse:
        """The reply: for a stream one that is written already.

        Raises MeterwayError, RefusedByMeter or RequestRejected when nothing was delivered (then
        nothing is charged), ConnectionResetError or CancelledError when the client is gone.
        """
        pulse: Pulse | None = None
        # The scope has no deadline of its own: the pulse ends it when the lease is over.
        scope = asyncio.timeout(None)
        try:
            self._check_model()
            session, keeper = await self._open()
            pulse = self._start_pulse(session, keeper, scope)
            self.outcome = "upstream_failed"
            async with scope:
                self._answer = answer = await self._ask_upstream(session)
                if answer.facts is not None:
                    return await self._deliver_plain(session, answer, answer.facts)
                return await self._deliver_stream(session, keeper, answer, scope)
        except TimeoutError:
            return await self._lease_over()
        except (asyncio.CancelledError, ConnectionResetError):
            if self.outcome != "complete":
                self.outcome = "client_gone"
            raise
        except (MeterwayError, RequestRejected) as error:
            # A client that waited long has its headers already: the error becomes an event.
            if not self._delivery.is_started:
                raise
            return await self._delivery.end_with(self._endpoint.error_event(_visible(error)))
        finally:
            if pulse is not None:
                pulse.stop()
            if self._answer is not None:
                self._answer.reply.close()
            self._end()

    # --- open ---------------------------------------------------------------------------------

    def _check_model(self) -> None:
        model = self._incoming.request.model
        if not self._parts.routing.table.serves(model):
            raise ModelNotFound(
                f"The model {model[:100]!r} does not exist or is not served. GET /v1/models lists them.",
                param="model",
            )

    async def _open(self) -> tuple[Session, GrantKeeper]:
        admitted, sent_at_s = await self._admission.admit(self._parts, self._incoming)
        tally = self._reader.texts if self._reader is not None else TextTally()
        incoming = self._incoming
        # In the log before anything is sent upstream: a hold that isn't there was never used.
        logged = self._parts.log.held(
            Held.of(
                admitted,
                edge_id=self._parts.edge_id,
                endpoint=incoming.endpoint.name,
                model=incoming.request.model,
                stream=incoming.request.stream,
                started_at_ms=incoming.started_at_ms,
            )
        )
        self._session = session = Session(admitted, sent_at_s, tally)
        session.logged = logged
        keeper = GrantKeeper(session, self._parts.meter, self._incoming.request.model)
        self._own_count = OwnCount(self._parts.meter, self._incoming, session, keeper)
        self._settlement = Settlement(self._parts, self._incoming, session, self._own_count)
        return session, keeper

    def _start_pulse(self, session: Session, keeper: GrantKeeper, scope: asyncio.Timeout) -> Pulse:
        settings, delivery = self._parts.settings, self._delivery
        is_stream = self._incoming.request.stream
        silence_s = settings.keep_alive_ms / 1000
        interval_s = session.admitted.lease_ms / 4000

        def on_beat() -> float | None:
            now_s = lease_clock_s()
            if keeper.must_end or session.lease_is_over(now_s):
                scope.reschedule(asyncio.get_running_loop().time())
                return None
            keeper.look_ahead()
            if is_stream:
                delivery.abort_if_stalled(settings.stall_timeout_ms / 1000)
                if delivery.is_silent(silence_s):
                    self._parts.background.spawn(delivery.keep_alive(silence_s))
            return session.lease_ends_s - now_s

        interval_s = min(interval_s, silence_s) if is_stream else interval_s
        return Pulse(self._parts.deadlines, interval_s, on_beat)

    # --- upstream -----------------------------------------------------------------------------

    async def _ask_upstream(self, session: Session) -> Answer:
        incoming, endpoint = self._incoming, self._endpoint
        is_stream = incoming.request.stream
        output_tokens_max = session.admitted.upstream_output_tokens_max

        def body_for(model_rename: str | None) -> bytes:
            return endpoint.upstream_body(
                incoming.body,
                model_rename=model_rename,
                output_tokens_max=output_tokens_max,
                include_usage=is_stream,
            )

        if session.logged is not None:
            session.logged.sent_upstream()
        self._parts.metrics.added_latency.observe(time.monotonic() - incoming.started_s)
        return await self._parts.failover.first_answer(
            self._parts.routing.table.candidates(incoming.request.model),
            endpoint,
            stream=is_stream,
            body_for=body_for,
            headers=request_headers(
                incoming.client_headers, request_id=incoming.session_id, stream=is_stream
            ),
        )

    # --- deliver: plain -----------------------------------------------------------------------

    async def _deliver_plain(self, session: Session, answer: Answer, facts: PlainFacts) -> web.StreamResponse:
        """The upstream's reply, untouched, with what it cost in headers."""
        if self._delivery.is_started:
            raise UpstreamFailed
        if session.lease_is_over(lease_clock_s()):
            raise TimeoutError
        self._plain = facts
        usage = facts.usage
        if usage is not None and is_believable(usage, session):
            self._charge = charge_of_usage(usage, session)
        elif facts.error is not None or (self._endpoint.has_output and not facts.texts):
            self._charge = NOTHING
        else:
            self._charge = await self._own_count.charge(tuple(facts.texts.values()), "usage_missing")
        self.outcome = "complete"
        if self._settlement is not None and self._charge is not NOTHING:
            self._settlement.close(self._call_end(), self._charge)
        headers = {**answer.headers, **self._limits(session), **charge_headers(self._charge, session)}
        headers["x-request-id"] = self._incoming.session_id
        headers.setdefault("content-type", "application/json")
        return web.Response(body=answer.body, headers=headers)

    # --- deliver: streamed --------------------------------------------------------------------

    async def _deliver_stream(
        self, session: Session, keeper: GrantKeeper, answer: Answer, scope: asyncio.Timeout
    ) -> web.StreamResponse:
        """Event by event; then, however it ended, a proper end in the dialect."""
        reader, endpoint, delivery = self._reader, self._endpoint, self._delivery
        assert reader is not None
        await delivery.start({**answer.headers, **self._limits(session)})
        wants_usage = self._incoming.request.wants_usage
        relay = Relay(
            endpoint=endpoint,
            reader=reader,
            session=session,
            keeper=keeper,
            delivery=delivery,
            wants_usage=wants_usage,
            choices=self._incoming.request.choices,
        )
        try:
            end = await relay.run(answer.reply)
        except (TransportError, EventTooLarge) as error:
            LOG.warning("upstream broke off", session_id=self._incoming.session_id, error=str(error))
            end = StreamEnd.BROKEN_OFF
        if end is StreamEnd.DONE or end is StreamEnd.CLOSED:
            last = relay.take_unwritten()
            if wants_usage and reader.usage is None and session.text_bytes:
                if last:
                    await delivery.write(last)
                last = endpoint.usage_chunk(reader, await self._counted_usage("usage_missing"))
            self.outcome = "complete"
            done = relay.done_event or endpoint.end_of_stream(reader, None)
            response = await delivery.end_with(last + done)
            await self._linger(answer, scope)
            return response
        answer.reply.close()
        if end is StreamEnd.ERROR_EVENT and relay.error is not None:
            code = relay.error.code or relay.error.type
            LOG.warning("upstream sent an error", session_id=self._incoming.session_id, code=code)
        if end is StreamEnd.BROKEN_OFF or end is StreamEnd.ERROR_EVENT:
            broken = UpstreamFailed(BROKEN_OFF) if session.text_bytes else UpstreamFailed()
            return await delivery.end_with(endpoint.error_event(broken))
        if end is StreamEnd.LEASE_OVER:
            raise TimeoutError
        self.outcome = "out_of_grant"
        reason = end_reason(session, lease_is_over=False, is_delivered=session.text_bytes > 0)
        usage_json = await self._counted_usage() if wants_usage else None
        return await delivery.end_with(endpoint.end_of_stream(reader, reason, usage_json=usage_json))

    def _limits(self, session: Session) -> dict[str, str]:
        rate_limits = session.admitted.rate_limits
        return rate_limit_headers(rate_limits) if rate_limits is not None else {}

    async def _counted_usage(self, *flags: str) -> bytes:
        """The usage object for a client that asked for one, by our own count, which is then the charge."""
        self._charge = charge = await self._own_count.charge(None, *flags)
        return self._endpoint.usage_json_of(charge.tokens, charge.cost_nanos)

    async def _linger(self, answer: Answer, scope: asyncio.Timeout) -> None:
        scope.reschedule(asyncio.get_running_loop().time() + LINGER_S)
        try:
            async for _chunk in answer.reply.chunks():
                pass
        except TransportError:
            return

    async def _lease_over(self) -> web.StreamResponse:
        """The lease ran out, the hold is gone, or the upstream lingered after its end."""
        session, delivery, reader = self._session, self._delivery, self._reader
        assert session is not None
        if self.outcome == "complete" and delivery.response is not None:
            return delivery.response
        self.outcome = "out_of_grant"
        reason = end_reason(session, lease_is_over=True, is_delivered=session.text_bytes > 0)
        if not delivery.is_started:
            raise reason from None
        if reader is None or not session.text_bytes:
            return await delivery.end_with(self._endpoint.error_event(reason))
        return await delivery.end_with(self._endpoint.end_of_stream(reader, reason))

    # --- settle -------------------------------------------------------------------------------

    def _end(self) -> None:
        """Settle what was used, release what was not. Never awaited by the client."""
        if self._settlement is None:
            if self._admission.may_hold:
                self._release_unknown()
            return
        self._settlement.end(self._call_end())

    def _call_end(self) -> CallEnd:
        return CallEnd(
            outcome=self.outcome,
            charge=self._charge,
            usage=self._reader.usage if self._reader is not None else None,
            texts=tuple(self._plain.texts.values()) if self._plain is not None else None,
            candidate=self._answer.candidate if self._answer is not None else None,
            first_write_s=self._delivery.first_write_s,
        )

    def _release_unknown(self) -> None:
        """Nobody knows whether the open was executed: a release before it leaves a tombstone."""
        self._parts.end_queue.release(
            Release(
                session_id=self._incoming.session_id,
                bucket=self._incoming.known_key.hint.bucket,
                seq=self._admission.seq + 1,
                reason=self.outcome,
            )
        )


def _visible(error: MeterwayError | RequestRejected) -> MeterwayError:
    if isinstance(error, MeterwayError):
        return error
    return BadRequest("The model's provider refused this request. Nothing was charged.")
