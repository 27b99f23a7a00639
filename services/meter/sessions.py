"""How much a session must hold, and what its edge is told. Pure: bounds and prices in, asks and replies out.

The input is held at the dearest input class, the output at the dearest output class: a hold is
never below the session's cost. How much of the output is held depends on the money at hand, which
only the script sees: it gets the bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Final

import msgspec

from services.common.contracts.catalogue import Model, PriceVersion
from services.common.contracts.charging import (
    Admitted,
    Open,
    RateLimitState,
    SessionRef,
    UsageRecord,
)
from services.common.contracts.lending import KeySnapshot
from services.common.ids import AccountId, EdgeId, KeyId, SessionId, uuid7_ms
from services.common.money import (
    NANOS_MAX,
    TokenCounts,
    effective_price_picos,
    nanos_for_tokens,
)
from services.meter.quota_answers import Due, Held

CAPPED_TOKENS_MIN: Final = 1_024
"""The least output of a request without an explicit limit, per choice."""
STREAM_TOKENS_MIN: Final = 16
"""The least part of a slice that a stream begins with."""
COUNT_NEXT_REQUESTS: Final = 512
"""While the money covers fewer such requests than this, the next one had better bring its body."""
TOKENS_MAX: Final = 2**40
BYTES_PER_TOKEN: Final = 4
"""For the tokens-per-minute window only, which is no money."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputTokens:
    """`hold_tokens`: at least the truth. `tokens`: to charge by, should upstream report nothing."""

    tokens: int
    hold_tokens: int
    exact: bool


class OpenRecord(msgspec.Struct, frozen=True, array_like=True):
    """Kept with a session: what repeats its `Admitted`, and what settles it should its edge be lost."""

    edge_id: EdgeId
    endpoint: str
    model: str
    price_version: int
    ratio_ppm: int
    input_tokens: int
    input_exact: bool
    stream: bool
    choices: int
    output_bound_tokens: int
    is_capped: bool
    input_bound_nanos: int


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldAsk:
    """The arguments of `open` that come from the request and its price; see open.lua."""

    mode: str
    input_bound_nanos: int
    input_exact_nanos: int
    out_picos: int
    output_bound_tokens: int
    tokens_min: int
    slice_tokens: int
    choices: int
    rate_tokens: int
    record: bytes


_record_encoder = msgspec.json.Encoder()
_record_decoder = msgspec.json.Decoder(OpenRecord)


def output_bound_tokens(call: Open, model: Model, *, unknown_tokens: int) -> int:
    """The most output that this request can have, over all choices."""
    if model.kind in ("embedding", "moderation"):
        return 0
    if call.output_tokens_max is not None:
        return min(TOKENS_MAX, call.output_tokens_max * call.choices)
    return (_model_output_max(model) or unknown_tokens) * call.choices


def _model_output_max(model: Model) -> int | None:
    known = [limit for limit in (model.output_tokens_max, model.context_tokens) if limit is not None]
    return min(known) if known else None


def plan_hold(
    call: Open,
    snapshot: KeySnapshot,
    model: Model,
    version: PriceVersion,
    *,
    bound: InputTokens,
    counted: InputTokens | None,
    slice_tokens: int,
    unknown_tokens: int,
) -> HoldAsk:
    """`bound`: the input by its size alone. `counted`: by its text, when that was done already."""
    ratio = snapshot.ratio_ppm
    in_picos = effective_price_picos(version.price.dearest_input, ratio)
    out_picos = effective_price_picos(version.price.dearest_output, ratio)
    out_tokens = output_bound_tokens(call, model, unknown_tokens=unknown_tokens)
    is_explicit = call.output_tokens_max is not None or out_tokens == 0
    if call.stream and not model.hidden_reasoning and out_tokens > 0:
        mode, tokens_min = "stream", min(out_tokens, STREAM_TOKENS_MIN)
    elif is_explicit:
        mode, tokens_min = "explicit", out_tokens
    else:
        mode, tokens_min = "capped", min(out_tokens, CAPPED_TOKENS_MIN * call.choices)
    known = counted or bound
    rate_input = counted.tokens if counted else call.facts.body_bytes // BYTES_PER_TOKEN
    bound_nanos = min(NANOS_MAX, nanos_for_tokens(bound.hold_tokens, in_picos))
    record = OpenRecord(
        edge_id=call.edge_id,
        endpoint=call.endpoint,
        model=model.id,
        price_version=version.version,
        ratio_ppm=ratio,
        input_tokens=known.tokens,
        input_exact=known.exact,
        stream=call.stream,
        choices=call.choices,
        output_bound_tokens=out_tokens,
        is_capped=not is_explicit and (mode == "capped"),
        input_bound_nanos=bound_nanos,
    )
    return HoldAsk(
        mode=mode,
        input_bound_nanos=bound_nanos,
        input_exact_nanos=(
            min(NANOS_MAX, nanos_for_tokens(counted.hold_tokens, in_picos)) if counted is not None else -1
        ),
        out_picos=out_picos,
        output_bound_tokens=out_tokens,
        tokens_min=tokens_min,
        slice_tokens=slice_tokens,
        choices=call.choices,
        rate_tokens=rate_input + (out_tokens if is_explicit else 0),
        record=_record_encoder.encode(record),
    )


