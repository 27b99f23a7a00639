"""How much to lend: pure."""

from __future__ import annotations

from services.common.contracts.lending import LoanRequest
from services.common.money import LOAN_NANOS_MAX, NANOS_MAX, NANOS_PER_USD

LOAN_NANOS_MIN = NANOS_PER_USD
SMALL_BALANCE_NANOS = 2 * NANOS_PER_USD


def loan_nanos(
    request: LoanRequest,
    *,
    available_nanos: int,
    unapplied_nanos: int,
    outstanding_nanos: int,
    lent_nanos: int,
) -> int:
    """The size of a new loan, 0 for none.

    Nothing when the loans that Redis has not applied yet cover what is missing. A small balance is
    lent whole. Neither the outstanding loan nor the epoch's sum may outgrow what Redis counts exactly.
    """
    missing = request.wanted_nanos - unapplied_nanos
    if missing <= 0:
        return 0
    if available_nanos <= SMALL_BALANCE_NANOS:
        wanted = available_nanos
    else:
        wanted = max(LOAN_NANOS_MIN, request.spend_minute_nanos, 2 * request.largest_hold_nanos, missing)
    room = min(LOAN_NANOS_MAX - outstanding_nanos, NANOS_MAX - lent_nanos)
    return max(0, min(wanted, available_nanos, room))
