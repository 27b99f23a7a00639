"""What an upstream's reply means for the request, the channel and the credential. Pure."""

from __future__ import annotations

import email.utils
import json
from collections.abc import Mapping
from typing import Final

import msgspec

from services.common.errors import MeterwayError, RateLimited, Unavailable, UpstreamFailed
from services.edge.dialects.endpoint import UpstreamError
from services.edge.dialects.openai_chunks import read_error

RETRY_AFTER_MS_MAX: Final = 3_600_000
_MESSAGE_CHARS_MAX: Final = 500
_OUT_OF_MONEY: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_BAD_KEY: Final = frozenset(
    {"invalid_api_key", "account_deactivated", "api_key_invalid", "invalid_authentication"}
)
_BUSY_STATUSES: Final = frozenset({503, 529})


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """`outcome`: `rejected` (the client's fault: pass it on), `unknown_model` (the channel lacks the model:
    try another, pass it on when there is none), `credential_refused`, `rate_limited`, `server_error`,
    `garbage`. `status`: what it amounts to (an empty account is a 402, whatever the upstream calls it)."""

    outcome: str
    status: int
    retry_after_ms: int | None = None


def judge_status(
    status: int, headers: Mapping[str, str], body: bytes, *, now_seconds: float | None = None
) -> Verdict:
    """A reply that is not a 200. `body`: decoded, bounded. `now_seconds`: Unix time (`retry-after` dates)."""
    error = read_error(body)
    names = {error.code.lower(), error.type.lower()}
    if status == 429:
        if names & _OUT_OF_MONEY:
            return Verdict("credential_refused", 402)
        return Verdict("rate_limited", 429, retry_after_ms(headers, now_seconds=now_seconds))
    if status in (401, 402, 403):
        return Verdict("credential_refused", status)
    if status == 400 and (names & _BAD_KEY or b"API_KEY_INVALID" in body):
        return Verdict("credential_refused", 401)
    if status >= 500 or status in (408, 425):
        return Verdict("server_error", status, retry_after_ms(headers, now_seconds=now_seconds))
    if status >= 400:
        is_unknown = status == 404 and "model_not_found" in names
        return Verdict("unknown_model" if is_unknown else "rejected", status)
    # 1xx and 3xx: a redirect would take the prompt and the credential elsewhere.
    return Verdict("garbage", status)


def judge_error(error: UpstreamError, headers: Mapping[str, str]) -> Verdict:
    """An error object that came with status 200, before any output."""
    names = {error.code.lower(), error.type.lower()}
    if names & _OUT_OF_MONEY:
        return Verdict("credential_refused", 402)
    if names & _BAD_KEY:
        return Verdict("credential_refused", 401)
    if names & {"429", "rate_limit_exceeded", "rate_limit_error"}:
        return Verdict("rate_limited", 429, retry_after_ms(headers))
    return Verdict("server_error", 502)


def error_for_client(outcome: str, status: int, retry_in_ms: int | None) -> MeterwayError:
    """What the client gets when every attempt failed. An upstream's 401, 402 or 403 is the operator's matter:
    it must never look like the client's own key or balance."""
    if outcome == "rate_limited":
        return RateLimited(
            "The model's provider limits our rate. Nothing was charged. Please try again shortly.",
            code="upstream_rate_limited",
            retry_after_ms=retry_in_ms if retry_in_ms is not None else 1_000,
        )
    if outcome == "unavailable" or (outcome == "server_error" and status in _BUSY_STATUSES):
        return Unavailable(
            "The model's provider is not available right now. Nothing was charged. Please try again shortly.",
            code="upstream_unavailable",
            retry_after_ms=retry_in_ms if retry_in_ms is not None else 1_000,
        )
    if outcome == "timed_out":
        return UpstreamFailed(
            "The model's provider did not answer in time. Nothing was charged. Please try again.",
            code="upstream_timeout",
        )
    return UpstreamFailed()


def rejection_body(status: int, body: bytes) -> bytes:
    """The upstream's error body as it is when it has the API's shape, else wrapped into it."""
    try:
        reply = json.loads(body)
        error = reply.get("error") if isinstance(reply, dict) else None
        if isinstance(error, dict) and {"message", "type", "param", "code"} <= error.keys():
            return body
    except (ValueError, RecursionError):
        pass
    known = read_error(body)
    is_text = not body.lstrip().startswith(b"<")
    reason = known.message[:_MESSAGE_CHARS_MAX].strip() if is_text else ""
    return msgspec.json.encode(
        {
            "error": {
                "message": reason or f"The model's provider rejected the request (status {status}).",
                "type": known.type or "invalid_request_error",
                "param": None,
                "code": known.code or "upstream_rejected",
            }
        }
    )


def retry_after_ms(headers: Mapping[str, str], *, now_seconds: float | None = None) -> int | None:
    """`retry-after-ms` or `retry-after` (seconds, or a date when `now_seconds` is given), at most an hour."""
    for name, unit_ms in (("retry-after-ms", 1), ("retry-after", 1_000)):
        value = headers.get(name, "")
        try:
            wait_ms = float(value) * unit_ms
        except ValueError:
            continue
        if 0 <= wait_ms < float("inf"):
            return min(int(wait_ms), RETRY_AFTER_MS_MAX)
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    if date is None or now_seconds is None:
        return None
    wait_seconds = email.utils.mktime_tz(date) - now_seconds
    return min(max(0, int(wait_seconds * 1_000)), RETRY_AFTER_MS_MAX)
