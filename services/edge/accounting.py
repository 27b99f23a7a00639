"""What a finished session used and costs, as one record. Reads the clock, nothing else."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from services.common.contracts.charging import UsageRecord
from services.common.ids import EdgeId
from services.common.money import NANOS_MAX, TokenCounts, nanos_to_usd
from services.edge.admission import Incoming
from services.edge.dialects.endpoint import UsageFacts
from services.edge.session import Session
from services.edge.upstreams.routing import Candidate


@dataclass(frozen=True, slots=True)
class Charge:
    """`source`: `upstream`, `counted` or `none`. `flags`: why a reviewer should look."""

    tokens: TokenCounts
    cost_nanos: int
    source: str
    usage_json: str = ""
    flags: tuple[str, ...] = ()


NOTHING = Charge(TokenCounts(), 0, "none")


def charge_of_usage(usage: UsageFacts, session: Session) -> Charge:
    """The upstream's usage is authoritative, also above the hold; what looks wrong is flagged."""
    flags = tuple(f"usage_{fault}" for fault in usage.faults)
    if session.is_suspicious(usage.tokens):
        flags = (*flags, "usage_suspicious")
    return Charge(usage.tokens, session.cost_nanos(usage.tokens), "upstream", usage.json, flags)


def is_believable(usage: UsageFacts, session: Session) -> bool:
    """False for a report whose cost no store can hold: then our own count is charged."""
    return session.cost_nanos(usage.tokens) < NANOS_MAX


def charge_of_count(tokens: TokenCounts, session: Session, *flags: str) -> Charge:
    return Charge(tokens, session.cost_nanos(tokens), "counted", "", flags)


def usage_record(
    incoming: Incoming,
    session: Session,
    charge: Charge,
    outcome: str,
    *,
    edge_id: EdgeId,
    candidate: Candidate | None,
    first_write_s: float,
) -> UsageRecord:
    """`first_write_s`: monotonic time of a stream's first bytes, 0: there were none."""
    model = incoming.request.model
    return UsageRecord(
        session_id=incoming.session_id,
        account_id=session.ref.account_id,
        key_id=session.ref.key_id,
        edge_id=edge_id,
        endpoint=incoming.endpoint.name,
        model=model,
        price_version=session.admitted.price_version,
        ratio_ppm=session.admitted.ratio_ppm,
        tokens=charge.tokens,
        cost_nanos=charge.cost_nanos,
        held_nanos=session.held_nanos,
        stream=incoming.request.stream,
        outcome=outcome,
        usage_source=charge.source,
        channel_id=candidate.channel.id if candidate is not None else "",
        upstream_model=(candidate.model_rename if candidate is not None else None) or model,
        request_id=incoming.session_id,
        started_at_ms=incoming.started_at_ms,
        first_byte_ms=int((first_write_s - incoming.started_s) * 1000) if first_write_s else 0,
        duration_ms=int((time.monotonic() - incoming.started_s) * 1000),
        usage_json=charge.usage_json,
        flags=charge.flags,
    )


def audited(charge: Charge, own: TokenCounts) -> Charge:
    """The same charge, with what our own count says of the upstream's usage among its flags."""
    reported = charge.tokens
    found = [f"counted:{own.input_total}:{own.output_total}"]
    if reported.output_total + max(8, own.output_total // 20) < own.output_total:
        found.append("usage_below_count")
    # Hidden reasoning and audio have no text to count.
    if reported.output > own.output_total + max(32, own.output_total // 4):
        found.append("usage_above_count")
    if reported.input_total > own.input_total + max(64, own.input_total // 4):
        found.append("usage_input_above_count")
    return replace(charge, flags=(*charge.flags, *found))


def charge_headers(charge: Charge, session: Session) -> dict[str, str]:
    """The cost is this edge's own arithmetic; the balance is as of admission."""
    return {
        "x-meterway-cost-usd": nanos_to_usd(charge.cost_nanos),
        "x-meterway-balance-usd": nanos_to_usd(session.admitted.available_nanos),
    }
