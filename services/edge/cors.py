"""Cross-origin calls: a browser page of another origin may call the API with its user's key.

The key travels in a header that the page itself sets; cookies never do (there is no credentials mode), so any
origin may be allowed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from aiohttp import web

ANY: Final = "*"
NONE: Final = "none"
MAX_AGE_S: Final = 7_200
ASKED_CHARS_MAX: Final = 4_096
ASKED_NAMES_MAX: Final = 100
EXPOSED: Final = ", ".join(
    (
        "x-request-id",
        "x-meterway-cost-usd",
        "x-meterway-balance-usd",
        *(
            f"x-ratelimit-{what}-{of}"
            for of in ("requests", "tokens")
            for what in ("limit", "remaining", "reset")
        ),
        "retry-after",
        "retry-after-ms",
        "x-should-retry",
        "openai-processing-ms",
        "openai-version",
    )
)
ALLOWED_HEADERS: Final = (
    "authorization",
    "content-type",
    "content-encoding",
    "x-api-key",
    "api-key",
    "idempotency-key",
    "openai-beta",
    "openai-organization",
    "openai-project",
    "anthropic-version",
    "anthropic-beta",
    "anthropic-dangerous-direct-browser-access",
    *(
        f"x-stainless-{name}"
        for name in (
            "arch", "helper-method", "lang", "os", "package-version", "poll-helper", "retry-count",
            "runtime", "runtime-version", "timeout",
        )
    ),
)  # fmt: skip
_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,100}")
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9.\-\[\]:]+")


class Cors:
    """`origins`: `*` for any, `none` for no origin at all, or those that are allowed, such as
    `https://chat.example.com`.

    Raises ValueError when one of them isn't an origin.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        allowed = frozenset(origin.lower() for origin in origins)
        for origin in allowed - {ANY, NONE}:
            if _ORIGIN.fullmatch(origin) is None:
                raise ValueError(
                    f"METERWAY_CORS_ORIGINS: {origin!r} is not an origin (scheme://host[:port])."
                )
        if NONE in allowed and len(allowed) > 1:
            raise ValueError(f"METERWAY_CORS_ORIGINS: {NONE!r} must stand alone.")
        self._allows_any = ANY in allowed
        self._allowed = allowed - {ANY, NONE}

    async def add_headers(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """An `on_response_prepare` signal: every reply passes here, streams and errors too. A request without
        an origin costs one look-up."""
        origin = request.headers.get("Origin")
        if origin is None:
            return
        headers = response.headers
        if self._allows_any:
            headers["Access-Control-Allow-Origin"] = ANY
        else:
            headers["Vary"] = "Origin"
            if origin.lower() not in self._allowed:
                return
            headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = EXPOSED


def preflight(request: web.Request, allowed_methods: str) -> web.Response:
    """The answer to OPTIONS. `allowed_methods`: those of the address. Whether the origin is allowed says
    `Cors.add_headers`."""
    reply = web.Response(status=204, headers={"Allow": f"{allowed_methods}, OPTIONS"})
    if "Access-Control-Request-Method" in request.headers:
        asked = request.headers.get("Access-Control-Request-Headers", "")
        reply.headers["Access-Control-Allow-Methods"] = allowed_methods
        reply.headers["Access-Control-Allow-Headers"] = ", ".join(allowed_headers(asked))
        reply.headers["Access-Control-Max-Age"] = str(MAX_AGE_S)
    return reply


def allowed_headers(asked: str) -> tuple[str, ...]:
    """The usual ones and those asked for: unknown headers do no harm here. A list that is too long, or holds
    what can't be a header's name, adds nothing."""
    names = [name for part in asked[: ASKED_CHARS_MAX + 1].lower().split(",") if (name := part.strip())]
    is_sane = (
        len(asked) <= ASKED_CHARS_MAX and len(names) <= ASKED_NAMES_MAX and all(map(_NAME.fullmatch, names))
    )
    return tuple(dict.fromkeys((*ALLOWED_HEADERS, *(names if is_sane else ()))))
