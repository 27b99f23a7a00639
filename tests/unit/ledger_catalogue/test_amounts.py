from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import BadRequest
from services.common.money import NANOS_MAX, nanos_to_usd
from services.ledger.api.amounts import micros, nanos, signed_nanos


@given(st.integers(min_value=-NANOS_MAX, max_value=NANOS_MAX))
def test_an_amount_survives_json_as_a_number_and_as_a_string(value: int) -> None:
    text = nanos_to_usd(value)
    for body in (text, f'"{text}"'):
        amount = msgspec.json.decode(body, type=Decimal)
        assert signed_nanos(amount, "usd") == value


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "sNaN",
        "1e-10",
        "0.0000000001",
        "1e999999",
        "1e30",
        "-0.000000001",
        "9007200",
    ],
)
def test_what_is_no_amount_is_refused_with_its_field(text: str) -> None:
    with pytest.raises(BadRequest) as refused:
        nanos(Decimal(text), "usd")
    assert refused.value.param == "usd"


def test_digits_past_the_precision_are_not_rounded_away() -> None:
    with pytest.raises(BadRequest):
        nanos(Decimal("1." + "0" * 40 + "1"), "usd")


def test_prices_have_six_decimals() -> None:
    assert micros(Decimal("0.000001"), "input") == 1
    with pytest.raises(BadRequest):
        micros(Decimal("0.0000001"), "input")
