"""The parts that requests share. Made once, in app.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from services.common.contracts.catalogue import Routing
from services.common.errors import Unavailable
from services.common.ids import EdgeId
from services.edge.account_views import AccountViews
from services.edge.client_address import TrustedProxies
from services.edge.deadlines import Deadlines
from services.edge.ending import EndQueue
from services.edge.key_hints import KeyHints
from services.edge.meter_client import MeterClient
from services.edge.metrics import EdgeMetrics
from services.edge.session_log import SessionLog
from services.edge.settings import EdgeSettings
from services.edge.upstreams.attempts import Failover
from services.edge.upstreams.routing import RoutingTable

_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def lease_clock_s() -> float:
    """Seconds on a clock that runs on while the machine is suspended."""
    return time.clock_gettime(_BOOTTIME)


class CurrentRouting:
    """The newest routing table; a request takes one snapshot."""

    def __init__(self) -> None:
        self._table: RoutingTable | None = None

    @property
    def is_loaded(self) -> bool:
        return self._table is not None

    def replace(self, routing: Routing) -> None:
        self._table = RoutingTable(routing)

    @property
    def table(self) -> RoutingTable:
        """Raises Unavailable before the first one is loaded."""
        if self._table is None:
            raise Unavailable("The gateway is starting. Please try again shortly.", retry_after_ms=1_000)
        return self._table


class Background:
    """Work that outlives its request: counted, and waited for when the edge stops."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class EdgeParts:
    def __init__(
        self,
        *,
        settings: EdgeSettings,
        metrics: EdgeMetrics,
        meter: MeterClient,
        key_hints: KeyHints,
        end_queue: EndQueue,
        routing: CurrentRouting,
        failover: Failover,
        trusted_proxies: TrustedProxies,
        account_views: AccountViews,
        log: SessionLog,
    ) -> None:
        self.settings = settings
        self.edge_id = EdgeId(settings.edge_id)
        self.metrics = metrics
        self.meter = meter
        self.key_hints = key_hints
        self.end_queue = end_queue
        self.routing = routing
        self.failover = failover
        self.trusted_proxies = trusted_proxies
        self.account_views = account_views
        self.log = log
        self.background = Background()
        self.deadlines = Deadlines()
        self.draining = False

    @property
    def is_overloaded(self) -> bool:
        return (
            self.metrics.sessions >= self.settings.sessions_max
            or self.end_queue.is_full
            or len(self.background) >= self.settings.sessions_max
        )


PARTS = web.AppKey("parts", EdgeParts)
