"""A call's heartbeat, which looks after its lease, its client and its silence; no task, no timer each."""

from __future__ import annotations

from collections.abc import Callable

from services.edge.deadlines import Deadlines


class Pulse:
    """Calls `on_beat` every `interval_s`, or as soon as it says; it returns None for no more."""

    __slots__ = ("_deadlines", "_interval_s", "_on_beat")

    def __init__(self, deadlines: Deadlines, interval_s: float, on_beat: Callable[[], float | None]) -> None:
        self._deadlines = deadlines
        self._interval_s = interval_s
        self._on_beat = on_beat
        deadlines.put(self, interval_s)

    def expire(self) -> None:
        again_s = self._on_beat()
        if again_s is not None:
            self._deadlines.put(self, min(self._interval_s, max(0.001, again_s)))

    def stop(self) -> None:
        self._deadlines.drop(self)
