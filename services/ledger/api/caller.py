"""Who calls the operators' API: the operator token, or an operator by email and password."""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from services.common.errors import PermissionDenied, RateLimited
from services.ledger.catalogue_parts import CATALOGUE_PARTS
from services.ledger.context import LEDGER
from services.ledger.operators import LoginRefused

READERS: Final = frozenset({"owner", "finance", "support", "read_only"})
MONEY: Final = frozenset({"owner", "finance"})
CUSTOMERS: Final = frozenset({"owner", "support"})
OWNERS: Final = frozenset({"owner"})


@dataclass(frozen=True, kw_only=True)
class Caller:
    """`actor` is what the audit log says."""

    actor: str
    role: str


async def identify(request: web.Request) -> Caller:
    """Raises LoginRefused, RateLimited after too many failures, PermissionDenied for a foreign page."""
    # Nothing here reads cookies, but a browser may remember a Basic password: no other site may use it.
    if request.headers.get("Sec-Fetch-Site", "none") == "cross-site":
        raise PermissionDenied("Requests from another site are not allowed.", code="cross_site_request")
    refused = request.app[LEDGER].metrics.operator_logins_refused
    try:
        return await _identified(request)
    except LoginRefused:
        refused.labels("credential").inc()
        raise
    except RateLimited:
        refused.labels("throttled").inc()
        raise


async def _identified(request: web.Request) -> Caller:
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        expected = request.app[LEDGER].settings.operator_token.value.encode()
        # An empty token in the settings opens nothing.
        if expected and hmac.compare_digest(value.encode("utf-8", "surrogateescape"), expected):
            return Caller(actor="token", role="owner")
        raise LoginRefused
    if scheme.lower() == "basic":
        email, password = _basic(value)
        operators = request.app[CATALOGUE_PARTS].operators
        operator = await operators.verify(email, password, client_address=request.remote or "")
        return Caller(actor=f"operator:{operator.email}", role=operator.role)
    raise LoginRefused


def _basic(value: str) -> tuple[str, str]:
    try:
        email, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, ValueError) as error:
        raise LoginRefused from error
    if not colon or "\x00" in email:
        raise LoginRefused
    return email, password
