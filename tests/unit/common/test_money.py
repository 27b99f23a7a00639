"""Money is exact: nothing is lost or invented by rounding."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import money
from services.common.money import PriceVector, TokenCounts

counts = st.builds(TokenCounts, **{name: st.integers(0, 2_000_000) for name in money.TOKEN_CLASSES})
prices = st.builds(PriceVector, **{name: st.integers(0, 600_000_000) for name in money.TOKEN_CLASSES})
ratios = st.integers(0, 10_000_000)


@given(counts, prices, ratios)
def test_a_session_is_rounded_up_once_to_a_nano(
    tokens: TokenCounts, price: PriceVector, ratio_ppm: int
) -> None:
    exact_nanos = (
        Fraction(sum(getattr(tokens, name) * getattr(price, name) for name in money.TOKEN_CLASSES), 1000)
        * ratio_ppm
        / 1_000_000
    )
    cost = money.cost_nanos(tokens, price, ratio_ppm)
    assert exact_nanos <= cost < exact_nanos + 1


def test_the_list_price_of_a_million_tokens_is_the_price() -> None:
    price = PriceVector(input=2_500_000, output=10_000_000)
    tokens = TokenCounts(input=1_000_000, output=1_000_000)
    assert money.cost_nanos(tokens, price, money.RATIO_PPM_ONE) == money.usd_to_nanos("12.50")


@given(counts, prices, ratios)
def test_a_hold_at_the_dearest_class_is_never_below_the_charge(
    tokens: TokenCounts, price: PriceVector, ratio_ppm: int
) -> None:
    input_picos = money.effective_price_picos(price.dearest_input, ratio_ppm)
    output_picos = money.effective_price_picos(price.dearest_output, ratio_ppm)
    hold = money.nanos_for_tokens(tokens.input_total, input_picos) + money.nanos_for_tokens(
        tokens.output_total, output_picos
    )
    assert hold >= money.cost_nanos(tokens, price, ratio_ppm)


@given(st.integers(0, money.NANOS_MAX), st.integers(1, 6_000_000_000))
def test_tokens_that_nanos_buy_never_cost_more_than_the_nanos(nanos: int, picos: int) -> None:
    tokens = money.tokens_for_nanos(nanos, picos)
    assert tokens is not None
    assert money.nanos_for_tokens(tokens, picos) <= nanos < money.nanos_for_tokens(tokens + 1, picos) + 1


def test_a_free_class_buys_any_number_of_tokens() -> None:
    assert money.tokens_for_nanos(0, 0) is None


@given(st.integers(-(10**17), 10**17))
def test_dollars_read_back_as_the_same_nanos(nanos: int) -> None:
    assert money.usd_to_nanos(money.nanos_to_usd(nanos)) == nanos


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "NaN",
        "Infinity",
        "0.0000000001",
        "1e30",
        "1,5",
        "1e999999999",
        "1e-999999999",
        "9" * 5_000,
        "1." + "0" * 40 + "1",
    ],
)
def test_an_amount_that_is_no_nanodollar_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="nine decimals"):
        money.usd_to_nanos(text)


@given(st.integers(0, 10**15))
def test_quota_units_floor_balances_and_ceil_charges(nanos: int) -> None:
    assert money.balance_in_quota_units(nanos) * 2_000 <= nanos <= money.charge_in_quota_units(nanos) * 2_000


def test_half_a_million_quota_units_are_a_dollar() -> None:
    assert money.balance_in_quota_units(money.NANOS_PER_USD) == 500_000
