"""Ask one upstream after another until one really answers; nothing has reached the client before that.

What the client did wrong is passed on; what an upstream did wrong is tried elsewhere.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.common.contracts.catalogue import ChannelCredential
from services.common.errors import MeterwayError
from services.common.ids import ChannelId
from services.edge.dialects.endpoint import Endpoint
from services.edge.upstreams.first_look import fault_of_plain, fault_of_stream
from services.edge.upstreams.headers import reply_headers
from services.edge.upstreams.health import Health
from services.edge.upstreams.outcomes import Answer, Attempt, CredentialRefused, RequestRejected
from services.edge.upstreams.routing import Candidate
from services.edge.upstreams.transport import Transport, TransportError, UpstreamReply
from services.edge.upstreams.verdicts import Verdict, error_for_client, judge_status, rejection_body

__all__ = ["Answer", "Attempt", "CredentialRefused", "Failover", "RequestRejected"]

ERROR_BODY_BYTES_MAX: Final = 64 * 1024
ERROR_BODY_SECONDS_MAX: Final = 10
_KIND_TO_OUTCOME: Final = {
    "refused": "refused",
    "timed_out": "timed_out",
    "broken": "broken",
    "stale": "broken",
    "bad_encoding": "garbage",
    "too_large": "too_large",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failover:
    """What all requests of an edge share. The callbacks must not block."""

    transport: Transport
    health: Health
    attempts_max: int = 3
    plain_reply_bytes_max: int = 64 * 1024 * 1024
    on_attempt: Callable[[Attempt], None] = field(default=lambda _attempt: None)
    on_credential_refused: Callable[[CredentialRefused], None] = field(default=lambda _refused: None)

    async def first_answer(
        self,
        candidates: Sequence[Candidate],
        endpoint: Endpoint,
        *,
        stream: bool,
        body_for: Callable[[str | None], bytes],
        headers: Mapping[str, str],
    ) -> Answer:
        """The first real answer. `candidates`: from `RoutingTable.candidates(model)`. `body_for(rename)`: the
        request body with the model renamed (None: as it is). `headers`: from `request_headers(...)`.

        May take as long as a channel's first-byte timeout: a caller that wants the client's headers out
        early runs it as a task, sends them after some seconds, and turns errors into error events.
        Cancelling it closes the upstream connection at once.

        Raises RequestRejected; UpstreamFailed, RateLimited (`upstream_rate_limited`) or Unavailable
        (`upstream_unavailable`) when every attempt failed or no channel may be tried. Nothing was
        delivered then, and nothing is charged.
        """
        last: _Failed | None = None
        for candidate, credential in itertools.islice(self._tries(candidates), self.attempts_max):
            try:
                return await self._attempt(
                    candidate, credential, endpoint, stream=stream, body_for=body_for, headers=headers
                )
            except _Failed as failed:
                last = failed
        raise self._final_error(candidates, last)

    def _tries(self, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, ChannelCredential]]:
        """Channels in order, each with its credentials as long as trying another one can help."""
        for candidate in candidates:
            channel = candidate.channel
            for _ in channel.credentials:
                now_ms = _now_ms()
                credential = self.health.pick_credential(channel, now_ms)
                if credential is None or not self.health.may_try(channel.id, now_ms):
                    break
                yield candidate, credential
                if self.health.credential_is_usable(channel.id, credential.id, _now_ms()):
                    break  # the channel failed, not its credential

    async def _attempt(
        self,
        candidate: Candidate,
        credential: ChannelCredential,
        endpoint: Endpoint,
        *,
        stream: bool,
        body_for: Callable[[str | None], bytes],
        headers: Mapping[str, str],
    ) -> Answer:
        """One try, its verdict booked. Raises _Failed or RequestRejected."""
        started_ms = _now_ms()
        verdict = Verdict("abandoned", 0)
        try:
            body = body_for(candidate.model_rename)
            reply = await self._send(candidate, credential, endpoint.path, body, headers)
            answer = await self._judged(reply, candidate, credential, endpoint, stream=stream)
            verdict = Verdict("answered", reply.status)
            return answer
        except TransportError as error:
            verdict = Verdict(_KIND_TO_OUTCOME[error.kind], 0)
            raise _Failed(verdict) from error
        except _Failed as failed:
            verdict = failed.verdict
            raise
        except RequestRejected as rejected:
            verdict = Verdict("rejected", rejected.status)
            raise
        finally:
            self._book(candidate.channel.id, credential.id, verdict)
            self.on_attempt(
                Attempt(
                    channel_id=candidate.channel.id,
                    credential_id=credential.id,
                    outcome=verdict.outcome,
                    status=verdict.status,
                    duration_ms=_now_ms() - started_ms,
                )
            )

    async def _send(
        self,
        candidate: Candidate,
        credential: ChannelCredential,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
    ) -> UpstreamReply:
        channel = candidate.channel
        try:
            return await self.transport.send(channel, credential, path, body, headers)
        except TransportError as error:
            if error.kind != "stale":
                raise
        # The upstream closed a kept connection while the request was on its way: that says nothing of it.
        return await self.transport.send(channel, credential, path, body, headers)

    async def _judged(
        self,
        reply: UpstreamReply,
        candidate: Candidate,
        credential: ChannelCredential,
        endpoint: Endpoint,
        *,
        stream: bool,
    ) -> Answer:
        """The answer, if the reply is one; else the reply is closed. Raises _Failed or RequestRejected."""
        try:
            if reply.status != 200:
                await self._refuse(reply)
            body, facts = b"", None
            if stream:
                verdict = await fault_of_stream(reply, endpoint)
            else:
                body = await reply.read_bounded(self.plain_reply_bytes_max)
                facts = endpoint.read_plain(body)
                verdict = fault_of_plain(facts, reply.headers)
            if verdict is not None:
                raise _Failed(verdict)
        except BaseException:
            reply.close()
            raise
        return Answer(
            candidate=candidate,
            credential_id=credential.id,
            headers=reply_headers(reply.headers),
            reply=reply,
            body=body,
            facts=facts,
        )

    async def _refuse(self, reply: UpstreamReply) -> None:
        try:
            async with asyncio.timeout(ERROR_BODY_SECONDS_MAX):
                body = await reply.read_bounded(ERROR_BODY_BYTES_MAX)
        except (TransportError, TimeoutError):
            body = b""
        verdict = judge_status(reply.status, reply.headers, body, now_seconds=time.time())
        rejected = RequestRejected(
            reply.status, rejection_body(reply.status, body), {"content-type": "application/json"}
        )
        if verdict.outcome == "rejected":
            raise rejected
        raise _Failed(verdict, rejected if verdict.outcome == "unknown_model" else None)

    def _book(self, channel_id: ChannelId, credential_id: str, verdict: Verdict) -> None:
        now_ms = _now_ms()
        match verdict.outcome:
            case "answered" | "rejected" | "unknown_model" | "too_large":
                self.health.answered(channel_id, credential_id)
            case "abandoned":
                self.health.abandoned(channel_id)
            case "rate_limited":
                self.health.credential_cooled(channel_id, credential_id, verdict.retry_after_ms, now_ms)
            case "credential_refused":
                if self.health.credential_refused(channel_id, credential_id, verdict.status, now_ms):
                    self.on_credential_refused(
                        CredentialRefused(
                            channel_id=channel_id, credential_id=credential_id, status=verdict.status
                        )
                    )
            case _:
                self.health.failed(channel_id, now_ms)

    def _final_error(
        self, candidates: Sequence[Candidate], last: _Failed | None
    ) -> MeterwayError | RequestRejected:
        if last is not None and last.rejected is not None:
            return last.rejected
        now_ms = _now_ms()
        channels = [candidate.channel for candidate in candidates]
        retry_in_ms = min((self.health.retry_in_ms(channel, now_ms) for channel in channels), default=None)
        if last is not None:
            return error_for_client(
                last.verdict.outcome, last.verdict.status, last.verdict.retry_after_ms or retry_in_ms
            )
        only_cooling = any(self.health.is_rate_limited(channel, now_ms) for channel in channels)
        return error_for_client("rate_limited" if only_cooling else "unavailable", 503, retry_in_ms)


class _Failed(Exception):
    """This try failed; another may help. `rejected`: what to pass on when none does."""

    def __init__(self, verdict: Verdict, rejected: RequestRejected | None = None) -> None:
        super().__init__(verdict.outcome)
        self.verdict = verdict
        self.rejected = rejected


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
