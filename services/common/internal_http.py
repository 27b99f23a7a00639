"""The services' internal HTTP: credential, typed JSON handlers, health routes, and the client for them.

Every internal address needs `Authorization: Bearer <internal credential>`, but for `/healthz`,
`/readyz` and `/metrics`, which tell no secret.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import aiohttp
import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry

from services.common import logs
from services.common.errors import MeterwayError
from services.common.metrics import metrics_handler
from services.common.settings import Secret

LOG = logs.get("common.internal_http")
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
T = TypeVar("T")
ReadyCheck = Callable[[], Awaitable[Mapping[str, bool]]]


def bearer(credential: Secret) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential.value}"}


def error_body(error: MeterwayError, request_id: str | None = None) -> bytes:
    """The API's error shape; all four keys are always there."""
    detail: dict[str, object] = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    body: dict[str, object] = {"error": detail}
    if request_id:
        body["request_id"] = request_id
    return msgspec.json.encode(body)


@web.middleware
async def translate_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """A MeterwayError becomes its status and body; anything unforeseen a 500 that tells nothing."""
    try:
        return await handler(request)
    except MeterwayError as error:
        headers = {}
        if error.retry_after_ms is not None:
            headers["Retry-After"] = str(-(-error.retry_after_ms // 1000))
        return web.Response(
            body=error_body(error), status=error.status, content_type="application/json", headers=headers
        )
    except web.HTTPException:
        raise
    except Exception:
        LOG.exception("request failed", path=request.path)
        return web.Response(body=error_body(MeterwayError()), status=500, content_type="application/json")


def require_credential(credential: Secret) -> Any:
    """Middleware: 401 without the internal credential, compared in constant time."""
    expected = f"Bearer {credential.value}".encode()

    @web.middleware
    async def check(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if request.path not in OPEN_PATHS and not hmac.compare_digest(given, expected):
            return web.json_response({"error": {"code": "invalid_credential"}}, status=401)
        return await handler(request)

    return check


def add_health_routes(app: web.Application, registry: CollectorRegistry, ready: ReadyCheck) -> None:
    """`/healthz`: the process answers. `/readyz`: 200 when every check holds, else 503 with the checks."""

    async def healthz(_request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_request: web.Request) -> web.Response:
        checks = dict(await ready())
        return web.json_response(
            {"ready": all(checks.values()), "checks": checks}, status=200 if all(checks.values()) else 503
        )

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics_handler(registry))


async def read_body(request: web.Request, body_type: type[T]) -> T:
    """The request's JSON body as `body_type`. Raises web.HTTPBadRequest with what is wrong."""
    try:
        return msgspec.json.decode(await request.read(), type=body_type)
    except msgspec.DecodeError as error:
        raise web.HTTPBadRequest(text=f"not a {body_type.__name__}: {error}") from error


def typed_response(body: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


class InternalCallError(Exception):
    """A service answered an internal call with a status that isn't 200, or not at all (`status` 0)."""

    def __init__(self, url: str, status: int, body: bytes = b"") -> None:
        self.url = url
        self.status = status
        self.body = body
        super().__init__(f"{url}: status {status}" if status else f"{url}: no answer")


async def call(
    session: aiohttp.ClientSession,
    url: str,
    answer_type: type[T],
    *,
    body: object | None = None,
    timeout_ms: int = 5_000,
) -> T:
    """POST `body` (GET without one) and decode the answer. The session carries the credential.

    Raises InternalCallError: refused, timed out, not 200, or not an `answer_type`.
    """
    method = "GET" if body is None else "POST"
    data = None if body is None else msgspec.json.encode(body)
    try:
        async with session.request(
            method, url, data=data, timeout=aiohttp.ClientTimeout(total=timeout_ms / 1000)
        ) as response:
            answer = await response.read()
            if response.status != 200:
                raise InternalCallError(url, response.status, answer)
            return msgspec.json.decode(answer, type=answer_type)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise InternalCallError(url, 0) from error
    except msgspec.DecodeError as error:
        raise InternalCallError(url, 200, b"answer has another shape") from error
