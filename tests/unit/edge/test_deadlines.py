"""One timer serves everything that waits."""

from __future__ import annotations

import asyncio

from services.edge.deadlines import TICK_S, Deadlines
from services.edge.pulse import Pulse


class Waiter:
    def __init__(self) -> None:
        self.expired_at: list[float] = []

    def expire(self) -> None:
        self.expired_at.append(asyncio.get_running_loop().time())


async def test_each_expires_once_in_its_time_and_never_early() -> None:
    deadlines, loop = Deadlines(), asyncio.get_running_loop()
    began = loop.time()
    waiters = {seconds: Waiter() for seconds in (0.2, 0.01, 0.1, 0.0, 0.05)}
    for seconds, waiter in waiters.items():
        deadlines.put(waiter, seconds)
    await asyncio.sleep(0.2 + 3 * TICK_S)
    for seconds, waiter in waiters.items():
        assert len(waiter.expired_at) == 1
        assert waiter.expired_at[0] >= began + seconds
    assert len(deadlines) == 0


async def test_what_was_dropped_or_put_off_does_not_expire() -> None:
    deadlines = Deadlines()
    dropped, put_off = Waiter(), Waiter()
    deadlines.put(dropped, 0.01)
    deadlines.put(put_off, 0.01)
    deadlines.drop(dropped)
    deadlines.put(put_off, 30)
    await asyncio.sleep(0.01 + 3 * TICK_S)
    assert not dropped.expired_at
    assert not put_off.expired_at
    deadlines.drop(put_off)
    deadlines.drop(put_off)


async def test_one_may_drop_or_put_another_while_it_expires() -> None:
    deadlines, later, other = Deadlines(), Waiter(), Waiter()

    class Meddler:
        def expire(self) -> None:
            deadlines.drop(other)
            deadlines.put(later, 0.0)

    deadlines.put(Meddler(), 0.0)
    deadlines.put(other, 0.0)
    await asyncio.sleep(5 * TICK_S)
    assert not other.expired_at
    assert len(later.expired_at) == 1


async def test_a_pulse_beats_until_it_says_no_more() -> None:
    deadlines, beats = Deadlines(), 0

    def on_beat() -> float | None:
        nonlocal beats
        beats += 1
        return 60.0 if beats < 3 else None

    Pulse(deadlines, 0.005, on_beat)
    await asyncio.sleep(10 * TICK_S)
    assert beats == 3
    stopped = Pulse(deadlines, 0.005, on_beat)
    stopped.stop()
    await asyncio.sleep(3 * TICK_S)
    assert beats == 3
