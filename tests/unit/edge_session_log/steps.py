"""Random work on a log as a list of steps, and what recovery must say after any number of them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from services.common.contracts.charging import Settle
from services.edge.session_log import EpochHold, LoggedSession, RecoveredLog, SessionLog
from tests.unit.edge_session_log.samples import held, settle

Step = tuple[str, int, int]
"""(what, the session's seed, a figure)"""
Known = tuple[tuple[EpochHold, ...], int, int, Settle | None]
"""(holds, counted tokens, uncounted bytes, CLOSE)"""


STAYS_EVERY = 40
"""One session in so many never ends."""


class Steps:
    """An endless, seeded sequence of steps that a real edge could take."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._seeds = iter(range(seed * 1_000_000, (seed + 1) * 1_000_000))
        self._open: list[int] = []
        self._closed: list[int] = []

    def next(self) -> Step:
        draw, figure = self._random.random(), self._random.randrange(1, 10_000)
        if draw < 0.2 or not self._open:
            seed = next(self._seeds)
            self._open.append(seed)
            return "held", seed, int(self._random.random() < 0.7)
        seed = self._random.choice(self._open)
        if draw < 0.5 or (draw >= 0.58 and seed % STAYS_EVERY == 0):
            return "progress", seed, figure
        if draw < 0.54:
            return "extended", seed, figure
        if draw < 0.58:
            return "begin_epoch", seed, figure
        if draw < 0.75:
            self._open.remove(seed)
            self._closed.append(seed)
            return "close", seed, figure
        if draw < 0.79 or not self._closed:
            self._open.remove(seed)
            return "done", seed, 0
        seed = self._closed.pop(self._random.randrange(len(self._closed)))
        return "done", seed, 0


class Walk:
    """Takes steps on a real log."""

    def __init__(self, log: SessionLog) -> None:
        self._log = log
        self._sessions: dict[int, LoggedSession] = {}

    def take(self, step: Step) -> None:
        what, seed, figure = step
        if what == "held":
            self._sessions[seed] = self._log.held(held(seed, stream=bool(figure)))
            return
        session = self._sessions[seed]
        if what == "progress":
            session.progress(figure, figure % 97)
        elif what == "extended":
            session.extended(seq=session.seq + 1, held_nanos=session.held_nanos + figure)
        elif what == "begin_epoch":
            session.begin_epoch(epoch=session.holds[-1].epoch + 1, held_nanos=figure)
        elif what == "close":
            session.close(settle(held(seed), output=figure))
        else:
            session.done()
            del self._sessions[seed]


@dataclass
class _Expected:
    stream: bool
    holds: list[EpochHold]
    logged_holds: tuple[EpochHold, ...]
    counted: int = 0
    uncounted: int = 0
    close: Settle | None = None


def expected(steps: list[Step]) -> dict[str, Known]:
    """Written without looking at the log: session id to what is known of it."""
    sessions: dict[int, _Expected] = {}
    for what, seed, figure in steps:
        if what == "held":
            first = EpochHold(held(seed).ref.epoch, held(seed).held_nanos)
            sessions[seed] = _Expected(bool(figure), [first], (first,))
            continue
        session = sessions[seed]
        last = session.holds[-1]
        if what == "progress" and session.stream:
            session.counted, session.uncounted = figure, figure % 97
        elif what == "extended":
            session.holds[-1] = EpochHold(last.epoch, last.held_nanos + figure)
        elif what == "begin_epoch":
            session.holds.append(EpochHold(last.epoch + 1, figure))
        elif what == "close":
            session.close = settle(held(seed), output=figure)
        elif what == "done":
            del sessions[seed]
        # A plain call has no slot: what it was extended by is known from its next record only.
        if session.stream or what in ("begin_epoch", "close"):
            session.logged_holds = tuple(session.holds)
    return {held(seed).ref.session_id: _known(session) for seed, session in sessions.items()}


def _known(session: _Expected) -> Known:
    if session.close is not None:
        return session.logged_holds, 0, 0, session.close
    return session.logged_holds, session.counted, session.uncounted, None


def found(log: RecoveredLog) -> dict[str, Known]:
    return {
        session.ref.session_id: (
            session.holds,
            session.counted_tokens,
            session.uncounted_bytes,
            session.settle,
        )
        for session in log.sessions
    }
