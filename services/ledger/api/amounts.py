"""Amounts of money in requests: decimal strings or JSON numbers, never through a float. Pure."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Final

from services.common.errors import BadRequest
from services.common.money import NANOS_MAX, usd_to_micros, usd_to_nanos

_DIGITS_MAX: Final = 27


def nanos(amount: Decimal, field: str) -> int:
    """Nanodollars of a USD amount from 0 to what Redis can count. Raises BadRequest."""
    value = _scaled(amount, field, to_int=usd_to_nanos, what="a USD amount with at most nine decimals")
    if not 0 <= value <= NANOS_MAX:
        raise BadRequest(f"{field}: from 0 to 9,007,199 USD.", param=field)
    return value


def signed_nanos(amount: Decimal, field: str) -> int:
    """As `nanos`, below 0 too."""
    value = _scaled(amount, field, to_int=usd_to_nanos, what="a USD amount with at most nine decimals")
    if abs(value) > NANOS_MAX:
        raise BadRequest(f"{field}: from -9,007,199 to 9,007,199 USD.", param=field)
    return value


def optional_nanos(amount: Decimal | None, field: str) -> int | None:
    return None if amount is None else nanos(amount, field)


def micros(amount: Decimal, field: str) -> int:
    """Micro-USD of a price per 1M tokens. Raises BadRequest."""
    return _scaled(amount, field, to_int=usd_to_micros, what="a USD price with at most six decimals")


def optional_micros(amount: Decimal | None, field: str) -> int | None:
    return None if amount is None else micros(amount, field)


def _scaled(amount: Decimal, field: str, *, to_int: Callable[[str], int], what: str) -> int:
    parts = amount.as_tuple()
    # Longer ones would be rounded by the decimal context; such exponents mean no amount.
    fits = isinstance(parts.exponent, int) and len(parts.digits) <= _DIGITS_MAX and abs(parts.exponent) <= 40
    try:
        value = to_int(str(amount)) if fits else -1
    except ValueError:
        fits = False
    if not fits:
        raise BadRequest(f"{field}: {what} is needed.", param=field)
    return value
