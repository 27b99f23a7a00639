"""The operators' API under /api/v1: all its endpoints, its errors and its OpenAPI document."""

from __future__ import annotations

from importlib import metadata
from typing import Any, Final

import msgspec
from aiohttp import web

from services.ledger.api import accounts, books, channels, edges, keys, models, verification
from services.ledger.api.endpoint import PREFIX, Endpoint, add_endpoint, api_errors
from services.ledger.api.openapi import openapi_document

ENDPOINTS: Final[tuple[Endpoint[Any, Any], ...]] = (
    *accounts.ENDPOINTS,
    *keys.ENDPOINTS,
    *models.ENDPOINTS,
    *channels.ENDPOINTS,
    *books.ENDPOINTS,
    *edges.ENDPOINTS,
    *verification.ENDPOINTS,
)


def add_routes(app: web.Application) -> None:
    """Needs LEDGER and CATALOGUE_PARTS in `app` when a request comes."""
    app.middlewares.append(api_errors)
    for endpoint in ENDPOINTS:
        add_endpoint(app, endpoint)
    document = msgspec.json.encode(openapi_document(ENDPOINTS, version=metadata.version("meterway")))

    # It tells no secret, so it needs no credential: tools can read it.
    async def get_document(_request: web.Request) -> web.Response:
        return web.Response(body=document, content_type="application/json")

    app.router.add_get(f"{PREFIX}/openapi.json", get_document, name="openapi")
