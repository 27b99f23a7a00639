"""What a refused caller reads."""

import pytest

from services.common import errors
from services.meter.counting import CountingOverloaded
from services.meter.quota_answers import No
from services.meter.refusals import error_of, refused


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("balance", "balance of this account"),
        ("key_quota", "quota of this API key"),
        ("budget_day", "daily budget"),
        ("budget_month", "monthly budget"),
    ],
)
def test_a_missing_amount_is_told_with_its_limit(cause: str, words: str) -> None:
    error = error_of(No(cause, (1_500_000_000, 250_000_000, 4_000_000_000)), "m")
    assert isinstance(error, errors.InsufficientQuota)
    assert words in error.message
    assert "1.50 USD are missing" in error.message
    assert "Running requests hold 0.25 USD." in error.message
    assert "hold" not in error_of(No(cause, (1, 0, 1)), "m").message


def test_a_shortfall_that_frozen_money_covers_is_a_503() -> None:
    error = error_of(No("balance", (100, 0, 0)), "m", frozen_nanos=100)
    assert (error.status, error.code) == (503, "balance_frozen")
    assert error.retry_after_ms
    assert error_of(No("balance", (100, 0, 0)), "m", frozen_nanos=99).status == 429
    assert error_of(No("key_quota", (100, 0, 0)), "m", frozen_nanos=100).status == 429


@pytest.mark.parametrize(
    ("no", "status", "code"),
    [
        (No("requests", (60, 1_500)), 429, "rate_limit_exceeded"),
        (No("tokens", (60, 1_500)), 429, "rate_limit_exceeded"),
        (No("concurrency", (2,)), 429, "rate_limit_exceeded"),
        (No("key_disabled", ()), 401, "api_key_disabled"),
        (No("key_expired", ()), 401, "api_key_expired"),
        (No("account_suspended", ()), 403, "account_suspended"),
        (No("model", ()), 404, "model_not_found"),
        (No("session_ended", ()), 409, "session_ended"),
        (No("session_time", ()), 503, "service_unavailable"),
    ],
)
def test_each_cause_has_its_status_and_code(no: No, status: int, code: str) -> None:
    error = error_of(no, "gpt-4o")
    assert (error.status, error.code) == (status, code)
    assert error.message.endswith(".")
    if status in (429, 503):
        assert error.retry_after_ms
    assert refused(error).error == type(error).__name__


def test_a_special_error_goes_by_the_name_that_the_edge_knows() -> None:
    reply = refused(CountingOverloaded(retry_after_ms=1_000))
    assert (reply.error, reply.code) == ("Unavailable", "counting_overloaded")
