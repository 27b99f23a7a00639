"""Price a session by our own count, where the upstream's usage is missing or covers too much."""

from __future__ import annotations

from typing import Final

from services.common.contracts.charging import Counted, CountInput
from services.common.errors import Unavailable
from services.common.money import TokenCounts
from services.edge.accounting import Charge, charge_of_count
from services.edge.admission import RETRY_AFTER_MS, Incoming
from services.edge.grant_keeper import GrantKeeper
from services.edge.meter_client import MeterClient, MeterUnavailable
from services.edge.session import Session

COUNT_INPUT_TIMEOUT_MS: Final = 10_000


class OwnCount:
    def __init__(self, meter: MeterClient, incoming: Incoming, session: Session, keeper: GrantKeeper) -> None:
        self._meter = meter
        self._incoming = incoming
        self._session = session
        self._keeper = keeper

    async def charge(self, texts: tuple[str, ...] | None, *flags: str) -> Charge:
        """Input, and the output in `texts` (None: what was delivered of the stream).

        Raises Unavailable when no meter can count.
        """
        keeper = self._keeper
        try:
            output = await (keeper.delivered_tokens() if texts is None else keeper.tokens_in(texts))
            tokens = TokenCounts(input=await self._input_tokens(), output=output)
        except MeterUnavailable as error:
            raise Unavailable(retry_after_ms=RETRY_AFTER_MS) from error
        return charge_of_count(tokens, self._session, *flags)

    async def _input_tokens(self) -> int:
        admitted, incoming = self._session.admitted, self._incoming
        if admitted.input_exact:
            return admitted.input_tokens
        call = CountInput(endpoint=incoming.endpoint.name, model=incoming.request.model, body=incoming.body)
        reply = await self._meter.send(
            call, bucket=self._session.ref.bucket, timeout_ms=COUNT_INPUT_TIMEOUT_MS
        )
        if not isinstance(reply, Counted):
            raise MeterUnavailable("the meter could not count")
        return sum(reply.tokens)
