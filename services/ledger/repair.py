"""`reconcile --repair`: mends what the books themselves prove, and only through the journal.

One thing can be proven: the return of an ended epoch's loans was closed, and something is left of one all
the same. Its fence is opened again, so that the ordinary return takes it back, with all that it waits for.
Whatever else differs is listed, with the reason why it is left to a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from services.common.errors import BadRequest, Unavailable
from services.ledger import audit, reconcile
from services.ledger.database import Connection, Database, Row
from services.ledger.meters import Meters
from services.ledger.queries import load_queries

SQL = load_queries("repair")
REPAIRS_MAX: Final = 500
REASON_CHARS_MAX: Final = 500
_A_ROW_IS_NO_MOVE: Final = (
    "A row contradicts the journal, and a journal entry would move money that nobody moved. `meterway verify`"
    " tells whether the journal is as it was sealed; then the row is restored from a backup."
)
_JOURNAL_CHANGED: Final = "The journal was changed by hand: `meterway verify` names the row."
_USAGE_CHANGED: Final = "Either the usage or the journal was changed by hand: `meterway verify` tells which."
_NO_MONEY: Final = "A key's use is no money: no journal entry sets it right."
_EXCEPTION: Final = "A person decides it, then resolves it with `meterway exceptions resolve`."
_REDIS: Final = "Redis and the books differ. The books stay; a fence of the bucket makes Redis follow them."
_WAITS: Final = "It goes back by itself when no session and no edge can charge it any more."


class Returns(Protocol):
    """The ordinary return of frozen loans."""

    async def return_due(self) -> int: ...


class Repaired(msgspec.Struct, frozen=True):
    """`nanos` went back to the account, by journal transactions of kind `loan_return`."""

    subject: str
    nanos: int


class Left(msgspec.Struct, frozen=True):
    """`why` it is not repaired, and what to do."""

    what: str
    subject: str
    why: str


class Repairs(msgspec.Struct, frozen=True):
    """`is_clean`: nothing was left."""

    is_clean: bool
    repaired: tuple[Repaired, ...]
    left: tuple[Left, ...]


async def run(database: Database, meters: Meters, returns: Returns, *, reason: str, actor: str) -> Repairs:
    """Raises BadRequest, Unavailable. Safe to repeat: what is repaired differs no more."""
    if not reason.strip() or len(reason) > REASON_CHARS_MAX:
        raise BadRequest(f"Please give a reason of at most {REASON_CHARS_MAX} characters.", param="reason")
    repaired, left = await _return_left_behind(database, returns, reason=reason, actor=actor)
    found = await reconcile.run(database, meters)
    left += [Left(what=row.what, subject=row.subject, why=why_not(row.what)) for row in found.differences]
    return Repairs(is_clean=not left, repaired=tuple(repaired), left=tuple(left))


def why_not(what: str) -> str:
    """Why a difference that reconciliation found is not repaired."""
    if what.startswith("exception:"):
        return _EXCEPTION
    match reconcile.BOOK_CHECKS.get(what):
        case None:
            return _REDIS
        case "unbalanced_transactions":
            return _JOURNAL_CHANGED
        case "wrong_settled" | "platform_totals":
            return _USAGE_CHANGED
        case "wrong_key_use":
            return _NO_MONEY
        case _:
            return _A_ROW_IS_NO_MOVE


async def _return_left_behind(
    database: Database, returns: Returns, *, reason: str, actor: str
) -> tuple[list[Repaired], list[Left]]:
    rows = await database.fetch(SQL["left_behind"], REPAIRS_MAX)
    if not rows:
        return [], []
    await database.transaction(lambda connection: _reopen(connection, rows, reason=reason, actor=actor))
    why = _WAITS
    try:
        await returns.return_due()
    except Unavailable as error:
        why = error.message
    after = await database.fetch(
        SQL["rests"], [row["account_id"] for row in rows], [row["epoch"] for row in rows]
    )
    rests = {(row["account_id"], row["epoch"]): row["rest_nanos"] for row in after}
    repaired: list[Repaired] = []
    left: list[Left] = []
    for row in rows:
        subject = f"{row['account_id']} epoch {row['epoch']}"
        rest_nanos = rests[row["account_id"], row["epoch"]]
        if rest_nanos < row["rest_nanos"]:
            repaired.append(Repaired(subject=subject, nanos=row["rest_nanos"] - rest_nanos))
        if rest_nanos:
            left.append(Left(what="loan of an ended epoch", subject=subject, why=why))
    return repaired, left


async def _reopen(connection: Connection, rows: Sequence[Row], *, reason: str, actor: str) -> None:
    fences = sorted({(row["bucket"], row["epoch"]) for row in rows})
    await connection.execute(
        SQL["reopen_fences"], [bucket for bucket, _epoch in fences], [epoch for _bucket, epoch in fences]
    )
    for row in rows:
        found = {"epoch": row["epoch"], "rest_nanos": row["rest_nanos"], "reason": reason}
        await audit.record(
            connection, actor=actor, action="reconcile.repair", target=row["account_id"], after=found
        )
