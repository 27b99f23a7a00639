"""The internal route by which an edge answers a key's questions about its money."""

from __future__ import annotations

from aiohttp import web

from services.common.contracts.account import AccountAnswer, AccountQuery
from services.common.contracts.charging import Refused
from services.common.errors import BadRequest, InvalidApiKey, PermissionDenied
from services.common.internal_http import read_body, typed_response
from services.ledger import account_view
from services.ledger.context import LEDGER


def add_account_view_route(app: web.Application) -> None:
    app.router.add_post("/internal/v1/account_view", post_account_view)


async def post_account_view(request: web.Request) -> web.Response:
    query = await read_body(request, AccountQuery)
    ledger = request.app[LEDGER]
    try:
        return typed_response(
            AccountAnswer(view=await account_view.read(ledger.database, ledger.meters, query))
        )
    except (InvalidApiKey, PermissionDenied, BadRequest) as error:
        refused = Refused(
            error=type(error).__name__, code=error.code, message=error.message, param=error.param
        )
        return typed_response(AccountAnswer(refused=refused))
