"""A TCP relay that keeps what passes: how many requests a client really sent, and what a server said."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_REQUEST_LINE = re.compile(rb"([A-Z]+) (/\S*) HTTP/1\.1\r\n")


@dataclass
class Relay:
    """Passes connections on to `target`. Bodies of requests must not hold a request line."""

    target: tuple[str, int]
    listener: socket.socket
    sent: list[bytearray] = field(default_factory=list)
    received: list[bytearray] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    @property
    def requests(self) -> list[str]:
        """`METHOD path` of every request, in the order of connections."""
        found = (match for one in self.sent for match in _REQUEST_LINE.finditer(bytes(one)))
        return [f"{match[1].decode()} {match[2].decode()}" for match in found]

    @property
    def replies(self) -> bytes:
        return b"".join(bytes(one) for one in self.received)

    def forget(self) -> None:
        for one in (*self.sent, *self.received):
            one.clear()

    def start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self.threads.append(thread)
        thread.start()

    def serve(self) -> None:
        while True:
            try:
                client, _address = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.target)
            self.sockets += (client, server)
            for source, sink, kept in ((client, server, self.sent), (server, client, self.received)):
                copy = bytearray()
                kept.append(copy)
                self.start(_pump, source, sink, copy)

    def stop(self) -> None:
        for one in (self.listener, *self.sockets):
            _shut(one)
        for thread in self.threads:
            thread.join(5)
        for one in self.sockets:
            one.close()


def _pump(source: socket.socket, sink: socket.socket, copy: bytearray) -> None:
    try:
        while data := source.recv(65_536):
            copy += data
            sink.sendall(data)
    except OSError:
        # One side was reset: so is the other.
        _shut(source)
        _shut(sink)
    else:
        _shut(sink, socket.SHUT_WR)


def _shut(one: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    with suppress(OSError):
        one.shutdown(how)


@contextmanager
def relay_to(url: str) -> Iterator[Relay]:
    """A relay to the server at `url`, which must be on this machine."""
    parts = urlsplit(url)
    assert parts.hostname == "127.0.0.1"
    assert parts.port is not None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        relay = Relay((parts.hostname, parts.port), listener)
        relay.start(relay.serve)
        yield relay
        relay.stop()
