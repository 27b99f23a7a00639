"""The metered endpoints: read who asks for what, run the call, answer."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from services.common import logs
from services.common.errors import BodyTooLarge, MeterwayError, Unavailable
from services.common.ids import SessionId, hash_api_key, new_session_id
from services.edge.admission import RETRY_AFTER_MS, Incoming
from services.edge.auth import read_api_key
from services.edge.delivery import Delivery
from services.edge.dialects.endpoint import Endpoint
from services.edge.errors_http import RefusedByMeter, error_reply
from services.edge.metered_call import MeteredCall
from services.edge.parts import PARTS, EdgeParts
from services.edge.request_body import UndecodableBody, read_body
from services.edge.upstreams.attempts import RequestRejected

LOG = logs.get("edge.handlers.metered")
CLIENT_GONE_STATUS = 499


def metered(endpoint: Endpoint) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The handler of `endpoint`."""

    async def handle(request: web.Request) -> web.StreamResponse:
        parts, started_s, session_id = request.app[PARTS], time.monotonic(), new_session_id()
        metrics, name = parts.metrics, endpoint.name
        if parts.is_overloaded:
            busy = Unavailable(
                "The gateway is busy. Nothing was charged. Please try again shortly.",
                retry_after_ms=RETRY_AFTER_MS,
            )
            return _refuse(parts, name, busy, session_id)
        metrics.sessions += 1
        delivery = Delivery(request, session_id, close_connection=parts.draining)
        call: MeteredCall | None = None
        response: web.StreamResponse | None = None
        try:
            incoming = await _read(parts, request, endpoint, session_id, started_s)
            metrics.open_streams += incoming.request.stream
            call = MeteredCall(parts, incoming, delivery)
            try:
                response = await call.run()
            finally:
                metrics.open_streams -= incoming.request.stream
        except RefusedByMeter as refused:
            response = _refuse(parts, name, refused.error, session_id, refused)
        except MeterwayError as error:
            response = _refuse(parts, name, error, session_id)
            if isinstance(error, BodyTooLarge | UndecodableBody):
                response.force_close()
        except RequestRejected as rejected:
            response = _pass_on(rejected, session_id)
        except ConnectionResetError:
            response = delivery.response or web.Response(status=CLIENT_GONE_STATUS)
        except Exception:
            LOG.exception("request failed", session_id=session_id, endpoint=name)
            response = _unforeseen(request, delivery, session_id)
        finally:
            metrics.sessions -= 1
            if call is not None:
                status = response.status if response is not None else CLIENT_GONE_STATUS
                metrics.count_request(name, status, call.outcome)
            if delivery.first_write_s:
                metrics.first_token.observe(delivery.first_write_s - started_s)
        if parts.draining:
            response.force_close()
        return response

    return handle


async def _read(
    parts: EdgeParts, request: web.Request, endpoint: Endpoint, session_id: SessionId, started_s: float
) -> Incoming:
    """Raises MeterwayError or RefusedByMeter."""
    started_at_ms = time.time_ns() // 1_000_000
    key_hash = hash_api_key(read_api_key(request.headers))
    known = parts.key_hints.cached(key_hash) or await parts.key_hints.resolve(key_hash)
    _ = known.hint  # A key that nobody knows is refused before its body is read.
    settings = parts.settings
    body = await read_body(request, bytes_max=settings.body_bytes_max, timeout_ms=settings.body_timeout_ms)
    return Incoming(
        session_id=session_id,
        endpoint=endpoint,
        request=endpoint.read_request(body),
        body=body,
        key_hash=key_hash,
        known_key=known,
        client_address=parts.trusted_proxies.address_of(request),
        client_headers=request.headers,
        started_s=started_s,
        started_at_ms=started_at_ms,
    )


def _refuse(
    parts: EdgeParts,
    endpoint_name: str,
    error: MeterwayError,
    session_id: SessionId,
    refused: RefusedByMeter | None = None,
) -> web.Response:
    parts.metrics.refusals[error.code[:64]] += 1
    LOG.debug("refused", session_id=session_id, endpoint=endpoint_name, code=error.code)
    return error_reply(error, session_id, refused.rate_limits if refused is not None else None)


def _pass_on(rejected: RequestRejected, session_id: SessionId) -> web.Response:
    headers = {**rejected.headers, "x-request-id": session_id}
    headers.setdefault("content-type", "application/json")
    return web.Response(body=rejected.body, status=rejected.status, headers=headers)


def _unforeseen(request: web.Request, delivery: Delivery, session_id: SessionId) -> web.StreamResponse:
    if delivery.response is None:
        return error_reply(MeterwayError(), session_id)
    # Half a stream must not look like a whole one.
    if request.transport is not None:
        request.transport.abort()
    return delivery.response
