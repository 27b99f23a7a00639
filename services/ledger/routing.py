"""The routing that edges work by: which channels there are, with their secrets, and the catalogue.

An edge asks with the revision that it has and waits here until there is another one. Postgres tells
every ledger process of a change (NOTIFY); while that connection is down the revision is looked up
every second instead. When Postgres is away an edge gets 503 and goes on with what it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Final

import asyncpg
import msgspec

from services.common import logs
from services.common.contracts.catalogue import Catalogue, Channel, ChannelCredential, Routing
from services.common.ids import ChannelId
from services.common.settings import Secret
from services.ledger import catalogue
from services.ledger.channels import SQL
from services.ledger.credentials import CredentialUnreadable, CredentialVault
from services.ledger.database import Connection, Database, Row
from services.ledger.metrics import LedgerMetrics

LOG = logs.get("ledger.routing")
COMMAND_LINE_CHANNEL: Final = ChannelId("command-line")
COMMAND_LINE_PRIORITY: Final = -1_000_000
NOTIFY_CHANNEL: Final = "meterway_routing"
_RECHECK_S: Final = 1.0
_PROBE_S: Final = 5.0
_RECONNECT_S: Final = (0.1, 0.5, 1.0, 2.0)
# Upstreams on one's own machine often want no key, but a bearer header can't be empty.
_NO_KEY: Final = "none"


class RoutingFeed:
    """Answers edges that wait for a newer routing; one per ledger process."""

    def __init__(
        self,
        database: Database,
        vault: CredentialVault,
        *,
        database_url: Secret,
        upstream_base_url: str,
        upstream_api_key: Secret,
        metrics: LedgerMetrics,
    ) -> None:
        self._database = database
        self._vault = vault
        self._database_url = database_url
        self._command_line = _command_line_channel(upstream_base_url, upstream_api_key)
        self._metrics = metrics
        self._changed = asyncio.Event()
        self._listening = False
        self._building = asyncio.Lock()
        self._revision = 0
        self._encoded = b""

    async def note_command_line_channel(self) -> None:
        """Move the revision when the command line's channel differs from the last start's, so that edges
        which kept running fetch the routing again."""
        channel = self._command_line
        text = "" if channel is None else f"{channel.base_url}\x00{channel.credentials[0].secret}"
        await self._database.execute(SQL["note_command_line_channel"], self._vault.fingerprint(text))

    async def routing_after(self, revision: int, *, wait_ms: int) -> bytes:
        """The encoded Routing as soon as its revision isn't `revision`, or after `wait_ms` as it is.

        "Isn't", not "is greater": a restored database may be behind what an edge has seen.
        """
        deadline = time.monotonic() + wait_ms / 1000
        while True:
            changed = self._changed
            current = await self._refresh()
            remaining = deadline - time.monotonic()
            if current != revision or remaining <= 0:
                return self._encoded
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    changed.wait(), remaining if self._listening else min(remaining, _RECHECK_S)
                )

    async def listen(self) -> None:
        """Hear of changes from Postgres; runs until cancelled, reconnects by itself."""
        failures = 0
        while True:
            try:
                await self._listen_once()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                LOG.warning("not told of routing changes: looking every second", error=type(error).__name__)
            failures = 0 if self._listening else failures + 1
            self._listening = False
            self._wake()
            await asyncio.sleep(_RECONNECT_S[min(failures, len(_RECONNECT_S) - 1)])

    async def _listen_once(self) -> None:
        connection = await asyncpg.connect(self._database_url.value, timeout=5, command_timeout=5)
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _connection: lost.set())
        try:
            await connection.add_listener(NOTIFY_CHANNEL, lambda *_notification: self._wake())
            self._listening = True
            # What happened before LISTEN was in force.
            self._wake()
            while not lost.is_set():
                # A connection may be gone without having been closed: ask now and then.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(lost.wait(), _PROBE_S)
                    raise ConnectionResetError
                await connection.execute("SELECT 1")
        finally:
            try:
                await connection.close(timeout=1)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _refresh(self) -> int:
        """The current revision; `_encoded` belongs to it when this returns."""
        current: int = await self._database.fetchval(catalogue.SQL["revision"], "routing")
        if current != self._revision:
            async with self._building:
                if current != self._revision:
                    await self._rebuild()
        return self._revision

    async def _rebuild(self) -> None:
        routing = await self._database.transaction(self._read, isolation="repeatable_read")
        self._encoded = msgspec.json.encode(routing)
        self._revision = routing.revision
        self._metrics.routing_revision.set(routing.revision)

    async def _read(self, connection: Connection) -> Routing:
        revision = await connection.fetchval(catalogue.SQL["revision"], "routing")
        models = await catalogue.catalogue_in(connection)
        rows = await connection.fetch(SQL["routable_channels"])
        secrets = self._decrypted(await connection.fetch(SQL["routable_credentials"]))
        channels = [_channel(row, secrets.get(row["id"], ())) for row in rows]
        rest = channel_for_the_rest(self._command_line, channels, models)
        # A channel none of whose credentials is usable still owns its models: the command line's does
        # not take them over.
        usable = [channel for channel in channels if channel.credentials]
        return Routing(
            revision=revision,
            channels=tuple(usable if rest is None else [*usable, rest]),
            catalogue=models,
        )

    def _decrypted(self, rows: Sequence[Row]) -> dict[str, tuple[ChannelCredential, ...]]:
        found: dict[str, tuple[ChannelCredential, ...]] = {}
        unreadable = 0
        for row in rows:
            try:
                secret = self._vault.decrypt(
                    row["secret"], channel_id=row["channel_id"], credential_id=row["id"]
                )
            except CredentialUnreadable:
                unreadable += 1
                LOG.error("a channel credential can't be read", credential_id=row["id"])
                continue
            found[row["channel_id"]] = (
                *found.get(row["channel_id"], ()),
                ChannelCredential(id=row["id"], secret=secret),
            )
        self._metrics.credentials_unreadable.set(unreadable)
        return found


def channel_for_the_rest(
    command_line: Channel | None, channels: Sequence[Channel], models: Catalogue
) -> Channel | None:
    """The command line's channel, limited to the models that no channel of the database serves."""
    if command_line is None or any(channel.models is None for channel in channels):
        return None
    if not channels:
        return command_line
    served: set[str] = set().union(*(channel.models or {} for channel in channels))
    rest = {model.id: model.id for model in models.models if model.id not in served}
    return msgspec.structs.replace(command_line, models=rest) if rest else None


def _command_line_channel(base_url: str, api_key: Secret) -> Channel | None:
    if not base_url:
        return None
    return Channel(
        id=COMMAND_LINE_CHANNEL,
        name="command line",
        base_url=base_url.rstrip("/"),
        credentials=(ChannelCredential(id="command-line", secret=api_key.value or _NO_KEY),),
        priority=COMMAND_LINE_PRIORITY,
    )


def _channel(row: Row, credentials: tuple[ChannelCredential, ...]) -> Channel:
    return Channel(
        id=ChannelId(row["id"]),
        name=row["name"],
        kind=row["kind"],
        base_url=row["base_url"],
        credentials=credentials,
        models=row["models"],
        priority=row["priority"],
        weight=row["weight"],
        headers=row["headers"],
        connect_timeout_ms=row["connect_timeout_ms"],
        first_byte_timeout_ms=row["first_byte_timeout_ms"],
        idle_timeout_ms=row["idle_timeout_ms"],
    )
