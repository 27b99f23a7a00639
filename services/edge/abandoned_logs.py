"""What dead edges left in their logs: read at start, told to the ledger, then deleted.

A session that the ledger has already is done. One that cost nothing is released at a meter first, which
ends its hold. One that is charged goes to the ledger, which settles it through a meter where its epoch
still runs. The same log read twice tells the same, and the ledger charges a session once.

Outage behaviour: without a ledger or a meter it is tried again with a growing pause; the files stay.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.common import logs
from services.common.contracts.charging import Release, Settle
from services.common.contracts.recovery import Recovered
from services.common.ids import SessionId
from services.common.internal_http import InternalCallError
from services.edge.ending import EndQueue
from services.edge.ledger_client import LedgerClient
from services.edge.log_keeper import ENTRIES_MAX, LOST_S, RETRY_MAX_S, posting_entry
from services.edge.metrics import EdgeMetrics
from services.edge.session_log import AbandonedLog, RecoveredSession, abandoned, ending_of

LOG = logs.get("edge.abandoned_logs")
RETRY_FIRST_S: Final = 0.2
CONFIRM_PAUSE_S: Final = 0.5


@dataclass(slots=True)
class _Left:
    """A session whose end is not in the ledger yet. `told_s`: when it was told last, 0: never."""

    session: RecoveredSession
    ending: Settle | Release
    is_release_sent: bool = False
    is_released: bool = False
    told_s: float = 0.0


@dataclass(slots=True)
class _Shipment:
    log: AbandonedLog
    left: dict[SessionId, _Left] = field(default_factory=dict)


class AbandonedLogs:
    """`load` before the edge answers anything; `run` ships; `ended` is told of acknowledged releases."""

    def __init__(self, root: Path, ledger: LedgerClient, end_queue: EndQueue, metrics: EdgeMetrics) -> None:
        self._root = root
        self._ledger = ledger
        self._end_queue = end_queue
        self._metrics = metrics
        self._shipments: list[_Shipment] = []
        self.is_loaded = False

    @property
    def waiting(self) -> int:
        return sum(len(shipment.left) for shipment in self._shipments)

    def sessions(self) -> Iterator[RecoveredSession]:
        """Those whose end the ledger is not known to have."""
        for shipment in self._shipments:
            for left in shipment.left.values():
                yield left.session

    def ended(self, call: Settle | Release) -> None:
        for shipment in self._shipments:
            left = shipment.left.get(call.session_id if isinstance(call, Release) else call.ref.session_id)
            if left is not None and isinstance(call, Release):
                left.is_released = True

    async def load(self) -> None:
        """Lock and read what is there. A directory that can't be read is tried again at the next start."""
        if self.is_loaded:
            return
        try:
            self._shipments = await asyncio.to_thread(_read_all, self._root)
        except OSError as error:
            LOG.error("logs of earlier processes can't be read", error=str(error))
        self.is_loaded = True

    async def run(self) -> None:
        """Returns when everything is shipped."""
        pause_s = RETRY_FIRST_S
        while self._shipments:
            try:
                for shipment in tuple(self._shipments):
                    await self._ship(shipment)
                    if not shipment.left:
                        await self._remove(shipment)
                pause_s = CONFIRM_PAUSE_S
            except InternalCallError as error:
                LOG.warning("an abandoned log waits", sessions=self.waiting, status=error.status)
                pause_s = min(pause_s * 2, RETRY_MAX_S)
            if self._shipments:
                await asyncio.sleep(pause_s)

    async def _ship(self, shipment: _Shipment) -> None:
        """One round over all that is left. Raises InternalCallError."""
        ids = tuple(shipment.left)
        for start in range(0, len(ids), ENTRIES_MAX):
            await self._ship_part(shipment, ids[start : start + ENTRIES_MAX])

    async def _ship_part(self, shipment: _Shipment, ids: tuple[SessionId, ...]) -> None:
        missing = frozenset(await self._ledger.missing(ids))
        charged: list[Settle] = []
        released: list[SessionId] = []
        now_s = time.monotonic()
        for session_id in ids:
            left = shipment.left[session_id]
            if session_id not in missing:
                self._count_done(left)
                del shipment.left[session_id]
            elif left.told_s and now_s - left.told_s < LOST_S:
                continue
            elif isinstance(left.ending, Settle):
                charged.append(left.ending)
            elif left.is_released:
                released.append(session_id)
            elif not left.is_release_sent:
                left.is_release_sent = True
                self._end_queue.release(left.ending)
        if charged or released:
            await self._ledger.recovered(
                Recovered(
                    edge_id=self._ledger.registration.edge_id,
                    log_id=shipment.log.path.name,
                    charged=tuple(posting_entry(settle) for settle in charged),
                    released=tuple(released),
                )
            )
            for session_id in (*(settle.ref.session_id for settle in charged), *released):
                shipment.left[session_id].told_s = now_s

    def _count_done(self, left: _Left) -> None:
        told_as = "charged" if isinstance(left.ending, Settle) else "released"
        self._metrics.recovered[told_as if left.told_s else "known"] += 1

    async def _remove(self, shipment: _Shipment) -> None:
        self._shipments.remove(shipment)
        try:
            await asyncio.to_thread(shipment.log.remove)
        except OSError as error:
            LOG.error("an abandoned log is shipped but can't be deleted", error=str(error))
            return
        LOG.info("an abandoned log is shipped and deleted", log=shipment.log.path.name)

    def unlock(self) -> None:
        """Leave what is not shipped to the next one."""
        for shipment in self._shipments:
            shipment.log.unlock()
        self._shipments = []


def _read_all(root: Path) -> list[_Shipment]:
    shipments = []
    for log in abandoned(root):
        recovered = log.read()
        shipment = _Shipment(log)
        for session in recovered.sessions:
            shipment.left[session.ref.session_id] = _Left(session, ending_of(session))
        shipments.append(shipment)
        say = LOG.error if recovered.is_damaged else LOG.info
        say(
            "a log of an earlier process is shipped",
            log=log.path.name,
            sessions=len(shipment.left),
            torn_records=recovered.torn_records,
            torn_slots=recovered.torn_slots,
            is_damaged=recovered.is_damaged,
        )
    return shipments
