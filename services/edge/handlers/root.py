"""`/`: what this is. SDKs and monitors probe it."""

from __future__ import annotations

from aiohttp import web

from services.common.ids import new_session_id

_BODY = b'{"service":"meterway","api":"/v1","models":"/v1/models","balance":"/v1/balance"}'


async def get_root(_request: web.Request) -> web.Response:
    return web.Response(
        body=_BODY, headers={"x-request-id": new_session_id(), "Content-Type": "application/json"}
    )
