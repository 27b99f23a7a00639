"""What a recovered session is charged. Pure.

CLOSE                      exactly the call in it
stream with output         input + exact count + ceil(bytes since / 4), never above the hold
stream without output      nothing was delivered: released
plain call without CLOSE   its CLOSE precedes its first byte, so nothing was delivered: released
"""

from __future__ import annotations

from typing import Final

from services.common.contracts.charging import Release, Settle, UsageRecord
from services.common.money import (
    PICOS_PER_NANO,
    RATIO_PPM_ONE,
    PriceVector,
    TokenCounts,
    cost_nanos,
)
from services.edge.session_log.recovery import RecoveredSession, SessionState

BYTES_PER_TOKEN: Final = 4
EDGE_LOST: Final = "edge_lost"
USAGE_SOURCE: Final = "log"
OUTPUT_ESTIMATED: Final = "log_output_estimated"
INPUT_ESTIMATED: Final = "log_input_estimated"
CUT_TO_HOLD: Final = "log_cut_to_hold"
DAMAGED: Final = "log_damaged"


def ending_of(session: RecoveredSession) -> Settle | Release:
    """The call that ends the session: the same however often the log is read. `usage_source` is `log`
    where the log is all that is known; the flags say what was estimated."""
    if session.settle is not None:
        return session.settle
    held = session.held
    if held is None or not held.stream or session.state is not SessionState.STREAMING:
        return Release(
            session_id=session.ref.session_id,
            bucket=session.ref.bucket,
            seq=session.next_seq,
            reason=EDGE_LOST,
        )
    flags = [EDGE_LOST]
    input_tokens = held.input_tokens
    if not held.input_exact:
        # What is known is the bound by bytes.
        input_tokens = -(-input_tokens // BYTES_PER_TOKEN)
        flags.append(INPUT_ESTIMATED)
    if session.uncounted_bytes:
        flags.append(OUTPUT_ESTIMATED)
    wanted = TokenCounts(
        input=input_tokens,
        output=session.counted_tokens + -(-session.uncounted_bytes // BYTES_PER_TOKEN),
    )
    tokens = covered(wanted, held.price, held.ratio_ppm, session.held_nanos)
    if tokens != wanted:
        flags.append(CUT_TO_HOLD)
    if session.is_damaged:
        flags.append(DAMAGED)
    record = UsageRecord(
        session_id=session.ref.session_id,
        account_id=session.ref.account_id,
        key_id=session.ref.key_id,
        edge_id=held.edge_id,
        endpoint=held.endpoint,
        model=held.model,
        price_version=held.price_version,
        ratio_ppm=held.ratio_ppm,
        tokens=tokens,
        cost_nanos=cost_nanos(tokens, held.price, held.ratio_ppm),
        held_nanos=session.held_nanos,
        stream=True,
        outcome=EDGE_LOST,
        usage_source=USAGE_SOURCE,
        upstream_model=held.model,
        request_id=session.ref.session_id,
        started_at_ms=held.started_at_ms,
        flags=tuple(flags),
    )
    return Settle(ref=session.ref, seq=session.next_seq, record=record)


def covered(tokens: TokenCounts, price: PriceVector, ratio_ppm: int, held_nanos: int) -> TokenCounts:
    """As many input and output tokens as the hold pays for: tokens, not the amount, are cut, so that
    the cost is still what the tokens cost."""
    if cost_nanos(tokens, price, ratio_ppm) <= held_nanos:
        return tokens
    rest_picos = held_nanos * RATIO_PPM_ONE * PICOS_PER_NANO // ratio_ppm
    input_tokens = min(tokens.input, rest_picos // price.input) if price.input else tokens.input
    rest_picos -= input_tokens * price.input
    output_tokens = min(tokens.output, rest_picos // price.output) if price.output else tokens.output
    return TokenCounts(input=input_tokens, output=output_tokens)
