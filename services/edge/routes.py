"""Every address of the API, and what the others answer."""

from __future__ import annotations

from aiohttp import HttpVersion11, web

from services.common.errors import NotFound
from services.common.ids import new_session_id
from services.edge.dialects.registry import ENDPOINTS
from services.edge.errors_http import MethodNotAllowed, error_reply
from services.edge.handlers.metered import metered
from services.edge.handlers.models import get_model, list_models

API_ROOT = "/v1"


def add_routes(app: web.Application) -> None:
    router = app.router
    for endpoint in ENDPOINTS:
        router.add_post(API_ROOT + endpoint.path, metered(endpoint), expect_handler=expect)
    router.add_get(f"{API_ROOT}/models", list_models, expect_handler=expect)
    router.add_get(f"{API_ROOT}/models/{{id:.+}}", get_model, expect_handler=expect)
    # SDKs probe the root.
    router.add_route("HEAD", "/", root, expect_handler=expect)
    router.add_route("*", "/{tail:.*}", nothing_here, expect_handler=expect)


async def expect(request: web.Request) -> None:
    """Any other expectation than `100-continue` is ignored; aiohttp would answer with its own 417."""
    if request.version >= HttpVersion11 and request.headers["Expect"].strip().lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # Nothing of the answer has been written yet.
        request.writer.output_size = 0


async def root(_request: web.Request) -> web.Response:
    return web.Response(headers={"x-request-id": new_session_id()})


async def nothing_here(request: web.Request) -> web.Response:
    """404 for an unknown address, 405 for a known one with another method."""
    path = request.path
    known = {API_ROOT + endpoint.path: "POST" for endpoint in ENDPOINTS}
    known |= {f"{API_ROOT}/models": "GET, HEAD", "/": "HEAD"}
    allowed = "GET, HEAD" if path.startswith(f"{API_ROOT}/models/") else known.get(path)
    if allowed is None:
        return error_reply(NotFound(), new_session_id())
    reply = error_reply(MethodNotAllowed(f"This address answers {allowed} only."), new_session_id())
    reply.headers["Allow"] = allowed
    return reply
