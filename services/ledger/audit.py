"""The audit log: who changed what, before and after. Append-only; never a secret in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from services.ledger.database import Connection, Database
from services.ledger.queries import load_queries

SQL = load_queries("audit")


class AuditEntry(msgspec.Struct, frozen=True):
    """`actor`: `token` (the operator token), `operator:EMAIL`, `edge:ID` or `ledger`. `detail`: `before`
    and `after`, as far as they apply."""

    id: int
    created_at_ms: int
    actor: str
    action: str
    target: str
    detail: dict[str, Any]


async def record(
    connection: Connection | Database,
    *,
    actor: str,
    action: str,
    target: str,
    before: Mapping[str, object] | None = None,
    after: Mapping[str, object] | None = None,
) -> None:
    """Write one entry; in the transaction of the change it tells of, if `connection` is in one."""
    detail = {
        name: dict(state) for name, state in (("before", before), ("after", after)) if state is not None
    }
    await connection.execute(SQL["insert_audit_entry"], actor, action, target, detail)


async def list_entries(
    database: Database, *, limit: int, before: int | None = None, target: str | None = None
) -> Sequence[AuditEntry]:
    """The newest first; `before`: only entries older than that id."""
    rows = await database.fetch(SQL["audit_entries"], before, target, limit)
    return [AuditEntry(**dict(row)) for row in rows]
