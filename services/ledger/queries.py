"""SQL by name, from the .sql files of `services/ledger/sql/`.

A file holds statements, each under a line with its name:

    -- name: insert_account
    -- $1 account id, $2 email or NULL
    INSERT INTO account (id, email) VALUES ($1, $2);

    SQL = load_queries("accounts")
    await connection.execute(SQL["insert_account"], account_id, email)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Final

_HEADING: Final = re.compile(r"^-- name: ([a-z][a-z0-9_]*)$", re.MULTILINE)


def parse_queries(text: str) -> Mapping[str, str]:
    """Statements by name. Raises ValueError when a name comes twice or has no statement."""
    pieces = _HEADING.split(text)
    found: dict[str, str] = {}
    for name, statement in zip(pieces[1::2], pieces[2::2], strict=True):
        sql = statement.strip().removesuffix(";")
        if name in found:
            raise ValueError(f"the query {name} is there twice")
        if not sql:
            raise ValueError(f"the query {name} has no statement")
        found[name] = sql
    return MappingProxyType(found)


def load_queries(file: str) -> Mapping[str, str]:
    """The statements of `sql/<file>.sql` by name."""
    path = resources.files("services.ledger.sql") / f"{file}.sql"
    return parse_queries(path.read_text(encoding="utf-8"))
