"""One timer for all that waits: setting and cancelling a timer of its own costs more than most waits do."""

from __future__ import annotations

import asyncio
import math
from typing import Final, Protocol

TICK_S: Final = 0.02


class Waiting(Protocol):
    def expire(self) -> None:
        """Called once, when the time is over. Must not raise."""
        ...


class Deadlines:
    """Calls `expire` up to TICK_S late, never early. Bound to the event loop of its first use."""

    __slots__ = ("_due", "_fires_at_s", "_loop", "_timer")

    def __init__(self) -> None:
        self._due: dict[Waiting, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at_s = math.inf

    def __len__(self) -> int:
        return len(self._due)

    def put(self, waiting: Waiting, seconds: float) -> None:
        """`waiting.expire()` in `seconds`; instead of what was put before for it."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        due_s = loop.time() + seconds
        self._due[waiting] = due_s
        if due_s < self._fires_at_s - TICK_S:
            self._set_timer(loop, due_s)

    def drop(self, waiting: Waiting) -> None:
        self._due.pop(waiting, None)

    def _set_timer(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # What is due within one tick is called together, at its end.
        self._fires_at_s = due_s + TICK_S
        self._timer = loop.call_at(self._fires_at_s, self._fire, loop)

    def _fire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self._fires_at_s = None, math.inf
        now_s = loop.time()
        for waiting in [waiting for waiting, due_s in self._due.items() if due_s <= now_s]:
            if self._due.pop(waiting, None) is not None:
                waiting.expire()
        if self._due:
            next_s = min(self._due.values())
            if next_s < self._fires_at_s - TICK_S:
                self._set_timer(loop, next_s)
