"""Ended sessions on their way to a meter: settled or released, however long that takes.

The client never waits for it. Outage behaviour: a call that isn't answered with `Ended` is sent
again, unchanged, with a growing pause, for as long as this process lives; while more wait than
`waiting_max`, `is_full` makes the edge refuse new requests, so that nothing is ever dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from services.common import logs
from services.common.contracts.charging import Ended, Failed, Release, Reply, Settle
from services.edge.meter_client import MeterClient, MeterUnavailable

LOG = logs.get("edge.ending")
IN_FLIGHT_MAX: Final = 1_000
CALL_TIMEOUT_MS: Final = 10_000
RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 10.0


class _Entry:
    __slots__ = ("bucket", "call", "pause_s")

    def __init__(self, call: Settle | Release, bucket: int) -> None:
        self.call = call
        self.bucket = bucket
        self.pause_s = RETRY_FIRST_S


class EndQueue:
    """`on_ended` gets every call that a meter has answered for good."""

    def __init__(
        self, meter: MeterClient, *, waiting_max: int, on_ended: Callable[[Settle | Release], None]
    ) -> None:
        self._on_ended = on_ended
        self._meter = meter
        self._waiting_max = waiting_max
        self._waiting: deque[_Entry] = deque()
        self._in_flight = 0
        self._paused = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self.refused = 0
        """Settles and releases that a meter refused for good: each is logged as an error."""

    @property
    def size(self) -> int:
        return len(self._waiting) + self._in_flight + self._paused

    @property
    def is_full(self) -> bool:
        return self.size >= self._waiting_max

    def settle(self, call: Settle) -> None:
        self._put(_Entry(call, call.ref.bucket))

    def release(self, call: Release) -> None:
        self._put(_Entry(call, call.bucket))

    async def flush(self) -> None:
        """Returns when every session has ended. Bound it with a timeout."""
        await self._empty.wait()

    def _put(self, entry: _Entry) -> None:
        self._empty.clear()
        if self._in_flight >= IN_FLIGHT_MAX:
            self._waiting.append(entry)
        else:
            self._send(entry)

    def _send(self, entry: _Entry) -> None:
        self._in_flight += 1
        future = self._meter.send(
            entry.call, bucket=entry.bucket, timeout_ms=CALL_TIMEOUT_MS, may_linger=True
        )
        future.add_done_callback(lambda done: self._answered(entry, done))

    def _answered(self, entry: _Entry, future: asyncio.Future[Reply]) -> None:
        self._in_flight -= 1
        reply: Reply | None = None
        if not future.cancelled() and not isinstance(future.exception(), MeterUnavailable):
            reply = future.result()
        if reply is None or isinstance(reply, Failed):
            self._paused += 1
            asyncio.get_running_loop().call_later(entry.pause_s, self._retry, entry)
            entry.pause_s = min(entry.pause_s * 2, RETRY_MAX_S)
        else:
            if not isinstance(reply, Ended):
                self.refused += 1
                LOG.error("a meter refused to end a session", call=entry.call, reply=reply)
            self._on_ended(entry.call)
        while self._waiting and self._in_flight < IN_FLIGHT_MAX:
            self._send(self._waiting.popleft())
        if not self.size:
            self._empty.set()

    def _retry(self, entry: _Entry) -> None:
        self._paused -= 1
        self._put(entry)
