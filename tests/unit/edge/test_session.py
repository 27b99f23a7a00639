"""The grant's arithmetic."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from services.common.contracts.charging import Admitted, Counted, Extended, SessionRef
from services.common.money import NANOS_MAX, PriceVector, TokenCounts
from services.edge.session import SLICE_TOKENS, Session, texts_before
from services.edge.streams.texts import TextKey, TextTally

KEY = TextKey(0, "content")
PRICE = PriceVector(input=1_000_000, output=2_000_000)


def session(
    granted: int = 100, bound: int = 1_000, *, final: bool = False, lease_ms: int = 60_000
) -> Session:
    admitted = Admitted(
        ref=SessionRef("session", "account", "key", 7, 1),
        seq=1,
        held_nanos=1_000_000,
        granted_output_tokens=granted,
        output_tokens_bound=bound,
        final=final,
        lease_ms=lease_ms,
        input_tokens=40,
        input_exact=True,
        price=PRICE,
        price_version=1,
        ratio_ppm=1_000_000,
        available_nanos=5_000_000,
    )
    return Session(admitted, 1_000.0, TextTally())


def words(text: str) -> int:
    """A tokenizer with a boundary before each blank, as the real ones have."""
    return len(re.findall(r" ?[^ ]+| ", text))


def count(texts: tuple[str, ...], *, final: bool) -> Counted:
    tokens, consumed = [], []
    for text in texts:
        chars = len(text) if final else max(0, text.rfind(" "))
        tokens.append(words(text[:chars]))
        consumed.append(chars)
    return Counted(tuple(tokens), tuple(consumed))


def test_bytes_bound_tokens_until_they_are_counted() -> None:
    running = session()
    running.tally.add(KEY, "naïve words here")
    assert running.upper_tokens == 17
    assert running.is_within_grant
    running.apply_count((KEY,), count(("naïve words here",), final=False))
    assert (running.counted_tokens, running.tally.uncounted_bytes) == (2, 5)


@given(
    pieces=st.lists(st.text("ab é中 ", min_size=1, max_size=12), min_size=1, max_size=60),
    counts=st.sets(st.integers(0, 60)),
)
def test_counts_at_any_moment_add_up_to_the_count_of_the_whole_text(
    pieces: list[str], counts: set[int]
) -> None:
    running = session()
    asked: tuple[str, ...] | None = None
    for place, piece in enumerate(pieces):
        running.tally.add(KEY, piece)
        whole = "".join(pieces[: place + 1])
        assert running.upper_tokens >= words(whole)
        if asked is not None:
            # The answer comes after more text: it holds for the beginning only.
            running.apply_count((KEY,), count(asked, final=False))
            asked = None
            assert running.upper_tokens >= words(whole)
        elif place in counts:
            asked = tuple(running.tally.texts().values())
    rest = tuple(running.tally.texts().values())
    assert running.counted_tokens + sum(words(text) for text in rest) == words("".join(pieces))


def test_a_slice_is_asked_for_at_three_quarters_of_the_grant_and_not_above_the_bound() -> None:
    running = session(granted=100, bound=1_000)
    running.tally.add(KEY, "x" * 74)
    assert not running.slice_is_due
    assert running.extend_call().want_output_tokens == 100
    running.tally.add(KEY, "x")
    assert running.slice_is_due
    assert running.extend_call().want_output_tokens == 1_000
    assert session(granted=100, bound=10_000).extend_call().want_output_tokens == 100
    wide = session(granted=100, bound=10_000)
    wide.tally.add(KEY, "x" * 90)
    assert wide.extend_call().want_output_tokens == 100 + SLICE_TOKENS


def test_a_final_grant_is_counted_only_when_it_is_used_up() -> None:
    running = session(final=True)
    running.tally.add(KEY, "x" * 99)
    assert not running.count_is_due
    assert not running.slice_is_due
    assert not running.needs_attention
    running = session()
    running.tally.add(KEY, "x" * 80)
    assert running.needs_attention
    assert running.count_is_due


def test_uncounted_text_is_bounded_whatever_the_grant() -> None:
    running = session(granted=10**9, bound=10**9)
    running.tally.add(KEY, "x" * 32 * 1024)
    assert not running.count_is_due
    running.tally.add(KEY, "x")
    assert running.count_is_due


def test_a_lease_counts_from_when_it_was_asked_for() -> None:
    running = session(lease_ms=1_000)
    assert not running.renewal_is_due(1_000.4)
    assert running.renewal_is_due(1_000.5)
    assert not running.lease_is_over(1_000.99)
    assert running.lease_is_over(1_001.0)
    running.apply_extended(Extended(2, 2_000_000, 300, False, 1_000), 1_000.5)
    assert not running.lease_is_over(1_001.4)
    assert (running.granted_tokens, running.held_nanos) == (300, 2_000_000)


def test_an_ended_session_keeps_its_grant_and_gets_no_more() -> None:
    running = session(lease_ms=1_000)
    running.apply_extended(Extended(2, 0, 0, True, 0, "stale_epoch"), 1_000.5)
    assert (running.granted_tokens, running.held_nanos, running.final) == (100, 1_000_000, True)
    assert running.lease_is_over(1_001.0)
    assert not running.renewal_is_due(1_000.9)


def test_every_call_has_its_own_seq() -> None:
    running = session()
    assert [running.extend_call().seq, running.extend_call().seq, running.next_seq()] == [2, 3, 4]


@given(text=st.text(max_size=2_000), granted=st.integers(0, 500))
def test_a_checkpoint_never_exceeds_the_grant_or_the_hold(text: str, granted: int) -> None:
    running = session(granted=granted)
    running.tally.add(KEY, text.encode("utf-8", "replace").decode())
    call = running.extend_call()
    assert call.used_output_tokens <= granted
    assert 0 < call.used_nanos <= running.held_nanos


def test_usage_that_can_not_be_is_suspicious() -> None:
    running = session(bound=1_000)
    running.text_bytes = 400
    assert not running.is_suspicious(TokenCounts(input=40, output=100))
    assert running.is_suspicious(TokenCounts(input=40, output=10))
    assert running.is_suspicious(TokenCounts(input=40, output=1_001))
    assert running.is_suspicious(TokenCounts(input=500, output=100))
    assert running.is_suspicious(TokenCounts(output=100))
    running.counted_tokens = 101
    assert running.is_suspicious(TokenCounts(input=40, output=100))


def test_no_cost_exceeds_what_the_stores_can_hold() -> None:
    assert session().cost_nanos(TokenCounts(output=10**18)) == NANOS_MAX


def test_what_came_before_an_event_loses_what_was_counted_of_it() -> None:
    other = TextKey(1, "content")
    before = {KEY: "one two three", other: "four"}
    assert texts_before(before, (KEY, other), Counted((2, 1), (7, 4))) == {KEY: " three"}
