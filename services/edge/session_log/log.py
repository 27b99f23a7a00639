"""The edge's log as the edge uses it. One thread calls it; nothing here waits for the disk.

    held()      after the hold, before anything goes upstream
    progress()  before each write of a stream to its client
    close()     when the cost is known; a plain reply's before its first byte
    done()      when the ledger has it, or the release is acknowledged

Outage behaviour: without room for a session's HELD *and* for what ends it, `held` raises
LogUnavailable (503, nothing charged); running sessions go on, their room is reserved. The same
while syncs fail.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from services.common.contracts.charging import SessionRef, Settle
from services.common.ids import EdgeId, SessionId
from services.edge.session_log.directory import LockedDirectory, lock_directory
from services.edge.session_log.disk_worker import DiskWorker
from services.edge.session_log.mapped_file import LogUnavailable
from services.edge.session_log.promises import Promises
from services.edge.session_log.records import (
    CLOSE,
    CLOSE_BYTES_BESIDE,
    DONE,
    DONE_RECORD_BYTES,
    HELD,
    RECORD_BYTES_MAX,
    RECORD_HEADER_BYTES,
    SEGMENT,
    USAGE_JSON_BYTES_MAX,
    Closed,
    EpochHold,
    Held,
    NewEpoch,
    encode,
    session_key,
    with_total,
)
from services.edge.session_log.segments import SEGMENT_BYTES_MIN, Owner, Segments
from services.edge.session_log.slots import SENT_UPSTREAM, SLOT_BYTES, Slot, SlotPool

HELD_BYTES_MAX: Final = 8 * 1024
SHORTENED: Final = "log_shortened"


class LoggedSession(Owner):
    """A session that the log keeps. `holds`: by epoch, oldest first; the last one grows with `extended`."""

    __slots__ = (
        "_counted_tokens",
        "_flags",
        "_key",
        "_log",
        "_reserved_bytes",
        "_slot",
        "_uncounted_bytes",
        "held_nanos",
        "holds",
        "is_closed",
        "ref",
        "seq",
    )

    def __init__(self, log: SessionLog, held: Held, key: bytes, slot: Slot | None) -> None:
        super().__init__()
        self._log = log
        self._key = key
        self._slot = slot
        self._counted_tokens = 0
        self._uncounted_bytes = 0
        self._flags = 0
        self._reserved_bytes = 0
        self.ref: SessionRef = held.ref
        self.seq = held.seq
        self.held_nanos = held.held_nanos
        self.holds: tuple[EpochHold, ...] = (EpochHold(held.ref.epoch, held.held_nanos),)
        self.is_closed = False

    @property
    def is_fenced(self) -> bool:
        """A newer epoch is promised: replies of this session's epoch are refused."""
        return not self._log.promises.accepts(self.ref.bucket, self.holds[-1].epoch)

    def progress(self, counted_tokens: int, uncounted_bytes: int) -> None:
        """What the client has once the write that follows is done: tokens at the last exact count, and
        the UTF-8 bytes of text since. Nothing for a plain call."""
        self._counted_tokens = counted_tokens
        self._uncounted_bytes = uncounted_bytes
        if self._slot is not None:
            self._slot.write(
                self._key,
                counted_tokens,
                uncounted_bytes,
                held_nanos=self.held_nanos,
                seq=self.seq,
                flags=self._flags,
            )

    def sent_upstream(self) -> None:
        self._flags |= SENT_UPSTREAM
        self.progress(self._counted_tokens, self._uncounted_bytes)

    def extended(self, *, seq: int, held_nanos: int) -> None:
        """`seq` was used; `held_nanos`: all that the session holds now."""
        self.seq = seq
        if held_nanos != self.held_nanos:
            self.held_nanos = held_nanos
            self.holds = with_total(self.holds, held_nanos)
        self.progress(self._counted_tokens, self._uncounted_bytes)

    def begin_epoch(self, *, epoch: int, held_nanos: int) -> None:
        """The next slice is held in a newer epoch: `held_nanos` more. Raises LogUnavailable: don't use it."""
        if epoch <= self.holds[-1].epoch:
            raise ValueError(f"epoch {epoch} does not follow {self.holds[-1].epoch}")
        holds = (*self.holds, EpochHold(epoch, held_nanos))
        self._log.append_epoch(self, encode(NewEpoch(self.ref.session_id, holds)))
        self.holds = holds
        self.held_nanos += held_nanos
        self.progress(self._counted_tokens, self._uncounted_bytes)

    def close(self, settle: Settle) -> None:
        """`settle`: the very call that ends the session, now and after a restart. The first one counts."""
        if not self.is_closed:
            self._log.append_close(self, settle)

    def done(self) -> None:
        self._log.done(self.ref.session_id)


