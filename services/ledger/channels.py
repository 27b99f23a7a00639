"""Channels: the upstreams, their credentials, and every change of them.

A secret goes in once, is stored encrypted, and comes out only for the edges (`routing.py`). Every
change and its audit entry are one transaction; a trigger moves the routing revision with it, which
wakes whatever edge waits for a change.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Final

import asyncpg
import msgspec
from msgspec import UNSET

from services.common import logs
from services.common.contracts.catalogue import CredentialReport
from services.common.errors import BadRequest, Conflict, NotFound
from services.common.ids import new_channel_id
from services.ledger import audit
from services.ledger.channel_settings import (
    COLUMNS,
    DEFAULTS,
    ChannelSettings,
    ChannelView,
    CredentialChanges,
    channel_view,
    checked_values,
    set_fields,
    shown_settings,
)
from services.ledger.credentials import CredentialUnreadable, CredentialVault, credential_hint
from services.ledger.database import Connection, Database, Row
from services.ledger.queries import load_queries

LOG = logs.get("ledger.channels")
SQL = load_queries("channels")
CHANNELS_MAX: Final = 1_000
CREDENTIALS_MAX: Final = 100
_REFUSING_STATUSES: Final = frozenset({401, 402, 403})


class ChannelNotFound(NotFound):
    """There is no such channel. GET /api/v1/channels lists them."""


async def list_channels(database: Database) -> list[ChannelView]:
    """The highest priority first."""
    rows = await database.fetch(SQL["channels"])
    by_channel: dict[str, list[Row]] = {}
    for credential in await database.fetch(SQL["channel_credentials"]):
        by_channel.setdefault(credential["channel_id"], []).append(credential)
    return [channel_view(row, by_channel.get(row["id"], ())) for row in rows]


async def create_channel(
    database: Database,
    vault: CredentialVault,
    *,
    settings: ChannelSettings,
    credentials: Sequence[str],
    actor: str,
) -> ChannelView:
    """Raises BadRequest for what can't be, Conflict when the name is taken."""
    if settings.name is UNSET or settings.base_url is UNSET:
        raise BadRequest(
            "name and base_url are needed.", param="name" if settings.name is UNSET else "base_url"
        )
    if not credentials:
        raise BadRequest(
            "credentials: a channel needs at least one; any text does for an upstream that wants no key.",
            param="credentials",
        )
    values = await checked_values(settings, DEFAULTS)
    channel_id = new_channel_id()

    async def insert(connection: Connection) -> ChannelView:
        if await connection.fetchval(SQL["count_channels"]) >= CHANNELS_MAX:
            raise BadRequest(f"There are {CHANNELS_MAX} channels already. Please delete one first.")
        await connection.execute(SQL["insert_channel"], channel_id, *(values[name] for name in COLUMNS))
        await _add_credentials(connection, vault, channel_id, credentials)
        view = await _read(connection, channel_id)
        await audit.record(
            connection, actor=actor, action="channel.create", target=channel_id, after=_audited(view)
        )
        return view

    return await _with_unique_name(database, insert)


async def change_channel(
    database: Database,
    vault: CredentialVault,
    *,
    channel_id: str,
    settings: ChannelSettings,
    credentials: CredentialChanges,
    actor: str,
) -> ChannelView:
    """Raises ChannelNotFound, NotFound for a credential that isn't there, BadRequest, Conflict."""
    # The address is looked up before the transaction: nothing slow happens while rows are locked.
    former = next((view for view in await list_channels(database) if view.id == channel_id), None)
    if former is None:
        raise ChannelNotFound
    changed = set_fields(settings)
    must_resolve = bool({"base_url", "allow_private_addresses"} & changed.keys())
    values = await checked_values(settings, shown_settings(former), resolve=must_resolve)

    async def update(connection: Connection) -> ChannelView:
        before = await _read(connection, channel_id)
        if before.revision != former.revision:
            raise Conflict("The channel was changed at the same time. Please look at it and try again.")
        await connection.execute(SQL["update_channel"], channel_id, *(values[name] for name in COLUMNS))
        await _change_credentials(connection, vault, channel_id, credentials)
        view = await _read(connection, channel_id)
        if not view.credentials:
            raise BadRequest("credentials: a channel needs at least one.", param="remove_credentials")
        await audit.record(
            connection,
            actor=actor,
            action="channel.change",
            target=channel_id,
            before=_audited(before),
            after=_audited(view),
        )
        return view

    return await _with_unique_name(database, update)


