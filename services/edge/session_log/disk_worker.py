"""The log's only thread: syncs, allocates ahead of need, deletes. Nobody waits for it.

Outage behaviour: a sync that fails is counted and tried again at the next interval, and `sync_failing`
stays true until one succeeds. An allocation that fails is counted and not tried again for a second.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Final

from services.common import logs
from services.edge.session_log.mapped_file import MappedFile

LOG = logs.get("edge.session_log")
SEGMENT_FILE: Final = "segment"
SLOTS_FILE: Final = "slots"
ALLOCATION_PAUSE_S: Final = 1.0
STOP_TIMEOUT_S: Final = 10.0


class DiskWorker:
    """`synced_s`: monotonic time at which the last complete sync began. `allocated_bytes`: of all files,
    those under way included; never above `bytes_max`."""

    def __init__(self, directory: Path, *, sync_interval_ms: int, bytes_max: int) -> None:
        self._directory = directory
        self._interval_s = sync_interval_ms / 1000
        self._bytes_max = bytes_max
        self._numbers = itertools.count(1)
        self._files: list[MappedFile] = []
        self._wanted: deque[tuple[str, int]] = deque()
        self._ready: dict[str, deque[MappedFile | tuple[OSError, int]]] = {
            SEGMENT_FILE: deque(),
            SLOTS_FILE: deque(),
        }
        self._pending = {SEGMENT_FILE: 0, SLOTS_FILE: 0}
        self._retired: deque[MappedFile] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._directory_dirty = True
        self._not_before_s = 0.0
        self.allocated_bytes = 0
        self.allocation_errors = 0
        self.allocation_failing = False
        self.sync_errors = 0
        self.sync_failing = False
        self.synced_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="session-log", daemon=True)

    # --- for the log's owner: one thread -------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def is_within_bounds(self, size_bytes: int) -> bool:
        return self.allocated_bytes + size_bytes <= self._bytes_max

    def may_allocate(self, size_bytes: int) -> bool:
        return self.is_within_bounds(size_bytes) and time.monotonic() >= self._not_before_s

    def allocate(self, kind: str, size_bytes: int) -> MappedFile:
        """At once, by the caller. Raises OSError."""
        try:
            file = self._make(kind, size_bytes)
        except OSError as error:
            self._failed(error)
            raise
        self.allocated_bytes += size_bytes
        self.allocation_failing = False
        return file

    def request(self, kind: str, size_bytes: int) -> None:
        """Allocate on the thread; `take_ready` has the file later."""
        self.allocated_bytes += size_bytes
        self._pending[kind] += 1
        self._wanted.append((kind, size_bytes))
        self._wake.set()

    def pending(self, kind: str) -> int:
        return self._pending[kind]

    def take_ready(self, kind: str) -> list[MappedFile]:
        ready, files = self._ready[kind], []
        while ready:
            item = ready.popleft()
            self._pending[kind] -= 1
            if isinstance(item, MappedFile):
                self.allocation_failing = False
                files.append(item)
            else:
                error, size_bytes = item
                self.allocated_bytes -= size_bytes
                self._failed(error)
        return files

    def retire(self, file: MappedFile) -> None:
        """Delete `file` after the next complete sync: what was copied out of it must be safe before."""
        self.allocated_bytes -= file.size_bytes
        self._files.remove(file)
        self._retired.append(file)

    def stop(self) -> None:
        """Sync everything once more and end the thread; files stay. Waits for the disk, with a bound."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            LOG.error("session log not synced at its end", timeout_s=STOP_TIMEOUT_S)
            return
        for file in (*self._files, *self._retired):
            file.close()

    def _failed(self, error: OSError) -> None:
        if not self.allocation_failing:
            LOG.error("session log not allocated", error=str(error))
        self.allocation_errors += 1
        self.allocation_failing = True
        self._not_before_s = time.monotonic() + ALLOCATION_PAUSE_S

    # --- the thread ----------------------------------------------------------------------------

    def _make(self, kind: str, size_bytes: int) -> MappedFile:
        file = MappedFile(self._directory / f"{kind}-{next(self._numbers):08d}", size_bytes)
        self._directory_dirty = True
        self._files.append(file)
        return file

    def _run(self) -> None:
        sync_at_s = time.monotonic() + self._interval_s
        while not self._stopping:
            self._wake.wait(max(0.0, sync_at_s - time.monotonic()))
            self._wake.clear()
            self._serve()
            if time.monotonic() >= sync_at_s:
                self.sync()
                sync_at_s = time.monotonic() + self._interval_s
        self._serve()
        self.sync()

    def _serve(self) -> None:
        while self._wanted:
            kind, size_bytes = self._wanted.popleft()
            try:
                self._ready[kind].append(self._make(kind, size_bytes))
            except OSError as error:
                self._ready[kind].append((error, size_bytes))

    def sync(self) -> None:
        began_s = time.monotonic()
        retired_count = len(self._retired)
        failure: OSError | None = None
        if self._directory_dirty:
            self._directory_dirty = False
            try:
                sync_directory(self._directory)
            except OSError as error:
                self._directory_dirty, failure = True, error
        for file in tuple(self._files):
            if file.dirty:
                try:
                    file.sync()
                except OSError as error:
                    failure = error
        if failure is None:
            self.synced_s = began_s
            self._delete(retired_count)
        else:
            self.sync_errors += 1
            if not self.sync_failing:
                LOG.error("session log not synced", error=str(failure))
        self.sync_failing = failure is not None

    def _delete(self, count: int) -> None:
        for _ in range(count):
            file = self._retired.popleft()
            try:
                file.remove()
            except OSError as error:
                LOG.warning("session log file not deleted", error=str(error))


def sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
