"""`/v1/balance`, `/v1/usage` and the billing addresses that chat clients poll."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from services.common import logs
from services.common.contracts.account import USAGE_ROWS_MAX, AccountQuery, AccountView
from services.common.errors import BadRequest, MeterwayError
from services.common.ids import hash_api_key, new_session_id
from services.edge.auth import read_api_key
from services.edge.dialects.billing import balance_json, credit_grants_json, subscription_json, usage_json
from services.edge.dialects.billing import usage_rows_json as rows_json
from services.edge.errors_http import error_reply
from services.edge.parts import PARTS

LOG = logs.get("edge.handlers.account")
USAGE_ROWS_DEFAULT: Final = 20
# Amounts in USD are exact decimals, and numbers in JSON.
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")

Handler = Callable[[web.Request], Awaitable[web.Response]]
Json = dict[str, Any]


def _answers(shape: Callable[[web.Request, AccountView], Json], *, with_usage: bool = False) -> Handler:
    """A handler that shows the caller's account as `shape` does."""

    async def handle(request: web.Request) -> web.Response:
        parts, request_id = request.app[PARTS], new_session_id()
        try:
            view = await parts.account_views.view(_query(request, with_usage=with_usage))
            body = _ENCODER.encode(shape(request, view))
        except MeterwayError as error:
            parts.metrics.refusals[error.code[:64]] += 1
            parts.metrics.count_request("account", error.status, "refused")
            return error_reply(error, request_id)
        except Exception:
            LOG.exception("request failed", session_id=request_id, path=request.path)
            return error_reply(MeterwayError(), request_id)
        parts.metrics.count_request("account", 200, "complete")
        return web.Response(
            body=body,
            headers={
                "x-request-id": request_id,
                "Content-Type": "application/json",
                "Cache-Control": "no-store",
            },
        )

    return handle


def _query(request: web.Request, *, with_usage: bool) -> AccountQuery:
    """Raises InvalidApiKey, BadRequest."""
    query = AccountQuery(
        key_hash=hash_api_key(read_api_key(request.headers)),
        client_address=request.app[PARTS].trusted_proxies.address_of(request),
    )
    if not with_usage:
        return query
    before = request.query.get("before", "")
    if len(before) > 36:
        raise BadRequest("`before` must be a session id.", param="before")
    return msgspec.structs.replace(query, usage_limit=_limit(request), usage_before=before)


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", str(USAGE_ROWS_DEFAULT))
    if not text.isascii() or not text.isdigit() or len(text) > 3 or not 1 <= int(text) <= USAGE_ROWS_MAX:
        raise BadRequest(f"`limit` must be a whole number from 1 to {USAGE_ROWS_MAX}.", param="limit")
    return int(text)


def _period(request: web.Request) -> tuple[str, str]:
    """The days from `start_date` up to `end_date`, which is not one of them, as OpenAI's API had it.
    What isn't a date is no filter."""
    return _day(request.query.get("start_date", ""), ""), _day(request.query.get("end_date", ""), "9999")


def _day(text: str, default: str) -> str:
    is_day = len(text) >= 10 and text[:10].replace("-", "").isdigit() and text[4] == text[7] == "-"
    return text[:10] if is_day else default


get_balance: Final = _answers(lambda _request, view: balance_json(view))
get_usage: Final = _answers(lambda _request, view: rows_json(view), with_usage=True)
get_billing_subscription: Final = _answers(lambda _request, view: subscription_json(view))
get_billing_usage: Final = _answers(lambda request, view: usage_json(view, *_period(request)))
get_billing_credit_grants: Final = _answers(lambda _request, view: credit_grants_json(view))
