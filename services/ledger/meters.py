"""The ledger's client of the meters: a change is pushed to every instance and waited for.

An instance that refuses the connection is not running; it loads everything fresh when it starts,
so it is skipped. One that times out or answers with an error may still run on what it knew: the
push is tried again for a moment, then reported in `MeterNotConfirmed`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeVar

import aiohttp
import msgspec

from services.common import logs
from services.common.contracts.catalogue import Catalogue
from services.common.contracts.charging import Settle
from services.common.contracts.lending import (
    AllSettled,
    AuditReply,
    AuditRequest,
    Configure,
    EdgeForgotten,
    ForgetEdge,
    InitEpochs,
    KeySnapshot,
    Recall,
    RecallReply,
    SettleAll,
)
from services.common.discovery import Instances
from services.common.errors import Unavailable
from services.common.ids import EdgeId
from services.common.internal_http import InternalCallError, call
from services.ledger.metrics import LedgerMetrics

LOG = logs.get("ledger.meters")
T = TypeVar("T")
PUSH_ATTEMPTS = 3
RETRY_PAUSE_MS = 100
SNAPSHOTS_MAX = 500


class Confirmed(msgspec.Struct, frozen=True):
    """A meter's acknowledgement: any JSON object."""


class MeterNotConfirmed(Unavailable):
    """The change is saved, but a meter did not confirm it. Please repeat the command."""

    code = "meter_not_confirmed"

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = tuple(urls)
        super().__init__(
            f"The change is saved, but these meters did not confirm it: {', '.join(urls)}. "
            "Please repeat the command.",
            retry_after_ms=1_000,
        )


class MetersAway(Unavailable):
    """No meter answers. Please try again when one is running."""


class Meters:
    def __init__(
        self,
        instances: Instances,
        session: aiohttp.ClientSession,
        *,
        timeout_ms: int,
        metrics: LedgerMetrics,
    ) -> None:
        self._instances = instances
        self._session = session
        self._timeout_ms = timeout_ms
        self._metrics = metrics

    async def configure(self, keys: Sequence[KeySnapshot]) -> None:
        """Raises MeterNotConfirmed."""
        for start in range(0, len(keys), SNAPSHOTS_MAX):
            await self._push(
                "/internal/v1/configure", Configure(keys=tuple(keys[start : start + SNAPSHOTS_MAX]))
            )

    async def catalogue(self, catalogue: Catalogue) -> None:
        """Raises MeterNotConfirmed."""
        await self._push("/internal/v1/catalogue", catalogue)

    async def init_epochs(self, epochs: dict[int, int]) -> None:
        """Raises MeterNotConfirmed."""
        await self._push("/internal/v1/init_epoch", InitEpochs(epochs=epochs))

    async def configure_shared(self, keys: Sequence[KeySnapshot]) -> None:
        """In Redis, which all meters share, when it returns. Raises MetersAway."""
        for start in range(0, len(keys), SNAPSHOTS_MAX):
            body = Configure(keys=tuple(keys[start : start + SNAPSHOTS_MAX]))
            await self._ask_any("/internal/v1/configure", body, Confirmed)

    async def audit(self, request: AuditRequest, *, timeout_ms: int | None = None) -> AuditReply:
        """What Redis holds, from the first meter that answers: they share it. Raises MetersAway."""
        return await self._ask_any("/internal/v1/audit", request, AuditReply, timeout_ms=timeout_ms)

    async def recall(self, recall: Recall) -> RecallReply:
        """Raises MetersAway: whether Redis carried it out is not known; ask again with the same `rseq`."""
        return await self._ask_any("/internal/v1/recall", recall, RecallReply)

    async def settle(self, settles: Sequence[Settle]) -> None:
        """Each has ended when it returns. Raises MetersAway: some may have."""
        if settles:
            await self._ask_any("/internal/v1/settle", SettleAll(tuple(settles)), AllSettled)

    async def forget_edge(self, edge_id: EdgeId) -> EdgeForgotten:
        """End this edge's sessions at their last checkpoints. Raises MetersAway."""
        return await self._ask_any("/internal/v1/edges/forget", ForgetEdge(edge_id), EdgeForgotten)

    async def _ask_any(
        self, path: str, body: object, answer_type: type[T], *, timeout_ms: int | None = None
    ) -> T:
        for url in await self._instances.refresh():
            try:
                return await call(
                    self._session,
                    f"{url}{path}",
                    answer_type,
                    body=body,
                    timeout_ms=timeout_ms or self._timeout_ms,
                )
            except InternalCallError as error:
                if not _is_refused(error):
                    LOG.warning("a meter did not answer", url=url, path=path, status=error.status)
        raise MetersAway(retry_after_ms=1_000)

    async def _push(self, path: str, body: object) -> None:
        urls = await self._instances.refresh()
        confirmed = await asyncio.gather(*(self._push_to(f"{url}{path}", body) for url in urls))
        missing = [url for url, is_confirmed in zip(urls, confirmed, strict=True) if not is_confirmed]
        if missing:
            self._metrics.meters_unconfirmed.inc(len(missing))
            LOG.warning("meters did not confirm", urls=missing, path=path)
            raise MeterNotConfirmed(missing)

    async def _push_to(self, url: str, body: object) -> bool:
        for attempt in range(PUSH_ATTEMPTS):
            if attempt:
                await asyncio.sleep(RETRY_PAUSE_MS / 1000)
            try:
                await call(self._session, url, Confirmed, body=body, timeout_ms=self._timeout_ms)
            except InternalCallError as error:
                if _is_refused(error):
                    return True
                if _is_timeout(error):
                    return False
            else:
                return True
        return False


def _is_refused(error: InternalCallError) -> bool:
    cause = error.__cause__
    return isinstance(cause, aiohttp.ClientConnectorError) and isinstance(
        cause.os_error, ConnectionRefusedError
    )


def _is_timeout(error: InternalCallError) -> bool:
    return isinstance(error.__cause__, TimeoutError)
