from hypothesis import given
from hypothesis import strategies as st

from services.common.contracts.lending import LoanRequest
from services.common.ids import AccountId
from services.common.money import LOAN_NANOS_MAX, NANOS_MAX, NANOS_PER_USD
from services.ledger.loan_sizes import loan_nanos


def request(*, wanted: int, hold: int = 0, spend: int = 0) -> LoanRequest:
    return LoanRequest(
        account_id=AccountId("a"),
        epoch=1,
        applied_gseq=0,
        wanted_nanos=wanted,
        largest_hold_nanos=hold,
        spend_minute_nanos=spend,
    )


def size(
    asked: LoanRequest, *, available: int, unapplied: int = 0, outstanding: int = 0, lent: int = 0
) -> int:
    return loan_nanos(
        asked,
        available_nanos=available,
        unapplied_nanos=unapplied,
        outstanding_nanos=outstanding,
        lent_nanos=lent,
    )


def test_a_small_balance_is_lent_whole() -> None:
    assert size(request(wanted=5), available=2 * NANOS_PER_USD) == 2 * NANOS_PER_USD


def test_a_loan_is_at_least_a_dollar() -> None:
    assert size(request(wanted=5), available=50 * NANOS_PER_USD) == NANOS_PER_USD


def test_a_loan_covers_what_is_missing_a_minute_of_spend_and_two_of_the_largest_holds() -> None:
    rich = 10**15
    assert size(request(wanted=3 * NANOS_PER_USD), available=rich) == 3 * NANOS_PER_USD
    assert size(request(wanted=1, spend=7 * NANOS_PER_USD), available=rich) == 7 * NANOS_PER_USD
    assert size(request(wanted=1, hold=4 * NANOS_PER_USD), available=rich) == 8 * NANOS_PER_USD


def test_nothing_is_lent_while_loans_on_their_way_cover_what_is_missing() -> None:
    assert size(request(wanted=100), available=10**12, unapplied=100) == 0
    assert size(request(wanted=101), available=10**12, unapplied=100) == NANOS_PER_USD
    assert size(request(wanted=0), available=10**12) == 0


@given(st.integers(0, 2**53), st.integers(0, 2**53), st.integers(0, 2**53), st.integers(0, 2**53))
def test_a_loan_never_exceeds_the_balance_nor_what_redis_counts_exactly(
    wanted: int, available: int, outstanding: int, lent: int
) -> None:
    lent = max(lent, outstanding)
    nanos = size(request(wanted=wanted), available=available, outstanding=outstanding, lent=lent)
    assert 0 <= nanos <= available
    assert nanos == 0 or outstanding + nanos <= LOAN_NANOS_MAX
    assert nanos == 0 or lent + nanos <= NANOS_MAX
