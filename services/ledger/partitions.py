"""Month partitions of `usage`: made ahead of time, and on demand for a month that has none yet."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, date, datetime

from services.ledger.database import Database
from services.ledger.queries import load_queries

SQL = load_queries("posting")
MONTHS_AHEAD = 2
MONTHS_BACK_MAX = 13
Month = int
"""Months since year 0: year * 12 + month - 1."""


class Partitions:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: set[Month] = set()

    async def create_ahead(self) -> None:
        now = _month_of(time.time_ns() // 1_000_000)
        for month in range(now, now + MONTHS_AHEAD + 1):
            await self._create(month)

    async def ensure(self, moments_ms: Iterable[int]) -> None:
        """Moments far from now (a clock is wrong) stay in the default partition."""
        days = {moment_ms // 86_400_000 for moment_ms in moments_ms}
        now = _month_of(time.time_ns() // 1_000_000)
        for month in sorted({_month_of(day * 86_400_000) for day in days} - self._known):
            if now - MONTHS_BACK_MAX <= month <= now + MONTHS_AHEAD:
                await self._create(month)

    async def _create(self, month: Month) -> None:
        if month not in self._known:
            first_day = date(month // 12, month % 12 + 1, 1)
            await self._database.execute(SQL["ensure_usage_partition"], first_day)
            self._known.add(month)


def _month_of(moment_ms: int) -> Month:
    try:
        moment = datetime.fromtimestamp(moment_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return -1
    return moment.year * 12 + moment.month - 1
