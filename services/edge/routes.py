"""Every address of the API, and what the others answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from aiohttp import HttpVersion11, hdrs, web

from services.common.errors import NotFound
from services.common.ids import new_session_id
from services.edge.cors import preflight
from services.edge.dialects.registry import ENDPOINTS
from services.edge.errors_http import MethodNotAllowed, error_reply
from services.edge.handlers.account import (
    get_balance,
    get_billing_credit_grants,
    get_billing_subscription,
    get_billing_usage,
    get_usage,
)
from services.edge.handlers.metered import metered
from services.edge.handlers.models import get_model, list_models
from services.edge.handlers.root import get_root

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

API_ROOT: Final = "/v1"
MODEL_PREFIX: Final = f"{API_ROOT}/models/"
GET: Final = "GET, HEAD"
BILLING: Final[tuple[tuple[str, Handler], ...]] = (
    ("/dashboard/billing/subscription", get_billing_subscription),
    ("/dashboard/billing/usage", get_billing_usage),
    ("/dashboard/billing/credit_grants", get_billing_credit_grants),
)


def get_routes() -> Iterator[tuple[str, Handler]]:
    """What answers GET (and HEAD)."""
    yield "/", get_root
    yield f"{API_ROOT}/models", list_models
    yield f"{MODEL_PREFIX}{{id:.+}}", get_model
    yield f"{API_ROOT}/balance", get_balance
    yield f"{API_ROOT}/usage", get_usage
    for path, handler in BILLING:
        yield API_ROOT + path, handler
        # NextChat asks without the API's root.
        yield path, handler


ALLOWED_METHODS: Final = {
    **{path: GET for path, _handler in get_routes()},
    **{API_ROOT + endpoint.path: "POST" for endpoint in ENDPOINTS},
}


def add_routes(app: web.Application) -> None:
    for endpoint in ENDPOINTS:
        app.router.add_post(API_ROOT + endpoint.path, metered(endpoint), expect_handler=expect)
    for path, handler in get_routes():
        app.router.add_get(path, handler, expect_handler=expect)
    app.router.add_route("*", "/{tail:.*}", elsewhere, expect_handler=expect)


async def expect(request: web.Request) -> None:
    """Any other expectation than `100-continue` is ignored; aiohttp would answer with its own 417."""
    if request.version >= HttpVersion11 and request.headers["Expect"].strip().lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # Nothing of the answer has been written yet.
        request.writer.output_size = 0


async def elsewhere(request: web.Request) -> web.Response:
    """404 for an unknown address; for a known one the preflight's answer, or 405 for a wrong method."""
    path = request.path
    allowed = ALLOWED_METHODS.get(path) or (GET if path.startswith(MODEL_PREFIX) else None)
    if allowed is None:
        return error_reply(NotFound(), new_session_id())
    if request.method == hdrs.METH_OPTIONS:
        return preflight(request, allowed)
    reply = error_reply(MethodNotAllowed(f"This address answers {allowed} only."), new_session_id())
    reply.headers["Allow"] = f"{allowed}, OPTIONS"
    return reply
