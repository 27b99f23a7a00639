"""Proving and mending the books: verification, repair, resolving exceptions."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from services.common.errors import BadRequest
from services.ledger import exception_resolution, repair, verify
from services.ledger.api.caller import MONEY
from services.ledger.api.endpoint import Call, Nothing, endpoint

_DIGITS_MAX = 18


class NotedBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A block that was noted earlier, elsewhere."""

    number: Annotated[int, Meta(ge=1, le=2**62)]
    hash: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Verify(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`from_block`: the chain is checked from this one; the books always wholly."""

    from_block: Annotated[int, Meta(ge=1, le=2**62)] = 1
    noted: NotedBlock | None = None


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """1 to 500 characters; for those who read the journal and the audit log."""

    reason: str


async def verify_books(call: Call[Verify, Nothing]) -> verify.Verification:
    noted = call.body.noted
    return await verify.run(
        call.ledger.settings.database_url.value,
        from_block=call.body.from_block,
        noted=verify.Noted(number=noted.number, hash=noted.hash) if noted else None,
    )


async def repair_books(call: Call[Reason, Nothing]) -> repair.Repairs:
    ledger = call.ledger
    return await repair.run(
        ledger.database,
        ledger.meters,
        ledger.frozen_loans,
        reason=call.body.reason,
        actor=call.caller.actor,
    )


async def resolve_exception(call: Call[Reason, Nothing]) -> exception_resolution.Resolved:
    text = call.path["exception_id"]
    if not text.isascii() or not text.isdigit() or len(text) > _DIGITS_MAX:
        raise BadRequest("An exception's id is a number.", param="exception_id")
    return await exception_resolution.resolve(
        call.ledger.database, exception_id=int(text), reason=call.body.reason, actor=call.caller.actor
    )


ENDPOINTS = (
    endpoint(
        "POST",
        "/verify",
        "Recompute the journal's hash chain and the trial balance. Changes nothing.",
        verify_books,
        verify.Verification,
        body=Verify,
        roles=MONEY,
    ),
    endpoint(
        "POST",
        "/reconcile/repair",
        "Mend what the books themselves prove, by journal entries; list the rest.",
        repair_books,
        repair.Repairs,
        body=Reason,
        roles=MONEY,
    ),
    endpoint(
        "POST",
        "/exceptions/{exception_id}/resolve",
        "Close an exception that a person has dealt with.",
        resolve_exception,
        exception_resolution.Resolved,
        body=Reason,
        roles=MONEY,
    ),
)
