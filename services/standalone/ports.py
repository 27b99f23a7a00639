"""Ports of 127.0.0.1: free ones, and the same ones again after a restart."""

import socket
from pathlib import Path

from services.standalone.data_directory import replace_file

LOOPBACK = "127.0.0.1"
_PORT_MAX = 65535


def is_port_free(port: int) -> bool:
    """Whether a server could listen on `port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections of an earlier run that are not yet forgotten do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def pick_free_port() -> int:
    """A port nobody listens on at this moment; another process may take it before its user does."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


def remembered_port(memory: Path) -> int:
    """The port written in the file `memory` while it is free, else a new one, which is written there."""
    port = _read_port(memory)
    if port is not None and is_port_free(port):
        return port
    return new_port(memory)


def new_port(memory: Path) -> int:
    """A free port, written to the file `memory`."""
    port = pick_free_port()
    replace_file(memory, f"{port}\n", mode=0o600)
    return port


def _read_port(memory: Path) -> int | None:
    try:
        text = memory.read_text().strip()
    except FileNotFoundError:
        return None
    return int(text) if text.isdecimal() and 0 < int(text) <= _PORT_MAX else None
