"""One endpoint of the operators' API: declared once, served, checked and documented from that.

A handler gets a `Call` and answers a msgspec struct; it knows nothing of HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgspec
from aiohttp import web

from services.common import logs
from services.common.errors import BadRequest, BodyTooLarge, MeterwayError, NotFound, PermissionDenied
from services.common.internal_http import error_body
from services.ledger.api.caller import READERS, Caller, identify
from services.ledger.catalogue_parts import CATALOGUE_PARTS, CatalogueParts
from services.ledger.context import LEDGER, Ledger

LOG = logs.get("ledger.api")
PREFIX: Final = "/api/v1"
BODY_BYTES_MAX: Final = 1024 * 1024
B = TypeVar("B")
Q = TypeVar("Q")
_FIELD: Final = re.compile(r"`\$\.([^`\[]+)|field `([^`]+)`")


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No body, no query."""


class ApiError(msgspec.Struct, frozen=True):
    """`code` is stable; `param` names the field that is wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    error: ApiError


@dataclass(frozen=True, kw_only=True)
class Call(Generic[B, Q]):
    """`path`: the variables of the path, decoded."""

    ledger: Ledger
    parts: CatalogueParts
    caller: Caller
    path: Mapping[str, str]
    body: B
    query: Q


@dataclass(frozen=True, kw_only=True)
class Endpoint(Generic[B, Q]):
    """`path` is under /api/v1; `{model}` may hold slashes, encoded or not. `roles`: who may."""

    method: str
    path: str
    name: str
    summary: str
    handler: Callable[[Call[B, Q]], Awaitable[object]]
    answer: type
    body: type[B]
    query: type[Q]
    roles: frozenset[str] = READERS

    @property
    def route(self) -> str:
        return PREFIX + self.path.replace("{model}", "{model:.+}")


def endpoint(
    method: str,
    path: str,
    summary: str,
    handler: Callable[[Call[Any, Any]], Awaitable[object]],
    answer: type,
    *,
    body: type = Nothing,
    query: type = Nothing,
    roles: frozenset[str] = READERS,
) -> Endpoint[Any, Any]:
    """An endpoint that bears its handler's name."""
    return Endpoint(
        method=method,
        path=path,
        name=handler.__name__,
        summary=summary,
        handler=handler,
        answer=answer,
        body=body,
        query=query,
        roles=roles,
    )


def add_endpoint(app: web.Application, endpoint: Endpoint[Any, Any]) -> None:
    async def serve(request: web.Request) -> web.Response:
        caller = await identify(request)
        if caller.role not in endpoint.roles:
            raise PermissionDenied(f"The role {caller.role} may not do that.")
        answer = await endpoint.handler(
            Call(
                ledger=request.app[LEDGER],
                parts=request.app[CATALOGUE_PARTS],
                caller=caller,
                path={name: _checked_variable(name, value) for name, value in request.match_info.items()},
                body=await _body(request, endpoint.body),
                query=_query(request, endpoint.query),
            )
        )
        return web.Response(
            body=msgspec.json.encode(answer),
            content_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    app.router.add_route(endpoint.method, endpoint.route, serve, name=endpoint.name)


@web.middleware
async def api_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Under /api/ every error has the API's shape, those of aiohttp's own too."""
    if not request.path.startswith("/api/"):
        return await handler(request)
    try:
        return await handler(request)
    except MeterwayError as error:
        return _error_response(error)
    except web.HTTPRequestEntityTooLarge:
        return _error_response(BodyTooLarge())
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        wrong = BadRequest(f"This address takes {allowed}.", code="method_not_allowed")
        return _error_response(wrong, status=405, headers={"Allow": allowed})
    except web.HTTPNotFound:
        return _error_response(NotFound())
    except Exception:
        LOG.exception("request failed", path=request.path)
        return _error_response(MeterwayError())


def _error_response(
    error: MeterwayError, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    sent = {"Cache-Control": "no-store", **(headers or {})}
    if error.retry_after_ms is not None:
        sent["Retry-After"] = str(-(-error.retry_after_ms // 1000))
    if error.status == 401:
        # Not Basic: a browser that asked for a password would remember it.
        sent["WWW-Authenticate"] = 'Bearer realm="meterway"'
    return web.Response(
        body=error_body(error),
        status=status or error.status,
        content_type="application/json",
        headers=sent,
    )


def _checked_variable(name: str, value: str) -> str:
    if not value or len(value) > 200 or not value.isprintable():
        raise BadRequest(f"{name}: 1 to 200 printable characters.", param=name)
    return value


async def _body(request: web.Request, body_type: type[B]) -> B:
    if (request.content_length or 0) > BODY_BYTES_MAX:
        raise BodyTooLarge
    raw = await request.read()
    if len(raw) > BODY_BYTES_MAX:
        raise BodyTooLarge
    try:
        # No body is an empty object: what is missing is then named.
        return msgspec.json.decode(raw.strip() or b"{}", type=body_type)
    except msgspec.ValidationError as error:
        raise _invalid(error) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest("The body is not valid JSON.", code="invalid_json") from error


def _query(request: web.Request, query_type: type[Q]) -> Q:
    given = dict(request.query)
    if len(given) != len(request.query):
        raise BadRequest("A query parameter is there twice.")
    try:
        return msgspec.convert(given, query_type, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(error) from error


def _invalid(error: msgspec.ValidationError) -> BadRequest:
    message = str(error)
    field = _FIELD.search(message)
    return BadRequest(
        f"The request is not valid: {message}.",
        param=next((part for part in field.groups() if part), None) if field else None,
    )
