"""What the files of a dead edge say. Pure over bytes, but for `read_log`; never raises.

The order of the records doesn't matter: DONE ends a session, CLOSE says what ends it, without
either HELD and the slot do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from services.common.contracts.charging import SessionRef, Settle
from services.common.ids import SessionId
from services.edge.session_log.records import (
    CLOSE,
    DONE,
    HELD,
    SEGMENT_HEADER_BYTES,
    Closed,
    EpochHold,
    Held,
    Record,
    decode_closed,
    decode_held,
    decode_new_epoch,
    read_segment_header,
    scan_segment,
    session_key,
    with_total,
)
from services.edge.session_log.slots import Progress, read_slots

Kept = TypeVar("Kept")
SEQ_STEP: Final = 1_000_000
"""The dead process may have sent calls of a session that its log doesn't show; none came this far."""


class SessionState(StrEnum):
    HELD = "held"
    """Nothing was delivered. Whether anything was sent is not known."""
    STREAMING = "streaming"
    """Output was delivered, or was just about to be."""
    CLOSED = "closed"
    """The call that ends it is known."""


@dataclass(frozen=True, slots=True)
class RecoveredSession:
    """A session that is not done. `holds`: by epoch, oldest first. `next_seq`: above every call that was
    made, but a CLOSE has its own. `settle`: of a CLOSE. `held` is None only with one.
    `is_damaged`: records or its slot's last update were not whole."""

    ref: SessionRef
    state: SessionState
    holds: tuple[EpochHold, ...]
    next_seq: int
    held: Held | None = None
    settle: Settle | None = None
    counted_tokens: int = 0
    uncounted_bytes: int = 0
    flags: int = 0
    is_damaged: bool = False

    @property
    def held_nanos(self) -> int:
        return sum(hold.held_nanos for hold in self.holds)


@dataclass(frozen=True, slots=True)
class RecoveredLog:
    """`torn_records`, `torn_slots`: writes cut off by the end of the process; dropped, no error.
    `is_damaged`: what was whole once is missing, so a session that isn't here may have been sent."""

    sessions: tuple[RecoveredSession, ...]
    torn_records: int
    torn_slots: int
    is_damaged: bool


class Recovery:
    """Add every file's bytes, then take the `result`. Segments in the order of their use."""

    def __init__(self) -> None:
        self._held: dict[bytes, Held] = {}
        self._closed: dict[bytes, Closed] = {}
        self._new_epochs: dict[bytes, tuple[EpochHold, ...]] = {}
        self._done: set[bytes] = set()
        self._progress: dict[bytes, Progress] = {}
        self._torn_records = 0
        self._torn_slots = 0
        self._follows: tuple[int, int] | None = None
        self.is_damaged = False

    def add_segment(self, data: bytes) -> None:
        header = read_segment_header(data)
        scan = scan_segment(data)
        if header is None and not scan.records:
            # Never used, or its first write was cut off.
            self._torn_records += bool(data.strip(b"\0"))
            return
        self.is_damaged |= header is None
        self._torn_records += scan.torn
        self._check_numbers(header, scan.records)
        for record in scan.records:
            try:
                self._add(record)
            except (msgspec.MsgspecError, ValueError):
                self.is_damaged = True

    def _check_numbers(self, header: tuple[int, int] | None, records: list[Record]) -> None:
        """Numbers have no gap, neither inside a segment nor where the next one follows: only the last
        record of all can be a write that was cut off."""
        if header is None:
            self._follows = None
            return
        sequence, number = header
        if self._follows is not None and self._follows[0] == sequence and self._follows[1] != number:
            self.is_damaged = True
        for record in records:
            if record.number != number:
                self.is_damaged = True
            number = record.number + 1
        self._follows = (sequence + 1, number)

    def _add(self, record: Record) -> None:
        payload = record.payload
        if record.kind == DONE:
            self._done.add(payload)
            for found in (self._held, self._closed, self._new_epochs):
                found.pop(payload, None)
        elif record.kind == HELD:
            held = decode_held(payload)
            self._keep(self._held, held.ref.session_id, held)
        elif record.kind == CLOSE:
            closed = decode_closed(payload)
            self._keep(self._closed, closed.settle.ref.session_id, closed)
        else:
            new_epoch = decode_new_epoch(payload)
            known = self._new_epochs.get(session_key(new_epoch.session_id), ())
            if len(new_epoch.holds) > len(known):
                self._keep(self._new_epochs, new_epoch.session_id, new_epoch.holds)

    def _keep(self, found: dict[bytes, Kept], session_id: SessionId, value: Kept) -> None:
        key = session_key(session_id)
        if key not in self._done:
            found[key] = value

    def add_slots(self, data: bytes) -> None:
        found, torn = read_slots(data)
        self._torn_slots += torn
        self._progress.update(found)

    def result(self) -> RecoveredLog:
        sessions = [self._recovered(key) for key in {**self._held, **self._closed}]
        return RecoveredLog(tuple(sessions), self._torn_records, self._torn_slots, self.is_damaged)

    def _recovered(self, key: bytes) -> RecoveredSession:
        held, closed = self._held.get(key), self._closed.get(key)
        if closed is not None:
            return RecoveredSession(
                ref=closed.settle.ref,
                state=SessionState.CLOSED,
                holds=closed.holds,
                next_seq=closed.settle.seq,
                held=held,
                settle=closed.settle,
                is_damaged=self.is_damaged,
            )
        assert held is not None
        progress = self._progress.get(key)
        holds = self._new_epochs.get(key, (EpochHold(held.ref.epoch, held.held_nanos),))
        if progress is None:
            return RecoveredSession(
                ref=held.ref,
                state=SessionState.HELD,
                holds=holds,
                next_seq=held.seq + SEQ_STEP,
                held=held,
                is_damaged=self.is_damaged,
            )
        has_output = progress.counted_tokens or progress.uncounted_bytes
        return RecoveredSession(
            ref=held.ref,
            state=SessionState.STREAMING if has_output else SessionState.HELD,
            # A slot may be older than the record of a newer epoch; a hold never shrinks.
            holds=with_total(holds, max(progress.held_nanos, sum(hold.held_nanos for hold in holds))),
            next_seq=max(held.seq, progress.seq) + SEQ_STEP,
            held=held,
            counted_tokens=progress.counted_tokens,
            uncounted_bytes=progress.uncounted_bytes,
            flags=progress.flags,
            is_damaged=self.is_damaged or progress.torn,
        )


def read_log(directory: Path) -> RecoveredLog:
    """A directory that nobody writes to. Never raises: a file that can't be read is damage."""
    recovery = Recovery()
    segments = []
    try:
        for path in directory.glob("segment-*"):
            with path.open("rb") as file:
                header = read_segment_header(file.read(SEGMENT_HEADER_BYTES))
            segments.append((header is None, header or (0, 0), path))
        slots = sorted(directory.glob("slots-*"))
    except OSError:
        recovery.is_damaged = True
        slots = []
    # Those without a readable header last: nothing can follow from their order.
    for _, _, path in sorted(segments):
        _add_file(recovery, path, recovery.add_segment)
    for path in slots:
        _add_file(recovery, path, recovery.add_slots)
    return recovery.result()


def _add_file(recovery: Recovery, path: Path, add: Callable[[bytes], None]) -> None:
    try:
        data = path.read_bytes()
    except OSError:
        recovery.is_damaged = True
        return
    add(data)
