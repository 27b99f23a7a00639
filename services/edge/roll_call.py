"""The edge's answer to a roll-call: a promise that outlives the process, and what may still be charged.

From the answer on every `open` and `extend` reply of an older epoch is refused, late ones included, so
that what is listed here is all that older epochs' loans have to pay.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from services.common import logs
from services.common.contracts.catalogue import EdgeRegistration
from services.common.contracts.recovery import OpenSession, Promise, RollCall
from services.common.errors import Unavailable
from services.common.internal_http import read_body, typed_response
from services.edge.abandoned_logs import AbandonedLogs
from services.edge.metrics import EdgeMetrics
from services.edge.session_log import SessionLog

LOG = logs.get("edge.roll_call")
RETRY_AFTER_MS = 1_000


class RollCalls:
    def __init__(
        self,
        log: SessionLog,
        abandoned: AbandonedLogs,
        registration: EdgeRegistration,
        metrics: EdgeMetrics,
    ) -> None:
        self._log = log
        self._abandoned = abandoned
        self._registration = registration
        self._metrics = metrics
        self._one_at_a_time = asyncio.Lock()

    async def handle(self, request: web.Request) -> web.Response:
        return typed_response(await self.answer(await read_body(request, RollCall)))

    async def answer(self, asked: RollCall) -> Promise:
        """Raises Unavailable while nothing can be promised: ask again."""
        if not self._abandoned.is_loaded:
            raise Unavailable(
                "This edge still reads the logs of earlier processes.", retry_after_ms=RETRY_AFTER_MS
            )
        async with self._one_at_a_time:
            await asyncio.to_thread(self._log.promise, asked.epochs)
        # Nothing may be awaited from here on: the list must be of one moment.
        promised = self._log.promises.epochs
        epochs = {bucket: promised[bucket] for bucket in asked.epochs}
        sessions = [*self._open_sessions(epochs), *self._abandoned_sessions(epochs)]
        self._metrics.promises += len(epochs)
        LOG.info("newer epochs are promised", buckets=len(epochs), open=len(sessions))
        return Promise(
            edge_id=self._registration.edge_id,
            incarnation=self._registration.incarnation,
            epochs=epochs,
            sessions=tuple(sessions),
        )

    def _open_sessions(self, epochs: dict[int, int]) -> list[OpenSession]:
        return [
            OpenSession(ref.session_id, ref.account_id, ref.bucket, ref.epoch, logged.held_nanos)
            for logged in self._log.unposted()
            if (ref := logged.ref).epoch < epochs.get(ref.bucket, 0)
        ]

    def _abandoned_sessions(self, epochs: dict[int, int]) -> list[OpenSession]:
        return [
            OpenSession(ref.session_id, ref.account_id, ref.bucket, ref.epoch, session.held_nanos)
            for session in self._abandoned.sessions()
            if (ref := session.ref).epoch < epochs.get(ref.bucket, 0)
        ]
