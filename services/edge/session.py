"""The arithmetic of one session's grant: what may be delivered, when to count, when to extend. Pure.

Bytes bound tokens, so most of a stream needs no tokenizer: `upper_tokens` is the exact count of
what was counted so far plus the UTF-8 bytes since (`TextTally`). A count replaces bytes by tokens:
the meter counts up to a boundary that what follows can't change; the rest is counted again later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from services.common.contracts.charging import Admitted, Counted, Extend, Extended, SessionRef
from services.common.money import NANOS_MAX, TokenCounts, cost_nanos
from services.edge.session_log import LoggedSession
from services.edge.streams.texts import TextKey, TextTally

SLICE_TOKENS: Final = 2_048
AHEAD: Final = 0.75
"""Part of a grant after which the next slice is asked for."""
UNCOUNTED_BYTES_MAX: Final = 32 * 1024
"""Uncounted text kept for one stream; more is counted whatever the grant."""
TAIL_BYTES: Final = 64
"""What a count usually leaves uncounted: no reason to count again."""
BYTES_PER_TOKEN: Final = 4
"""For checkpoints only: text that was not counted yet is charged as ceil(bytes / 4)."""
BYTES_PER_TOKEN_SUSPICIOUS: Final = 6


class Session:
    """An admitted session. Times are seconds on a clock that runs on while the machine is suspended.

    `tally` is the text that was read and not counted yet; whoever reads adds to it, then asks here.
    `logged`: the session in the edge's log; None: nothing is sent upstream yet.
    """

    __slots__ = (
        "admitted",
        "bound_tokens",
        "counted_tokens",
        "ended",
        "final",
        "granted_tokens",
        "held_nanos",
        "lease_ends_s",
        "lease_half_s",
        "logged",
        "ref",
        "seq",
        "tally",
        "text_bytes",
    )

    def __init__(self, admitted: Admitted, sent_at_s: float, tally: TextTally) -> None:
        self.admitted = admitted
        self.tally = tally
        self.ref: SessionRef = admitted.ref
        self.seq = admitted.seq
        self.held_nanos = admitted.held_nanos
        self.granted_tokens = admitted.granted_output_tokens
        self.bound_tokens = admitted.output_tokens_bound
        self.final = admitted.final or self.granted_tokens >= self.bound_tokens
        self.ended = ""
        self.logged: LoggedSession | None = None
        self.counted_tokens = 0
        self.text_bytes = 0
        self._renew_lease(admitted.lease_ms, sent_at_s)

    def _renew_lease(self, lease_ms: int, sent_at_s: float) -> None:
        self.lease_ends_s = sent_at_s + lease_ms / 1000
        self.lease_half_s = sent_at_s + lease_ms / 2000

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq

    # --- text and counts ----------------------------------------------------------------------

    @property
    def upper_tokens(self) -> int:
        """Never less than the tokens in all text that was read."""
        return self.counted_tokens + self.tally.uncounted_bytes

    @property
    def is_within_grant(self) -> bool:
        return self.counted_tokens + self.tally.uncounted_bytes <= self.granted_tokens

    def could_exceed_grant(self, event_bytes: int) -> bool:
        """Whether an event of `event_bytes`, not read yet, might not fit (its text is no longer than it)."""
        return self.counted_tokens + self.tally.uncounted_bytes + event_bytes > self.granted_tokens

    @property
    def needs_attention(self) -> bool:
        """Whether a count or a slice may be due: cheap, asked after each read."""
        uncounted = self.tally.uncounted_bytes
        if uncounted > UNCOUNTED_BYTES_MAX:
            return True
        return not self.final and self.counted_tokens + uncounted >= AHEAD * self.granted_tokens

    @property
    def count_is_due(self) -> bool:
        """Whether to count ahead of need: tokens are fewer than bytes, so a count may save a slice.

        A final grant is counted only when it is used up: then each count wins the most.
        """
        uncounted = self.tally.uncounted_bytes
        return uncounted > UNCOUNTED_BYTES_MAX or (self.slice_is_due and uncounted > TAIL_BYTES)

    def note_delivery(self, *, without_bytes: int = 0) -> None:
        """Before each write: after it the client has all text that was read, but the last `without_bytes`."""
        if self.logged is not None:
            self.logged.progress(self.counted_tokens, self.tally.uncounted_bytes - without_bytes)

    def apply_count(self, keys: Sequence[TextKey], counted: Counted) -> None:
        """Move what was counted from bytes to tokens. `keys`: whose texts were sent, in that order."""
        for key, tokens, chars in zip(keys, counted.tokens, counted.consumed_chars, strict=False):
            self.counted_tokens += tokens
            self.tally.consume(key, chars)

    # --- grant and lease ----------------------------------------------------------------------

    def lease_is_over(self, now_s: float) -> bool:
        return now_s >= self.lease_ends_s

    def renewal_is_due(self, now_s: float) -> bool:
        return now_s >= self.lease_half_s and not self.ended

    @property
    def slice_is_due(self) -> bool:
        return not self.final and self.upper_tokens >= AHEAD * self.granted_tokens

    def extend_call(self) -> Extend:
        """The next `Extend`: another slice when one is due, else a longer lease only."""
        wanted = self.granted_tokens
        if self.slice_is_due:
            wanted = min(self.bound_tokens, max(self.granted_tokens, self.upper_tokens) + SLICE_TOKENS)
        used = self.checkpoint_tokens
        return Extend(
            ref=self.ref,
            seq=self.next_seq(),
            want_output_tokens=wanted,
            used_output_tokens=used,
            used_nanos=self._checkpoint_nanos(used),
        )

    def apply_extended(self, extended: Extended, sent_at_s: float) -> None:
        if extended.ended:
            # What is held already may still be delivered, but there will be no more.
            self.ended = extended.ended
            self.final = True
            return
        self.held_nanos = max(self.held_nanos, extended.held_nanos)
        self.granted_tokens = max(self.granted_tokens, extended.granted_output_tokens)
        self.final = extended.final or self.granted_tokens >= self.bound_tokens
        self._renew_lease(extended.lease_ms, sent_at_s)

    @property
    def checkpoint_tokens(self) -> int:
        uncounted = -(-self.tally.uncounted_bytes // BYTES_PER_TOKEN)
        return min(self.counted_tokens + uncounted, self.granted_tokens)

    def _checkpoint_nanos(self, output_tokens: int) -> int:
        """What the session costs so far, should this edge never be heard of again; never above the hold."""
        admitted = self.admitted
        input_tokens = admitted.input_tokens
        if not admitted.input_exact:
            input_tokens = -(-input_tokens // BYTES_PER_TOKEN)
        tokens = TokenCounts(input=input_tokens, output=output_tokens)
        return min(self.held_nanos, cost_nanos(tokens, admitted.price, admitted.ratio_ppm))

    def cost_nanos(self, tokens: TokenCounts) -> int:
        """What `tokens` cost at the admitted price. Above what Redis can hold only for absurd counts."""
        return min(NANOS_MAX, cost_nanos(tokens, self.admitted.price, self.admitted.ratio_ppm))

    # --- the upstream's usage -----------------------------------------------------------------

    def is_suspicious(self, tokens: TokenCounts) -> bool:
        """Usage that is charged, but worth a look: less than was read, or more than could be."""
        output = tokens.output_total
        admitted = self.admitted
        return (
            output < self.counted_tokens
            or output * BYTES_PER_TOKEN_SUSPICIOUS < self.text_bytes
            or output > max(self.bound_tokens, self.upper_tokens)
            or (admitted.input_exact and tokens.input_total > 2 * admitted.input_tokens + 64)
            or (tokens.input_total == 0 and admitted.input_tokens > 0)
        )


def texts_before(
    before: Mapping[TextKey, str], keys: Sequence[TextKey], counted: Counted
) -> dict[TextKey, str]:
    """`before` without what `counted` consumed of it."""
    rest = dict(before)
    for key, chars in zip(keys, counted.consumed_chars, strict=False):
        rest[key] = rest[key][chars:]
    return {key: text for key, text in rest.items() if text}
