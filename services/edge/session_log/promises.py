"""Epochs that the edges of this volume promised: replies of older ones are refused, for good.

One file for all directories below a root: epochs only grow and mean the same to every edge, and a
promise must outlive the process and the directory of the edge that made it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

from services.common import logs
from services.edge.session_log.disk_worker import sync_directory

LOG = logs.get("edge.session_log")
FILE: Final = "promises"
LOCK_FILE: Final = "promises.lock"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[int, int]).decode


class Promises:
    """`epochs`: the least epoch to accept, by bucket. `is_damaged`: the file could not be read at start;
    ask the ledger for the current epochs before serving."""

    def __init__(self, root: Path, epochs: dict[int, int], *, is_damaged: bool = False) -> None:
        self._root = root
        self.epochs = epochs
        self.is_damaged = is_damaged

    @classmethod
    def load(cls, root: Path) -> Promises:
        """Raises OSError, but not for a file that isn't there or can't be understood."""
        epochs = _read(root / FILE)
        if epochs is None:
            LOG.error("promised epochs can't be read", file=FILE)
        return cls(root, epochs or {}, is_damaged=epochs is None)

    def accepts(self, bucket: int, epoch: int) -> bool:
        return epoch >= self.epochs.get(bucket, 0)

    def add(self, epochs: Mapping[int, int]) -> None:
        """In force and on disk when it returns. Raises OSError: not promised."""
        with _locked(self._root):
            merged = _newest(_read(self._root / FILE) or {}, _newest(self.epochs, epochs))
            payload = _encode(merged)
            file, new_file = self._root / FILE, self._root / f"{FILE}.new"
            with open(new_file, "wb") as out:
                out.write(crc32(payload).to_bytes(4, "little") + payload)
                out.flush()
                os.fsync(out.fileno())
            new_file.replace(file)
            sync_directory(self._root)
        self.epochs = merged


def _newest(first: Mapping[int, int], second: Mapping[int, int]) -> dict[int, int]:
    return {bucket: max(first.get(bucket, 0), second.get(bucket, 0)) for bucket in {*first, *second}}


def _read(file: Path) -> dict[int, int] | None:
    """None: not readable."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return {}
    if len(data) < 4 or int.from_bytes(data[:4], "little") != crc32(data[4:]):
        return None
    try:
        return _decode(data[4:])
    except msgspec.MsgspecError:
        return None


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    fd = os.open(root / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