def admitted(
    call: Open, snapshot: KeySnapshot, model: Model, held: Held, record: bytes, *, lease_ms: int
) -> Admitted | None:
    """The reply to an admitted session; None when its price version is not in the price list (any more)."""
    opened = _record_decoder.decode(record)
    version = next((known for known in model.prices if known.version == opened.price_version), None)
    if version is None:
        return None
    upstream_max = None
    if opened.is_capped:
        per_choice = held.granted_tokens // opened.choices
        model_max = _model_output_max(model)
        upstream_max = per_choice if model_max is None or per_choice < model_max else None
    with_bound_nanos = opened.input_bound_nanos + held.held_nanos
    return Admitted(
        ref=SessionRef(call.session_id, snapshot.account_id, snapshot.key_id, snapshot.bucket, held.epoch),
        seq=call.seq,
        held_nanos=held.held_nanos,
        granted_output_tokens=held.granted_tokens,
        output_tokens_bound=opened.output_bound_tokens,
        final=held.final,
        lease_ms=lease_ms,
        input_tokens=opened.input_tokens,
        input_exact=opened.input_exact,
        price=version.price,
        price_version=version.version,
        ratio_ppm=opened.ratio_ppm,
        available_nanos=held.available_nanos,
        hidden_reasoning=model.hidden_reasoning,
        upstream_output_tokens_max=upstream_max,
        count_next=(
            opened.input_bound_nanos > 0 and held.available_nanos < COUNT_NEXT_REQUESTS * with_bound_nanos
        ),
        rate_limits=rate_limit_state(snapshot, held.requests, held.tokens),
    )


def rate_limit_state(
    snapshot: KeySnapshot, requests: int | None, tokens: int | None
) -> RateLimitState | None:
    """The key's windows; None when it has no limit by minute."""
    limits = snapshot.limits
    if requests is None and tokens is None:
        return None
    state: dict[str, int] = {}
    for name, limit, used in (
        ("requests", limits.requests_per_minute, requests),
        ("tokens", limits.tokens_per_minute, tokens),
    ):
        if limit is not None and used is not None:
            state[f"{name}_limit"] = limit
            state[f"{name}_remaining"] = max(0, limit - used)
            state[f"{name}_reset_ms"] = 60_000 * min(used, limit) // max(1, limit)
    return RateLimitState(**state)


def address_is_allowed(snapshot: KeySnapshot, client_address: str | None) -> bool:
    addresses = snapshot.limits.addresses
    return addresses is None or (client_address is not None and _is_in(client_address, addresses))


@lru_cache(maxsize=4_096)
def _is_in(client_address: str, addresses: tuple[str, ...]) -> bool:
    try:
        client = ip_address(client_address)
        return any(client in ip_network(address, strict=False) for address in addresses)
    except ValueError:
        return False


def orphan_record(session_id: SessionId, due: Due) -> UsageRecord:
    """The usage of a session whose edge was not heard of again: its last checkpoint.

    The checkpoint's amount stands. Its tokens are those that edges price it with: an input that was
    not counted goes in at four bytes a token, not at its bound.
    """
    opened = _record_decoder.decode(due.record)
    input_tokens = opened.input_tokens if opened.input_exact else -(-opened.input_tokens // BYTES_PER_TOKEN)
    return UsageRecord(
        session_id=session_id,
        account_id=AccountId(due.account_id),
        key_id=KeyId(due.key_id),
        edge_id=opened.edge_id,
        endpoint=opened.endpoint,
        model=opened.model,
        price_version=opened.price_version,
        ratio_ppm=opened.ratio_ppm,
        tokens=TokenCounts(input=input_tokens, output=due.used_tokens),
        cost_nanos=min(due.used_nanos, due.held_nanos),
        held_nanos=due.held_nanos,
        stream=opened.stream,
        outcome="edge_lost",
        usage_source="checkpoint",
        started_at_ms=uuid7_ms(session_id),
        flags=("edge_lost",),
    )


def edge_of_record(record: bytes) -> EdgeId:
    return _record_decoder.decode(record).edge_id


def total_tokens(tokens: TokenCounts) -> int:
    return tokens.input_total + tokens.output_total
