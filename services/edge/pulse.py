"""One timer per running call: renews its lease, breaks its silences, ends what outlives its lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Pulse:
    """Calls `on_beat` every `interval_s`, or as soon as it says; it returns None for no more."""

    __slots__ = ("_handle", "_interval_s", "_loop", "_on_beat")

    def __init__(self, interval_s: float, on_beat: Callable[[], float | None]) -> None:
        self._interval_s = interval_s
        self._on_beat = on_beat
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = self._loop.call_later(interval_s, self._beat)

    def _beat(self) -> None:
        self._handle = None
        again_s = self._on_beat()
        if again_s is not None:
            self._handle = self._loop.call_later(min(self._interval_s, max(0.001, again_s)), self._beat)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
