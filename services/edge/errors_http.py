"""Errors as the API's clients know them: JSON with all four keys, and headers that steer retries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from services.common import errors
from services.common.contracts.charging import RateLimitState, Refused
from services.common.errors import InsufficientQuota, MeterwayError
from services.common.internal_http import error_body

_CLASSES: Final[Mapping[str, type[MeterwayError]]] = {
    name: found
    for name, found in vars(errors).items()
    if isinstance(found, type) and issubclass(found, MeterwayError)
}


class MethodNotAllowed(errors.BadRequest):
    """This address does not answer this method. Please check the method."""

    status = 405
    code = "method_not_allowed"


class RefusedByMeter(Exception):
    """A meter did not admit the session: the error a caller sees, and its rate limits."""

    def __init__(self, refused: Refused) -> None:
        self.error = error_of(refused)
        self.rate_limits = refused.rate_limits
        super().__init__(refused.message)


def error_of(refused: Refused) -> MeterwayError:
    """The error that `refused` names; a name that this version doesn't know is a 500."""
    return _CLASSES.get(refused.error, MeterwayError)(
        refused.message, code=refused.code, param=refused.param, retry_after_ms=refused.retry_after_ms
    )


def error_headers(error: MeterwayError, request_id: str) -> dict[str, str]:
    headers = {"x-request-id": request_id, "Content-Type": "application/json"}
    if error.retry_after_ms is not None:
        headers["retry-after"] = str(max(1, -(-error.retry_after_ms // 1000)))
        headers["retry-after-ms"] = str(error.retry_after_ms)
    if isinstance(error, InsufficientQuota):
        headers["x-should-retry"] = "false"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def error_reply(
    error: MeterwayError, request_id: str, rate_limits: RateLimitState | None = None
) -> web.Response:
    headers = error_headers(error, request_id)
    if rate_limits is not None:
        headers.update(rate_limit_headers(rate_limits))
    return web.Response(body=error_body(error, request_id), status=error.status, headers=headers)


def rate_limit_headers(state: RateLimitState) -> dict[str, str]:
    """`x-ratelimit-*` as OpenAI writes them; only of the limits that the key has."""
    headers = {}
    if state.requests_limit is not None:
        headers["x-ratelimit-limit-requests"] = str(state.requests_limit)
        headers["x-ratelimit-remaining-requests"] = str(state.requests_remaining or 0)
        headers["x-ratelimit-reset-requests"] = duration(state.requests_reset_ms or 0)
    if state.tokens_limit is not None:
        headers["x-ratelimit-limit-tokens"] = str(state.tokens_limit)
        headers["x-ratelimit-remaining-tokens"] = str(state.tokens_remaining or 0)
        headers["x-ratelimit-reset-tokens"] = duration(state.tokens_reset_ms or 0)
    return headers


def duration(milliseconds: int) -> str:
    """`20ms`, `1s`, `6m0s`: the form of OpenAI's reset headers."""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, seconds = divmod(-(-milliseconds // 1000), 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
