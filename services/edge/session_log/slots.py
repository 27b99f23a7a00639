"""Progress of running streams: one small fixed slot each, used again by later ones.

A slot has two halves, written in turn, each with its version and CRC: a kill in the middle of an
update leaves the previous one. An update costs about a microsecond and no system call.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from services.edge.session_log.disk_worker import SLOTS_FILE, DiskWorker
from services.edge.session_log.mapped_file import LogUnavailable, MappedFile

HALF_BYTES: Final = 64
SLOT_BYTES: Final = 2 * HALF_BYTES
SENT_UPSTREAM: Final = 1
"""Flag: the request went out, output or not."""

_BODY: Final = struct.Struct("<Q16sQQQII")
_HALF: Final = struct.Struct("<56sI")
_ZEROS: Final = bytes(HALF_BYTES)


@dataclass(frozen=True, slots=True)
class Progress:
    """A slot's last whole update. `counted_tokens`: exact; `uncounted_bytes`: text since then.
    `held_nanos`: over all epochs. `torn`: the update after it, or the one before, is not whole."""

    version: int
    counted_tokens: int
    uncounted_bytes: int
    held_nanos: int
    seq: int
    flags: int
    torn: bool


class Slot:
    __slots__ = ("_file", "_map", "_offset", "_version")

    def __init__(self, file: MappedFile, offset: int) -> None:
        self._file = file
        self._map = file.map
        self._offset = offset
        self._version = 0

    def write(
        self, key: bytes, counted_tokens: int, uncounted_bytes: int, *, held_nanos: int, seq: int, flags: int
    ) -> None:
        """`key`: the session's 16 bytes."""
        version = self._version = self._version + 1
        body = _BODY.pack(version, key, counted_tokens, uncounted_bytes, held_nanos, seq, flags)
        _HALF.pack_into(self._map, self._offset + (version & 1) * HALF_BYTES, body, crc32(body))
        self._file.dirty = True


class SlotPool:
    """Free slots; another file of them is allocated when few are left."""

    def __init__(self, worker: DiskWorker, *, slots_per_file: int) -> None:
        """Raises OSError."""
        self._worker = worker
        self._file_bytes = slots_per_file * SLOT_BYTES
        self._low = max(1, slots_per_file // 4)
        self._free: list[Slot] = []
        self._add(worker.allocate(SLOTS_FILE, self._file_bytes))

    def take(self) -> Slot:
        """Raises LogUnavailable."""
        if len(self._free) < self._low:
            self._refill()
        return self._free.pop()

    def give_back(self, slot: Slot) -> None:
        self._free.append(slot)

    def _refill(self) -> None:
        worker, free = self._worker, self._free
        for file in worker.take_ready(SLOTS_FILE):
            self._add(file)
        if not free:
            if not worker.may_allocate(self._file_bytes):
                raise LogUnavailable("no room for slots")
            try:
                self._add(worker.allocate(SLOTS_FILE, self._file_bytes))
            except OSError as error:
                raise LogUnavailable(str(error)) from error
        is_low = len(free) < self._low and not worker.pending(SLOTS_FILE)
        if is_low and worker.may_allocate(self._file_bytes):
            worker.request(SLOTS_FILE, self._file_bytes)

    def _add(self, file: MappedFile) -> None:
        offsets = range(0, file.size_bytes, SLOT_BYTES)
        self._free.extend(Slot(file, offset) for offset in offsets)


def read_slots(data: bytes) -> tuple[dict[bytes, Progress], int]:
    """(progress by session key, how many halves are not whole). Never raises."""
    found: dict[bytes, Progress] = {}
    torn_count = 0
    for offset in range(0, len(data), SLOT_BYTES):
        halves = (data[offset : offset + HALF_BYTES], data[offset + HALF_BYTES : offset + SLOT_BYTES])
        whole = [fields for half in halves if (fields := _read_half(half)) is not None]
        torn = sum(bool(half.strip(b"\0")) for half in halves) - len(whole)
        torn_count += torn
        if whole:
            version, key, counted, uncounted, held_nanos, seq, flags = max(whole)
            found[key] = Progress(version, counted, uncounted, held_nanos, seq, flags, torn > 0)
    return found, torn_count


def _read_half(half: bytes) -> tuple[int, bytes, int, int, int, int, int] | None:
    if len(half) < _HALF.size or half == _ZEROS:
        return None
    body, crc = _HALF.unpack_from(half)
    if crc32(body) != crc:
        return None
    version, key, counted, uncounted, held_nanos, seq, flags = _BODY.unpack(body)
    return version, key, counted, uncounted, held_nanos, seq, flags
