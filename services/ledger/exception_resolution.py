"""Resolving an exception: a person has looked at it and says what came of it."""

from __future__ import annotations

import msgspec

from services.common.errors import BadRequest, Conflict, NotFound
from services.ledger import audit
from services.ledger.database import Connection, Database
from services.ledger.queries import load_queries

SQL = load_queries("exceptions")
REASON_CHARS_MAX = 500


class ExceptionNotFound(NotFound):
    """There is no such exception. `meterway exceptions list --all` shows them."""

    code = "exception_not_found"


class Resolved(msgspec.Struct, frozen=True):
    id: int
    kind: str
    ref: str
    session_id: str | None
    account_id: str | None
    resolved_at_ms: int


async def resolve(database: Database, *, exception_id: int, reason: str, actor: str) -> Resolved:
    """The reason stands in the audit log. Raises ExceptionNotFound, BadRequest, Conflict (it is resolved)."""
    if not reason.strip() or len(reason) > REASON_CHARS_MAX:
        raise BadRequest(f"Please give a reason of at most {REASON_CHARS_MAX} characters.", param="reason")

    async def work(connection: Connection) -> Resolved:
        row = await connection.fetchrow(SQL["resolve_exception"], exception_id)
        if row is None:
            if await connection.fetchval(SQL["is_exception"], exception_id):
                raise Conflict("This exception is resolved already. The audit log says by whom and why.")
            raise ExceptionNotFound
        await audit.record(
            connection,
            actor=actor,
            action="exception.resolve",
            target=f"exception:{exception_id}",
            before={"kind": row["kind"], "ref": row["ref"]},
            after={"reason": reason},
        )
        return Resolved(**dict(row))

    return await database.transaction(work)
