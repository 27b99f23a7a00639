"""The records' files: append, keep room for what running sessions still have to write, copy forward, drop.

Segments are used and dropped in order. A session lives in the segments that hold a record recovery
would need; the oldest segment goes when nobody lives in it. Sessions that stay long are copied
forward, a few at each new session, so that one long stream doesn't keep every segment behind it.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from services.edge.session_log.disk_worker import SEGMENT_FILE, DiskWorker
from services.edge.session_log.mapped_file import LogUnavailable, MappedFile
from services.edge.session_log.records import (
    RECORD_BYTES_MAX,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    frame,
    segment_header,
)

COPIES_A_TURN: Final = 4
COPIES_A_REFUSAL: Final = 64
SEGMENT_BYTES_MIN: Final = 4 * RECORD_BYTES_MAX


class Segment:
    __slots__ = ("end", "file", "live", "live_bytes", "map", "size_bytes")

    def __init__(self, file: MappedFile, sequence: int, first_number: int) -> None:
        self.file = file
        self.map = file.map
        self.size_bytes = file.size_bytes
        self.end = SEGMENT_HEADER_BYTES
        self.live: dict[Owner, None] = {}
        self.live_bytes = 0
        self.map[:SEGMENT_HEADER_BYTES] = segment_header(sequence, first_number)
        file.dirty = True


class Place(NamedTuple):
    segment: Segment
    offset: int
    size_bytes: int
    kind: int


class Owner:
    """Whoever needs records kept. `places`: where they are."""

    __slots__ = ("places",)

    def __init__(self) -> None:
        self.places: list[Place] = []


class Segments:
    """`reserved_bytes`: promised to sessions that run, for the records that end them."""

    def __init__(self, worker: DiskWorker, *, segment_bytes: int) -> None:
        """Raises OSError."""
        self._worker = worker
        self._segment_bytes = segment_bytes
        self._usable_bytes = segment_bytes - SEGMENT_HEADER_BYTES - RECORD_BYTES_MAX
        # Copying forward needs room of its own, or a full log could never get smaller.
        self._headroom_bytes = segment_bytes // 2
        self._number = 0
        self._sequence = 0
        self._segments: deque[Segment] = deque()
        self._spares: deque[MappedFile] = deque()
        self.reserved_bytes = 0
        self._current = self._activate(worker.allocate(SEGMENT_FILE, segment_bytes))

    @property
    def count(self) -> int:
        return len(self._segments)

    @property
    def room_bytes(self) -> int:
        """What may be appended without touching what is reserved. A segment's end may stay unused."""
        current = self._current
        rest = current.size_bytes - current.end - RECORD_BYTES_MAX
        return max(0, rest) + len(self._spares) * self._usable_bytes - self.reserved_bytes

    # --- room ----------------------------------------------------------------------------------

    def has_room_for(self, size_bytes: int) -> bool:
        """Whether a new session may take `size_bytes`; makes room if that can be done."""
        room_bytes = self.room_bytes - self._headroom_bytes
        if room_bytes < self._segment_bytes:
            self._spares.extend(self._worker.take_ready(SEGMENT_FILE))
            self._allocate_ahead()
            room_bytes = self.room_bytes - self._headroom_bytes
        while room_bytes < size_bytes:
            if not self._worker.may_allocate(self._segment_bytes):
                self.copy_forward(COPIES_A_REFUSAL)
                return False
            try:
                self._spares.append(self._worker.allocate(SEGMENT_FILE, self._segment_bytes))
            except OSError:
                return False
            room_bytes = self.room_bytes - self._headroom_bytes
        return True

    def _allocate_ahead(self) -> None:
        missing_bytes = self._segment_bytes + self._headroom_bytes - self.room_bytes
        missing = -(-missing_bytes // self._usable_bytes) - self._worker.pending(SEGMENT_FILE)
        while missing > 0 and self._worker.may_allocate(self._segment_bytes):
            self._worker.request(SEGMENT_FILE, self._segment_bytes)
            missing -= 1

    # --- records -------------------------------------------------------------------------------

    def append(self, kind: int, payload: bytes, owner: Owner | None = None) -> None:
        """The caller has made sure of the room, or had it reserved. Raises LogUnavailable if not."""
        size_bytes = RECORD_HEADER_BYTES + len(payload)
        segment = self._current
        if segment.end + size_bytes > segment.size_bytes:
            segment = self._rotate()
        offset = segment.end
        segment.map[offset : offset + size_bytes] = frame(kind, self._number, payload)
        self._number += 1
        segment.end = offset + size_bytes
        segment.file.dirty = True
        if owner is not None:
            owner.places.append(Place(segment, offset, size_bytes, kind))
            segment.live[owner] = None
            segment.live_bytes += size_bytes

    def forget(self, owner: Owner, count: int | None = None) -> None:
        """The first `count` records (None: all) of `owner` are not needed any more."""
        places = owner.places
        gone = places[:count]
        del places[:count]
        for place in gone:
            place.segment.live_bytes -= place.size_bytes
            if not any(kept.segment is place.segment for kept in places):
                place.segment.live.pop(owner, None)
        self._drop()

    def _activate(self, file: MappedFile) -> Segment:
        self._sequence += 1
        segment = Segment(file, self._sequence, self._number)
        self._segments.append(segment)
        self._current = segment
        return segment

    def _rotate(self) -> Segment:
        if not self._spares:
            self._spares.extend(self._worker.take_ready(SEGMENT_FILE))
        if not self._spares:
            raise LogUnavailable("no room")
        segment = self._activate(self._spares.popleft())
        self._drop()
        return segment

    def _drop(self) -> None:
        segments = self._segments
        while len(segments) > 1 and not segments[0].live:
            self._worker.retire(segments.popleft().file)

    # --- copying forward -----------------------------------------------------------------------

    def copy_forward(self, count: int = COPIES_A_TURN) -> None:
        """Move up to `count` sessions out of the oldest segment, if that is worth it."""
        oldest = self._segments[0]
        if oldest is self._current or not self._is_worth_copying(oldest):
            return
        while count > 0 and oldest.live:
            owner, _ = oldest.live.popitem()
            here = [place for place in owner.places if place.segment is oldest]
            size_bytes = sum(place.size_bytes for place in here)
            if self.room_bytes < size_bytes:
                oldest.live[owner] = None
                break
            for place in here:
                payload = oldest.map[place.offset + RECORD_HEADER_BYTES : place.offset + place.size_bytes]
                self.append(place.kind, payload, owner)
            owner.places[:] = [place for place in owner.places if place.segment is not oldest]
            oldest.live_bytes -= size_bytes
            count -= 1
        self._drop()

    def _is_worth_copying(self, oldest: Segment) -> bool:
        if self._worker.allocation_failing or not self._worker.is_within_bounds(self._segment_bytes):
            return oldest.live_bytes * 2 <= oldest.size_bytes
        return len(self._segments) > 2 and oldest.live_bytes * 4 <= oldest.size_bytes
