"""After a call has ended: find what it costs and see to it that a meter learns of it.

The client never waits for any of this. What needs a count first is counted for as long as that takes.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Final

import msgspec

from services.common import logs
from services.common.contracts.charging import Release, Settle
from services.common.errors import Unavailable
from services.edge.accounting import (
    NOTHING,
    Charge,
    audited,
    charge_of_usage,
    is_believable,
    usage_record,
)
from services.edge.admission import Incoming
from services.edge.dialects.endpoint import UsageFacts
from services.edge.own_count import OwnCount
from services.edge.parts import EdgeParts
from services.edge.session import Session
from services.edge.session_log import LogUnavailable
from services.edge.upstreams.routing import Candidate

LOG = logs.get("edge.settlement")
COUNT_RETRY_S: Final = 1.0


class CallEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a call ended. `charge`: if it is known already. `usage`: what the upstream's stream reported.
    `texts`: output of a plain reply, None: a stream's is known to its session. `first_write_s`: monotonic
    time of a stream's first bytes, 0: none."""

    outcome: str
    charge: Charge | None
    usage: UsageFacts | None
    texts: tuple[str, ...] | None
    candidate: Candidate | None
    first_write_s: float


class Settlement:
    def __init__(self, parts: EdgeParts, incoming: Incoming, session: Session, own_count: OwnCount) -> None:
        self._parts = parts
        self._incoming = incoming
        self._session = session
        self._own_count = own_count
        self._settle_call: Settle | None = None

    def close(self, end: CallEnd, charge: Charge) -> Settle:
        """The call that settles the session, once it is in the log: a plain reply's before its first byte,
        a stream's before it goes to a meter."""
        if self._settle_call is None:
            parts, session = self._parts, self._session
            record = usage_record(
                self._incoming,
                session,
                charge,
                end.outcome,
                edge_id=parts.edge_id,
                candidate=end.candidate,
                first_write_s=end.first_write_s,
            )
            self._settle_call = settle = Settle(ref=session.ref, seq=session.next_seq(), record=record)
            if session.logged is not None:
                try:
                    session.logged.close(settle)
                except LogUnavailable as error:
                    LOG.error("an ending is not in the log", session_id=record.session_id, cause=error.cause)
        elif self._settle_call.record.flags != charge.flags:
            # An audit came later; only its flags are new.
            record = msgspec.structs.replace(self._settle_call.record, flags=charge.flags)
            self._settle_call = msgspec.structs.replace(self._settle_call, record=record)
        return self._settle_call

    def end(self, end: CallEnd) -> None:
        """Settle what was used, release what was not."""
        charge, session = end.charge, self._session
        if charge is None:
            # A cut stream's usage would cover what was not delivered.
            if end.usage is not None and end.outcome != "out_of_grant" and is_believable(end.usage, session):
                charge = charge_of_usage(end.usage, session)
            elif session.text_bytes or end.texts:
                self._parts.background.spawn(self._count_then_settle(end))
                return
            else:
                charge = NOTHING
        if self._is_worth_an_audit(end, charge):
            self._parts.background.spawn(self._audit_then_settle(end, charge))
        else:
            self._settle(end, charge)

    def _is_worth_an_audit(self, end: CallEnd, charge: Charge) -> bool:
        if charge.source != "upstream" or end.outcome != "complete" or not self._incoming.endpoint.has_output:
            return False
        return bool(charge.flags) or random.randrange(1_000_000) < self._parts.settings.audit_ppm  # noqa: S311

    async def _audit_then_settle(self, end: CallEnd, charge: Charge) -> None:
        """The upstream's usage is charged whatever our own count says of it; the flags tell a reviewer."""
        try:
            own = await self._own_count.charge(end.texts)
            charge = audited(charge, own.tokens)
        except Unavailable:
            charge = replace(charge, flags=(*charge.flags, "not_counted"))
        self._settle(end, charge)

    async def _count_then_settle(self, end: CallEnd) -> None:
        """As long as it takes: what was delivered is charged."""
        flags = () if end.outcome in ("out_of_grant", "client_gone") else ("usage_missing",)
        while True:
            try:
                charge = await self._own_count.charge(end.texts, *flags)
                break
            except Unavailable:
                await asyncio.sleep(COUNT_RETRY_S)
        self._settle(end, charge)

    def _settle(self, end: CallEnd, charge: Charge) -> None:
        parts, session = self._parts, self._session
        if charge is NOTHING:
            parts.end_queue.release(
                Release(
                    session_id=session.ref.session_id,
                    bucket=session.ref.bucket,
                    seq=session.next_seq(),
                    reason=end.outcome,
                )
            )
            return
        settle = self.close(end, charge)
        parts.metrics.count_charge(charge.tokens, charge.cost_nanos, charge.source, charge.flags)
        parts.end_queue.settle(settle)
