"""Why a session is refused, in the words a client reads. Pure."""

from __future__ import annotations

from services.common.contracts.charging import RateLimitState, Refused
from services.common.contracts.lending import KeySnapshot
from services.common.errors import (
    Conflict,
    InsufficientQuota,
    InvalidApiKey,
    MeterwayError,
    ModelNotFound,
    PermissionDenied,
    RateLimited,
    Unavailable,
)
from services.common.money import nanos_to_usd
from services.meter.quota_answers import No

RETRY_AFTER_MS = 1_000
_MONEY_LIMITS = {
    "key_quota": "the quota of this API key",
    "budget_day": "the daily budget of this API key",
    "budget_month": "the monthly budget of this API key",
}


def refused(error: MeterwayError, rate_limits: RateLimitState | None = None) -> Refused:
    # The edge knows the common errors only: a special one goes by its nearest ancestor's name.
    known = next(kind for kind in type(error).__mro__ if kind.__module__ == MeterwayError.__module__)
    return Refused(
        error=known.__name__,
        code=error.code,
        message=error.message,
        param=error.param,
        retry_after_ms=error.retry_after_ms,
        rate_limits=rate_limits,
    )


def unavailable(message: str | None = None, *, code: str | None = None) -> Unavailable:
    return Unavailable(message, code=code, retry_after_ms=RETRY_AFTER_MS)


def error_of(no: No, model: str, *, frozen_nanos: int = 0) -> MeterwayError:
    """The error behind a refusal by the script. `frozen_nanos`: money that may come back shortly."""
    cause, figures = no
    if cause in ("balance", "key_quota", "budget_day", "budget_month"):
        missing, held, limit = figures
        if cause == "balance" and 0 < missing <= frozen_nanos:
            return Unavailable(
                "A part of this balance is being checked after a failure and will be back shortly. "
                "Nothing was charged. Please try again.",
                code="balance_frozen",
                retry_after_ms=2_000,
            )
        return InsufficientQuota(_money_message(cause, missing, held, limit))
    if cause in ("requests", "tokens", "concurrency"):
        return _rate_limited(cause, figures)
    if cause == "key_disabled":
        return InvalidApiKey(
            "This API key is disabled. Please use another key, or enable it in the console.",
            code="api_key_disabled",
        )
    if cause == "key_expired":
        return InvalidApiKey(
            "This API key has expired. Please create a new one in the console.", code="api_key_expired"
        )
    if cause == "account_suspended":
        return PermissionDenied(
            "This account is suspended. Please contact support.", code="account_suspended"
        )
    if cause == "model":
        return ModelNotFound(
            f"This API key may not use the model `{model}`. GET /v1/models lists what it may use.",
            param="model",
        )
    if cause == "session_time":
        return unavailable("The clocks of this service disagree. Nothing was charged. Please try again.")
    return Conflict("This request has ended already. Please send it again as a new one.", code=cause)


def _money_message(cause: str, missing: int, held: int, limit: int) -> str:
    in_use = f" Running requests hold {nanos_to_usd(held)} USD." if held > 0 else ""
    if cause == "balance":
        return (
            f"The balance of this account does not cover this request: {nanos_to_usd(missing)} USD are "
            f"missing.{in_use} Please top up or lower max_tokens."
        )
    return (
        f"What is left of {_MONEY_LIMITS[cause]} ({nanos_to_usd(limit)} USD) does not cover this request: "
        f"{nanos_to_usd(missing)} USD are missing.{in_use} Please raise the limit in the console, or lower "
        "max_tokens."
    )


def _rate_limited(cause: str, figures: tuple[int, ...]) -> RateLimited:
    if cause == "concurrency":
        return RateLimited(
            f"This API key may run {figures[0]} requests at a time. Please wait until one of them ends.",
            retry_after_ms=RETRY_AFTER_MS,
        )
    limit, wait_ms = figures
    return RateLimited(
        f"This API key may use {limit} {cause} per minute. Please try again in {-(-wait_ms // 1000)} s.",
        retry_after_ms=wait_ms,
    )


def address_refused(snapshot: KeySnapshot) -> PermissionDenied:
    return PermissionDenied(
        f"The API key {snapshot.key_id} may not be used from this address. Please use an allowed one, or "
        "change the key's addresses in the console.",
        code="address_not_allowed",
    )


def model_unknown(model: str) -> ModelNotFound:
    return ModelNotFound(
        f"The model `{model}` does not exist. GET /v1/models lists what this API key may use.", param="model"
    )