async def delete_channel(database: Database, *, channel_id: str, actor: str) -> None:
    """Its credentials go with it. Raises ChannelNotFound."""

    async def delete(connection: Connection) -> None:
        view = await _read(connection, channel_id)
        await connection.execute(SQL["delete_channel"], channel_id)
        await audit.record(
            connection, actor=actor, action="channel.delete", target=channel_id, before=_audited(view)
        )

    await database.transaction(delete)


async def set_credential_aside(database: Database, report: CredentialReport) -> bool:
    """Take a refused credential out of the routing. False: it is gone or was set aside already.

    Raises BadRequest when the status is none that refuses a credential.
    """
    if report.status not in _REFUSING_STATUSES:
        raise BadRequest("status: only 401, 402 and 403 refuse a credential.", param="status")

    async def set_aside(connection: Connection) -> bool:
        hint = await connection.fetchval(
            SQL["set_credential_aside"], report.channel_id, report.credential_id, report.status
        )
        if hint is None:
            return False
        await audit.record(
            connection,
            actor=f"edge:{report.edge_id}",
            action="channel.credential_set_aside",
            target=report.channel_id,
            after={"credential_id": report.credential_id, "hint": hint, "status": report.status},
        )
        return True

    return await database.transaction(set_aside)


async def reencrypt_credentials(database: Database, vault: CredentialVault) -> tuple[int, int]:
    """Bring every stored secret under the current key; (how many were moved, how many can't be read)."""

    async def rewrite(connection: Connection) -> tuple[int, int]:
        moved = unreadable = 0
        for row in await connection.fetch(SQL["stored_secrets"]):
            names = {"channel_id": row["channel_id"], "credential_id": row["id"]}
            try:
                secret = vault.decrypt(row["secret"], **names)
            except CredentialUnreadable:
                unreadable += 1
                LOG.error("a channel credential can't be read", **names)
                continue
            if not vault.is_current(row["secret"]):
                await connection.execute(SQL["replace_secret"], row["id"], vault.encrypt(secret, **names))
                moved += 1
        return moved, unreadable

    return await database.transaction(rewrite)


async def _with_unique_name(database: Database, work: Any) -> ChannelView:
    try:
        view: ChannelView = await database.transaction(work)
    except asyncpg.UniqueViolationError as error:
        raise Conflict("A channel of this name exists already.", param="name") from error
    return view


async def _change_credentials(
    connection: Connection, vault: CredentialVault, channel_id: str, changes: CredentialChanges
) -> None:
    for statement, ids, field in (
        ("delete_credentials", changes.remove, "remove_credentials"),
        ("activate_credentials", changes.activate, "activate_credentials"),
    ):
        if ids:
            found = {row["id"] for row in await connection.fetch(SQL[statement], channel_id, list(ids))}
            if missing := set(ids) - found:
                raise NotFound(f"This channel has no credential {min(missing)[:100]}.", param=field)
    await _add_credentials(connection, vault, channel_id, changes.add)


async def _add_credentials(
    connection: Connection, vault: CredentialVault, channel_id: str, added: Sequence[str]
) -> None:
    for secret in added:
        if not 1 <= len(secret) <= 2_000 or not secret.isascii() or not secret.isprintable() or " " in secret:
            raise BadRequest(
                "credentials: 1 to 2000 printable ASCII characters without spaces.", param="credentials"
            )
        credential_id = f"cred_{secrets.token_hex(6)}"
        stored = vault.encrypt(secret, channel_id=channel_id, credential_id=credential_id)
        await connection.execute(
            SQL["insert_credential"], credential_id, channel_id, stored, credential_hint(secret)
        )
    if added and len(await connection.fetch(SQL["credentials_of_channel"], channel_id)) > CREDENTIALS_MAX:
        raise BadRequest(f"credentials: at most {CREDENTIALS_MAX}.", param="credentials")


async def _read(connection: Connection, channel_id: str) -> ChannelView:
    """The channel, locked. Raises ChannelNotFound."""
    row = await connection.fetchrow(SQL["lock_channel"], channel_id)
    if row is None:
        raise ChannelNotFound
    return channel_view(row, await connection.fetch(SQL["credentials_of_channel"], channel_id))


def _audited(view: ChannelView) -> dict[str, Any]:
    # Header values may be secrets of another kind: the log keeps their names.
    shown: dict[str, Any] = msgspec.to_builtins(view)
    return {**shown, "headers": sorted(view.headers)}
