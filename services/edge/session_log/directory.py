"""One locked directory per edge process, below a root that several may share.

A process never writes into a directory that another one left sessions in: it takes the next name,
and whoever finds the other one unlocked ships it. The lock is the kernel's: it ends with its process.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final
from urllib.parse import quote

from services.common.ids import EdgeId
from services.edge.session_log.disk_worker import sync_directory
from services.edge.session_log.recovery import RecoveredLog, read_log

LOCK_FILE: Final = "lock"
PREFIX: Final = "edge-"
DIRECTORIES_MAX: Final = 1_000


class LockedDirectory:
    """`path` is this process's alone until `unlock` or `remove`."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd = lock_fd

    def files(self) -> list[Path]:
        return [file for file in self.path.iterdir() if file.name != LOCK_FILE]

    def unlock(self) -> None:
        """Leave everything to the next one who locks it."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def remove(self) -> None:
        """Delete everything, the lock last. Raises OSError; then it is unlocked and the rest is there."""
        try:
            for file in self.files():
                file.unlink(missing_ok=True)
            (self.path / LOCK_FILE).unlink(missing_ok=True)
            try:
                self.path.rmdir()
                sync_directory(self.path.parent)
            except OSError:
                # Somebody makes a new lock in it just now: it is theirs.
                pass
        finally:
            self.unlock()


def try_lock(path: Path) -> LockedDirectory | None:
    """None: somebody has it, or it is gone."""
    file = path / LOCK_FILE
    try:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between open and flock its owner may have deleted it: then this locks nothing.
        if os.fstat(fd).st_ino == os.stat(file).st_ino:
            return LockedDirectory(path, fd)
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def lock_directory(root: Path, edge_id: EdgeId) -> LockedDirectory:
    """The first directory of this edge that nobody has and nothing is left in. Raises OSError."""
    name = PREFIX + quote(edge_id, safe="")
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    for number in range(1, DIRECTORIES_MAX + 1):
        path = root / (name if number == 1 else f"{name}.{number}")
        path.mkdir(exist_ok=True, mode=0o700)
        locked = try_lock(path)
        if locked is None:
            continue
        if not locked.files():
            sync_directory(root)
            return locked
        locked.unlock()
    raise OSError(f"all {DIRECTORIES_MAX} directories of this edge's log are locked or hold sessions")


class AbandonedLog:
    """A dead process's log, locked by this one until `remove` or `unlock`. For a thread: it reads files."""

    def __init__(self, directory: LockedDirectory) -> None:
        self._directory = directory

    @property
    def path(self) -> Path:
        return self._directory.path

    def read(self) -> RecoveredLog:
        return read_log(self._directory.path)

    def remove(self) -> None:
        """When every session in it is in the ledger or released. Raises OSError."""
        self._directory.remove()

    def unlock(self) -> None:
        self._directory.unlock()


def abandoned(root: Path) -> list[AbandonedLog]:
    """The logs below `root` that nobody locks, locked for the caller. Empty ones are deleted.

    Includes what this edge's own former processes left. Raises OSError.
    """
    found = []
    for path in sorted(root.glob(f"{PREFIX}*")):
        locked = try_lock(path)
        if locked is None:
            continue
        if locked.files():
            found.append(AbandonedLog(locked))
        else:
            locked.remove()
    return found
