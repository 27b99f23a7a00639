"""One pipelined connection to one Redis node.

Calls that are made in the same turn of the event loop leave in one write; replies come in order.
Outage behaviour: when the connection is lost, or the oldest call is not answered in time, every
pending call fails with StoreUnavailable (whether Redis executed it can't be known), and the link
reconnects with back-off. Nothing is sent twice by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from time import perf_counter
from typing import Any, Final

import hiredis

from services.common import logs
from services.meter.metrics import MeterMetrics
from services.meter.redis_address import RedisAddress
from services.meter.scripts import Script

LOG = logs.get("meter.redis_link")
PENDING_MAX: Final = 16_384
BACKOFF_MS: Final = (20, 50, 100, 250, 500, 1_000)
_TICK_S: Final = 0.05
_INCOMPLETE: Final = object()
_RUN_ID = re.compile(rb"run_id:([0-9a-f]+)")

Argument = str | bytes | int


class StoreUnavailable(Exception):
    """Redis did not answer, or answered that it can't."""


class _Connection(asyncio.Protocol):
    def __init__(self, on_lost: Callable[[], None]) -> None:
        self._on_lost = on_lost
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self.pending: deque[tuple[float, asyncio.Future[Any]]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def send(self, packed: bytes, deadline: float) -> asyncio.Future[Any]:
        if self._transport is None or len(self.pending) >= PENDING_MAX:
            raise StoreUnavailable("too many calls are waiting for Redis")
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(packed)
        future: asyncio.Future[Any] = self._loop.create_future()
        self.pending.append((deadline, future))
        return future

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport is not None:
            self._transport.write(b"".join(unsent))

    def data_received(self, data: bytes) -> None:
        reader, pending = self._reader, self.pending
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not _INCOMPLETE:
                future = pending.popleft()[1]
                if not future.done():
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            LOG.error("Redis sent something that is no reply")
            self.abort()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        failure = StoreUnavailable("the connection to Redis was lost")
        while self.pending:
            future = self.pending.popleft()[1]
            if not future.done():
                future.set_exception(failure)
                # A caller that gave up never asks.
                future.exception()
        self._on_lost()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class RedisLink:
    """The link to one node; `keep_connected` must run for it to work."""

    def __init__(
        self,
        address: RedisAddress,
        scripts: Iterable[Script],
        metrics: MeterMetrics,
        *,
        timeout_ms: int,
    ) -> None:
        self._address = address
        self._scripts = tuple(scripts)
        self._metrics = metrics
        self._timeout_s = timeout_ms / 1000
        self._connection: _Connection | None = None
        self._lost = asyncio.Event()
        self.is_up = False

    async def keep_connected(
        self, on_connected: Callable[[str], Coroutine[None, None, None]], on_lost: Callable[[], None]
    ) -> None:
        """Connect, and again whenever the connection is lost; `on_connected` gets the node's run_id.

        Runs until cancelled.
        """
        failures = 0
        try:
            while True:
                try:
                    run_id = await self._connect()
                except (OSError, StoreUnavailable, TimeoutError) as error:
                    LOG.warning("Redis can't be reached", redis=repr(self._address), error=str(error))
                    self._drop()
                    await asyncio.sleep(BACKOFF_MS[min(failures, len(BACKOFF_MS) - 1)] / 1000)
                    failures += 1
                    continue
                failures = 0
                self.is_up = True
                LOG.info("connected to Redis", redis=repr(self._address), run_id=run_id)
                # Beside the watch: it may wait for the ledger, and the connection may be lost meanwhile.
                check = asyncio.create_task(on_connected(run_id))
                try:
                    await self._watch()
                finally:
                    check.cancel()
                    self.is_up = False
                    on_lost()
        finally:
            self._drop()

    async def call(self, *words: Argument) -> Any:
        """One command. Raises StoreUnavailable."""
        return _checked(await self._send(words))

    async def call_many(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Commands that leave in one write; their replies in order. Raises StoreUnavailable."""
        futures = [self._send(words) for words in commands]
        return [_checked(reply) for reply in await asyncio.gather(*futures)]

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> list[Any]:
        """Run a script; loaded again when Redis has forgotten it. Raises StoreUnavailable."""
        started = perf_counter()
        reply = await self._send(("EVALSHA", script.sha, len(keys), *keys, *arguments))
        if type(reply) is hiredis.ReplyError and str(reply).startswith("NOSCRIPT"):
            reply = await self._send(("EVAL", script.source, len(keys), *keys, *arguments))
        self._metrics.script_seconds[script.verb].observe(perf_counter() - started)
        if type(reply) is list:
            return reply
        if type(reply) is hiredis.ReplyError:
            LOG.error("Redis refused a script", verb=script.verb, error=str(reply)[:200])
            if str(reply).startswith(("READONLY", "MOVED")) and self._connection is not None:
                # The node is no master any more: connect anew.
                self._connection.abort()
        raise StoreUnavailable(f"Redis could not run {script.verb}")

    def _send(self, words: Sequence[Argument]) -> asyncio.Future[Any]:
        connection = self._connection
        if connection is None:
            raise StoreUnavailable("Redis is not connected")
        packed = hiredis.pack_command(tuple(words))  # type: ignore[arg-type]
        return connection.send(packed, perf_counter() + self._timeout_s)

    async def _connect(self) -> str:
        address, loop = self._address, asyncio.get_running_loop()
        self._lost.clear()

        def protocol() -> _Connection:
            return _Connection(self._lost.set)

        async with asyncio.timeout(self._timeout_s):
            if address.unix_path:
                _, connection = await loop.create_unix_connection(protocol, address.unix_path)
            else:
                _, connection = await loop.create_connection(
                    protocol, address.host, address.port, ssl=address.tls_context()
                )
            self._connection = connection
            if address.password:
                await self.call("AUTH", address.username or "default", address.password)
            if address.database:
                await self.call("SELECT", address.database)
            await self.call_many([("SCRIPT", "LOAD", script.source) for script in self._scripts])
            found = _RUN_ID.search(await self.call("INFO", "server"))
        if found is None:
            raise StoreUnavailable("Redis does not tell its run_id")
        return found[1].decode()

    async def _watch(self) -> None:
        """Until the connection is lost; ends it when its oldest call is overdue."""
        connection = self._connection
        while connection is not None and not self._lost.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), _TICK_S)
            if connection.pending and connection.pending[0][0] < perf_counter():
                LOG.warning("Redis did not answer in time", redis=repr(self._address))
                self._metrics.redis_timeouts += 1
                connection.abort()
                await self._lost.wait()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self.is_up = False
        if connection is not None:
            connection.abort()


def _checked(reply: Any) -> Any:
    if isinstance(reply, hiredis.ReplyError):
        raise StoreUnavailable(f"Redis answered: {str(reply)[:200]}")
    return reply
