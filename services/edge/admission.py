"""Open a session at a meter: the only way to a hold.

Outage behaviour: no answer within the timeout is 503; whatever was held meanwhile is released.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from services.common.contracts.charging import Admitted, CountWanted, Open, Refused
from services.common.errors import Unavailable
from services.common.ids import KeyHash, SessionId
from services.edge.dialects.endpoint import Endpoint, Request
from services.edge.errors_http import RefusedByMeter
from services.edge.key_hints import KnownKey
from services.edge.meter_client import MeterUnavailable
from services.edge.parts import EdgeParts, lease_clock_s

RETRY_AFTER_MS: Final = 1_000


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was read: who asks for what. `started_s`: monotonic; `started_at_ms`: since 1970."""

    session_id: SessionId
    endpoint: Endpoint
    request: Request
    body: bytes
    key_hash: KeyHash
    known_key: KnownKey
    client_address: str | None
    client_headers: Mapping[str, str]
    started_s: float
    started_at_ms: int


class Admission:
    """`seq` of the last call; `may_hold`: until a meter says no, money may be held."""

    __slots__ = ("may_hold", "seq")

    def __init__(self) -> None:
        self.seq = 0
        self.may_hold = False

    async def admit(self, parts: EdgeParts, incoming: Incoming) -> tuple[Admitted, float]:
        """The hold, and when it was asked for (`lease_clock_s`: the lease counts from then).

        Raises RefusedByMeter (nothing is held) or Unavailable (something may be).
        """
        known, request = incoming.known_key, incoming.request
        bucket = known.hint.bucket
        call = Open(
            session_id=incoming.session_id,
            seq=1,
            edge_id=parts.edge_id,
            key_hash=incoming.key_hash,
            endpoint=incoming.endpoint.name,
            model=request.model,
            stream=request.stream,
            facts=request.facts,
            output_tokens_max=request.output_tokens_max,
            choices=request.choices,
            client_address=incoming.client_address,
            body=incoming.body if known.count_next else None,
        )
        while True:
            self.seq, self.may_hold = call.seq, True
            sent_at_s = lease_clock_s()
            try:
                reply = await parts.meter.send(call, bucket=bucket, timeout_ms=parts.settings.open_timeout_ms)
            except MeterUnavailable as error:
                raise Unavailable(retry_after_ms=RETRY_AFTER_MS) from error
            if isinstance(reply, Admitted):
                known.count_next = reply.count_next
                return reply, sent_at_s
            if isinstance(reply, Refused):
                self.may_hold = False
                if reply.error == "InvalidApiKey":
                    parts.key_hints.forget(incoming.key_hash)
                raise RefusedByMeter(reply)
            if not isinstance(reply, CountWanted) or call.body is not None:
                raise Unavailable(retry_after_ms=RETRY_AFTER_MS)
            call = msgspec.structs.replace(call, seq=call.seq + 1, body=incoming.body)