class SessionLog:
    """`promises`: see there. Closing leaves the directory to whoever ships it, unless all is done."""

    def __init__(
        self,
        directory: LockedDirectory,
        promises: Promises,
        worker: DiskWorker,
        *,
        segment_bytes: int,
        slots_per_file: int,
    ) -> None:
        self._directory = directory
        self._worker = worker
        self._segments = Segments(worker, segment_bytes=segment_bytes)
        self._slots = SlotPool(worker, slots_per_file=slots_per_file)
        self._sessions: dict[SessionId, LoggedSession] = {}
        self.promises = promises

    @classmethod
    def open(
        cls,
        root: Path,
        edge_id: EdgeId,
        *,
        segment_bytes: int = 16 * 1024 * 1024,
        sync_interval_ms: int = 100,
        bytes_max: int = 1024 * 1024 * 1024,
        slots_per_file: int = 4_096,
    ) -> SessionLog:
        """A directory of its own below `root`; what others left there is for `abandoned`. Reads and
        writes files: at start, before requests are served. Raises LogUnavailable."""
        if segment_bytes < SEGMENT_BYTES_MIN or bytes_max < 3 * segment_bytes + slots_per_file * SLOT_BYTES:
            raise ValueError("the session log's bounds leave no room for three segments and the slots")
        try:
            promises = Promises.load(root)
            directory = lock_directory(root, edge_id)
        except OSError as error:
            raise LogUnavailable(str(error)) from error
        worker = DiskWorker(directory.path, sync_interval_ms=sync_interval_ms, bytes_max=bytes_max)
        try:
            log = cls(directory, promises, worker, segment_bytes=segment_bytes, slots_per_file=slots_per_file)
        except OSError as error:
            worker.stop()
            with suppress(OSError):
                directory.remove()
            raise LogUnavailable(str(error)) from error
        worker.start()
        log._segments.has_room_for(0)
        return log

    # --- state ---------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        return self._directory.path

    @property
    def is_healthy(self) -> bool:
        """Whether a new session would be taken. Asking makes room, so that a full disk is left behind
        also when nobody sends requests any more."""
        return not self._worker.sync_failing and self._segments.has_room_for(RECORD_BYTES_MAX)

    @property
    def sync_errors(self) -> int:
        return self._worker.sync_errors

    @property
    def allocation_errors(self) -> int:
        return self._worker.allocation_errors

    @property
    def allocated_bytes(self) -> int:
        return self._worker.allocated_bytes

    @property
    def segment_count(self) -> int:
        return self._segments.count

    @property
    def unsynced_ms(self) -> int:
        """How much power loss would lose."""
        return int((time.monotonic() - self._worker.synced_s) * 1000)

    def unposted(self) -> Iterator[LoggedSession]:
        """Every session that is not done: running, or closed and not known to be in the ledger."""
        return iter(tuple(self._sessions.values()))

    def has(self, session_id: SessionId) -> bool:
        return session_id in self._sessions

    def __len__(self) -> int:
        return len(self._sessions)

    # --- sessions ------------------------------------------------------------------------------

    def held(self, held: Held) -> LoggedSession:
        """Write HELD. Raises LogUnavailable (no room, syncs fail, an epoch older than was promised): then
        nothing may go upstream."""
        session_id = held.ref.session_id
        if session_id in self._sessions:
            raise ValueError(f"session {session_id} is in the log already")
        if not self.promises.accepts(held.ref.bucket, held.ref.epoch):
            raise LogUnavailable("a newer epoch is promised")
        key = session_key(session_id)
        payload = encode(held)
        size_bytes = RECORD_HEADER_BYTES + len(payload)
        if size_bytes > HELD_BYTES_MAX:
            raise LogUnavailable("a session's facts are too long")
        reserved_bytes = size_bytes + USAGE_JSON_BYTES_MAX + CLOSE_BYTES_BESIDE + DONE_RECORD_BYTES
        segments = self._segments
        segments.copy_forward()
        if self._worker.sync_failing or not segments.has_room_for(size_bytes + reserved_bytes):
            raise LogUnavailable("sync fails" if self._worker.sync_failing else "no room")
        session = LoggedSession(self, held, key, self._slots.take() if held.stream else None)
        segments.append(HELD, payload, session)
        segments.reserved_bytes += reserved_bytes
        session._reserved_bytes = reserved_bytes
        self._sessions[session_id] = session
        return session

    def append_epoch(self, session: LoggedSession, payload: bytes) -> None:
        if self._segments.room_bytes < RECORD_HEADER_BYTES + len(payload):
            raise LogUnavailable("no room")
        self._segments.append(SEGMENT, payload, session)

    def append_close(self, session: LoggedSession, settle: Settle) -> None:
        segments = self._segments
        room_bytes = session._reserved_bytes - DONE_RECORD_BYTES
        payload = encode(Closed(settle, session.holds))
        excess_bytes = RECORD_HEADER_BYTES + len(payload) - room_bytes
        if excess_bytes > 0 and (
            excess_bytes > segments.room_bytes or len(payload) + RECORD_HEADER_BYTES > RECORD_BYTES_MAX
        ):
            record = msgspec.structs.replace(settle.record, usage_json="", flags=(SHORTENED,))
            payload = encode(Closed(msgspec.structs.replace(settle, record=record), session.holds))
            if RECORD_HEADER_BYTES + len(payload) > room_bytes:
                raise LogUnavailable("a session's record is too long")
        superseded = len(session.places)
        segments.reserved_bytes -= room_bytes
        session._reserved_bytes = DONE_RECORD_BYTES
        segments.append(CLOSE, payload, session)
        session.is_closed = True
        segments.forget(session, superseded)
        self._free_slot(session)

    def done(self, session_id: SessionId) -> None:
        """The ledger has the session, or its release is acknowledged. An unknown session is ignored."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        segments = self._segments
        segments.reserved_bytes -= session._reserved_bytes
        session._reserved_bytes = 0
        segments.append(DONE, session._key)
        segments.forget(session)
        self._free_slot(session)

    def promise(self, epochs: Mapping[int, int]) -> None:
        """Never to accept an older epoch of these buckets again; on disk when it returns: call it in a
        thread. Raises LogUnavailable: then nothing is promised."""
        try:
            self.promises.add(epochs)
        except OSError as error:
            raise LogUnavailable(str(error)) from error

    def close(self) -> None:
        """Sync and unlock; waits for the disk. A directory in which every session is done goes."""
        self._worker.stop()
        if self._sessions:
            self._directory.unlock()
        else:
            self._directory.remove()

    def _free_slot(self, session: LoggedSession) -> None:
        if session._slot is not None:
            self._slots.give_back(session._slot)
            session._slot = None
