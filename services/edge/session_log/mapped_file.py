"""Files of the log: allocated in full, then written through a mapping.

Writing into a hole of a full disk through a mapping is SIGBUS; an allocated file has no holes, so
a full disk shows when the file is made.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from services.common.errors import Unavailable


class LogUnavailable(Unavailable):
    """The gateway can't record requests right now. Nothing was charged. Please try again shortly."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(retry_after_ms=1_000)


class MappedFile:
    """A preallocated file. `dirty`: written since the last sync began."""

    __slots__ = ("dirty", "fd", "map", "path", "size_bytes")

    def __init__(self, path: Path, size_bytes: int) -> None:
        """Raises OSError (disk full, size limit); then there is no file."""
        self.path = path
        self.size_bytes = size_bytes
        self.dirty = True
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(self.fd, 0, size_bytes)
            self.map = mmap.mmap(self.fd, size_bytes)
        except (OSError, ValueError):
            os.close(self.fd)
            path.unlink(missing_ok=True)
            raise

    def sync(self) -> None:
        # Before the sync, not after it: what is written meanwhile is dirty again.
        self.dirty = False
        try:
            os.fdatasync(self.fd)
        except OSError:
            self.dirty = True
            raise

    def close(self) -> None:
        self.map.close()
        os.close(self.fd)

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)
