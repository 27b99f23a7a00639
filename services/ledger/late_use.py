"""Use of API keys that came past Redis is told to Redis, so that quotas and budgets count it.

A posting notes its keys in its own transaction. What is told is a snapshot with the sum of all such use: it
may be told twice or late, and any meter will do, for Redis is shared.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from services.common import logs
from services.common.errors import MeterwayError
from services.ledger.database import Database
from services.ledger.meters import Meters
from services.ledger.queries import load_queries
from services.ledger.snapshots import snapshot

LOG = logs.get("ledger.late_use")
SQL = load_queries("late_use")
KEYS_PER_PUSH_MAX: Final = 500
IDLE_S: Final = 2.0
RETRY_S: Final = (0.1, 0.25, 0.5, 1.0, 2.0)


class LateUse:
    """`posted`: set by a posting that came past Redis."""

    def __init__(self, database: Database, meters: Meters, posted: asyncio.Event) -> None:
        self._database = database
        self._meters = meters
        self._posted = posted

    async def run(self) -> None:
        """Runs until cancelled."""
        failures = 0
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._posted.wait(), IDLE_S)
            self._posted.clear()
            try:
                while await self.push() == KEYS_PER_PUSH_MAX:
                    pass
                failures = 0
            except MeterwayError as error:
                LOG.warning("key use is not told to Redis yet", reason=error.message)
                await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                failures += 1
            except Exception:
                LOG.exception("telling key use to Redis failed")
                await asyncio.sleep(IDLE_S)

    async def push(self) -> int:
        """Tell what waits, once; of how many keys. Raises Unavailable."""
        waiting = await self._database.fetch(SQL["waiting_pushes"], KEYS_PER_PUSH_MAX)
        if not waiting:
            return 0
        key_ids = [row["key_id"] for row in waiting]
        rows = await self._database.fetch(SQL["snapshots_of_keys"], key_ids)
        if rows:
            await self._meters.configure_shared([snapshot(row) for row in rows])
        # A use that came after the snapshot was read has raised the version: it stays.
        await self._database.execute(SQL["pushed"], key_ids, [row["version"] for row in waiting])
        return len(waiting)
