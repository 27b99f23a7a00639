"""Money: integer nanodollars, priced from token counts. The only module that rounds.

A price is an integer of micro-USD per 1,000,000 tokens, which is the same number of
*picodollars per token*, so `tokens * price` is exact. All classes are added up, the account
group's ratio (parts per million) is applied, and the sum is rounded up once, to a nanodollar.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Final

import msgspec

NANOS_PER_USD: Final = 1_000_000_000
NANOS_PER_QUOTA_UNIT: Final = 2_000
"""500,000 quota units are $1."""
MICROS_PER_USD: Final = 1_000_000
PICOS_PER_NANO: Final = 1_000
RATIO_PPM_ONE: Final = 1_000_000
NANOS_MAX: Final = 2**53 - 1
"""Lua compares doubles: no amount in Redis may reach 2**53 nanodollars (about $9.0M)."""
LOAN_NANOS_MAX: Final = 4_000_000 * NANOS_PER_USD


class TokenCounts(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens of one session by class. The classes are disjoint: no token is in two of them.

    `input` is what was neither read from nor written to a prompt cache and is not audio;
    `output` is visible text without audio; `reasoning` is hidden output.
    """

    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    audio_input: int = 0
    output: int = 0
    reasoning: int = 0
    audio_output: int = 0

    @property
    def input_total(self) -> int:
        return self.input + self.cached_input + self.cache_write + self.audio_input

    @property
    def output_total(self) -> int:
        return self.output + self.reasoning + self.audio_output


class PriceVector(msgspec.Struct, frozen=True, omit_defaults=True):
    """Price of each token class in micro-USD per 1M tokens (= picodollars per token)."""

    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    audio_input: int = 0
    output: int = 0
    reasoning: int = 0
    audio_output: int = 0

    @property
    def dearest_input(self) -> int:
        return max(self.input, self.cached_input, self.cache_write, self.audio_input)

    @property
    def dearest_output(self) -> int:
        return max(self.output, self.reasoning, self.audio_output)


TOKEN_CLASSES: Final[tuple[str, ...]] = TokenCounts.__struct_fields__


def cost_nanos(tokens: TokenCounts, price: PriceVector, ratio_ppm: int) -> int:
    """What a session costs, in nanodollars, rounded up once."""
    picos = (
        tokens.input * price.input
        + tokens.cached_input * price.cached_input
        + tokens.cache_write * price.cache_write
        + tokens.audio_input * price.audio_input
        + tokens.output * price.output
        + tokens.reasoning * price.reasoning
        + tokens.audio_output * price.audio_output
    )
    return -(-picos * ratio_ppm // (RATIO_PPM_ONE * PICOS_PER_NANO))


def effective_price_picos(price: int, ratio_ppm: int) -> int:
    """One class's price after the group ratio, rounded up to a whole picodollar: an upper bound for holds."""
    return -(-price * ratio_ppm // RATIO_PPM_ONE)


def nanos_for_tokens(tokens: int, token_price_picos: int) -> int:
    """An upper bound of what `tokens` of one class cost, in nanodollars."""
    return -(-tokens * token_price_picos // PICOS_PER_NANO)


def tokens_for_nanos(nanos: int, token_price_picos: int) -> int | None:
    """How many tokens of one class `nanos` surely pays for; None: any number (the class is free)."""
    if token_price_picos <= 0:
        return None
    return max(0, nanos) * PICOS_PER_NANO // token_price_picos


def convert_ppm(amount: int, rate_ppm: int) -> int:
    """`amount` times a rate in parts per million, rounded down (a deposit never credits more than it is)."""
    return amount * rate_ppm // RATIO_PPM_ONE


def usd_to_nanos(text: str) -> int:
    """Nanodollars of a decimal USD amount such as `"1.25"`.

    Raises ValueError when it isn't a finite decimal or has more than nine decimals.
    """
    return _decimal_to_int(text, scale=9, what="a USD amount with at most nine decimals")


def usd_to_micros(text: str) -> int:
    """Micro-USD of a decimal USD amount (prices per 1M tokens). Raises ValueError like `usd_to_nanos`."""
    return _decimal_to_int(text, scale=6, what="a USD price with at most six decimals")


def _decimal_to_int(text: str, *, scale: int, what: str) -> int:
    try:
        value = Decimal(text.strip())
    except InvalidOperation as error:
        raise ValueError(f"{text[:40]!r} is not {what}") from error
    if not value:
        return 0
    # Within these bounds no operation below rounds, overflows or underflows.
    if not value.is_finite() or not -scale <= value.adjusted() <= 9 or len(value.as_tuple().digits) > 24:
        raise ValueError(f"{text[:40]!r} is not {what}")
    scaled = value.scaleb(scale)
    if scaled != scaled.to_integral_value():
        raise ValueError(f"{text[:40]!r} is not {what}")
    return int(scaled)


def nanos_to_usd(nanos: int) -> str:
    """Plain decimal USD, exact, without trailing zeros but with at least two decimals: `"1.25"`."""
    sign = "-" if nanos < 0 else ""
    whole, rest = divmod(abs(nanos), NANOS_PER_USD)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{decimals}"


def balance_in_quota_units(nanos: int) -> int:
    """A balance as quota units: shown floored."""
    return nanos // NANOS_PER_QUOTA_UNIT


def charge_in_quota_units(nanos: int) -> int:
    """A charge as quota units: shown ceiled."""
    return -(-nanos // NANOS_PER_QUOTA_UNIT)
