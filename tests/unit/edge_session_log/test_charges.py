"""What a recovered session is charged."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.common.contracts.charging import Release, Settle
from services.common.money import PriceVector, TokenCounts, cost_nanos
from services.edge.session_log import EpochHold, Held, RecoveredSession, ending_of
from services.edge.session_log.charges import covered
from services.edge.session_log.recovery import SessionState
from tests.unit.edge_session_log.samples import held, settle


def recovered(
    facts: Held, *, counted: int = 0, uncounted: int = 0, close: Settle | None = None, damaged: bool = False
) -> RecoveredSession:
    state = SessionState.STREAMING if counted or uncounted else SessionState.HELD
    return RecoveredSession(
        ref=facts.ref,
        state=SessionState.CLOSED if close else state,
        holds=(EpochHold(3, facts.held_nanos),),
        next_seq=1_000_001,
        held=facts,
        settle=close,
        counted_tokens=counted,
        uncounted_bytes=uncounted,
        is_damaged=damaged,
    )


def charged(session: RecoveredSession) -> Settle:
    ending = ending_of(session)
    assert isinstance(ending, Settle)
    return ending


def test_a_session_that_delivered_nothing_is_released() -> None:
    for stream in (True, False):
        facts = held(1, stream=stream)
        assert ending_of(recovered(facts)) == Release(facts.ref.session_id, 7, 1_000_001, "edge_lost")


def test_a_close_is_charged_to_the_letter_also_above_the_hold() -> None:
    facts = held(1, held_nanos=1)
    close = settle(facts, output=10_000)
    assert close.record.cost_nanos > 1
    assert ending_of(recovered(facts, counted=5, close=close)) is close


def test_a_stream_is_charged_its_input_its_count_and_a_token_for_every_four_bytes_begun() -> None:
    call = charged(recovered(held(1), counted=100, uncounted=9))
    record = call.record
    assert record.tokens == TokenCounts(input=900, output=103)
    assert record.cost_nanos == (900 * 2_500_000 + 103 * 10_000_000) // 1_000
    assert (record.outcome, record.usage_source) == ("edge_lost", "log")
    assert record.flags == ("edge_lost", "log_output_estimated")
    assert call.seq == 1_000_001


def test_an_input_bound_by_bytes_is_charged_at_four_bytes_a_token_and_flagged() -> None:
    record = charged(recovered(held(1, input_tokens=901, input_exact=False), counted=1)).record
    assert record.tokens == TokenCounts(input=226, output=1)
    assert record.flags == ("edge_lost", "log_input_estimated")


def test_what_was_not_whole_is_flagged_on_the_charge() -> None:
    assert "log_damaged" in charged(recovered(held(1), counted=1, damaged=True)).record.flags


def test_an_estimate_above_the_hold_is_cut_in_tokens_so_that_the_price_still_fits() -> None:
    facts = held(1, held_nanos=900 * 2_500 + 10 * 10_000 + 9_999)
    record = charged(recovered(facts, counted=11)).record
    assert record.tokens == TokenCounts(input=900, output=10)
    assert record.cost_nanos == 900 * 2_500 + 10 * 10_000
    assert "log_cut_to_hold" in record.flags


PRICES = st.builds(PriceVector, input=st.integers(0, 10**8), output=st.integers(0, 10**9))


@given(st.integers(0, 10**7), st.integers(0, 10**7), PRICES, st.integers(0, 10**7), st.integers(0, 2**53 - 1))
def test_an_estimate_never_costs_more_than_the_hold_and_never_less_than_it_covers(
    input_tokens: int, output_tokens: int, price: PriceVector, ratio_ppm: int, held_nanos: int
) -> None:
    wanted = TokenCounts(input=input_tokens, output=output_tokens)
    tokens = covered(wanted, price, ratio_ppm, held_nanos)
    assert cost_nanos(tokens, price, ratio_ppm) <= held_nanos
    assert tokens.input <= input_tokens
    assert tokens.output <= output_tokens
    if tokens.output < output_tokens:
        one_more = TokenCounts(input=tokens.input, output=tokens.output + 1)
        assert cost_nanos(one_more, price, ratio_ppm) > held_nanos
    if tokens.input < input_tokens:
        assert cost_nanos(TokenCounts(input=tokens.input + 1), price, ratio_ppm) > held_nanos
