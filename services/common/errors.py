"""Errors that a caller sees. Each has a stable code, an HTTP status and a sentence that says what to do.

MeterwayError
 +-- BadRequest             400 invalid_request_error
 |    +-- BodyTooLarge      413 request_too_large
 |    +-- ModelNotFound     404 model_not_found
 +-- InvalidApiKey          401 invalid_api_key
 +-- PermissionDenied       403 permission_denied (key limits: model, address)
 +-- InsufficientQuota      429 insufficient_quota (never retried)
 +-- RateLimited            429 rate_limit_exceeded (with retry-after)
 +-- UpstreamFailed         502 upstream_error
 +-- Unavailable            503 service_unavailable (with retry-after; costs nothing)
 +-- NotFound               404 not_found
 +-- Conflict               409 conflict
"""

from __future__ import annotations

from typing import ClassVar


class MeterwayError(Exception):
    """Something went wrong. Please try again; if it goes on, contact support with the request id."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str = "internal_error"

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.code = code or type(self).code
        self.param = param
        self.retry_after_ms = retry_after_ms
        super().__init__(self.message)


class BadRequest(MeterwayError):
    """The request is not valid. Please correct it and send it again."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class BodyTooLarge(BadRequest):
    """The request body is too large. Please send a smaller one."""

    status = 413
    code = "request_too_large"


class ModelNotFound(BadRequest):
    """This model does not exist or this API key may not use it. GET /v1/models lists what it may use."""

    status = 404
    code = "model_not_found"


class InvalidApiKey(MeterwayError):
    """Incorrect API key provided. Please pass a valid key as `Authorization: Bearer sk-...`."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class PermissionDenied(MeterwayError):
    """This API key may not do that. Please use another key or change its limits in the console."""

    status = 403
    type = "permission_error"
    code = "permission_denied"


class InsufficientQuota(MeterwayError):
    """The balance does not cover this request. Please top up or lower max_tokens."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


class RateLimited(MeterwayError):
    """Too many requests for this API key's limits. Please wait and try again."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class UpstreamFailed(MeterwayError):
    """The model's provider failed to answer. Nothing was charged. Please try again."""

    status = 502
    type = "server_error"
    code = "upstream_error"


class Unavailable(MeterwayError):
    """The gateway can't check the balance right now. Nothing was charged. Please try again shortly."""

    status = 503
    type = "server_error"
    code = "service_unavailable"


class NotFound(MeterwayError):
    """There is nothing at this address. Please check the path."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class Conflict(MeterwayError):
    """This conflicts with something that exists already."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"
