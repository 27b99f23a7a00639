"""Run one service process: uvloop, garbage collector, listeners, signals, drain."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import uvloop
from aiohttp import web

from services.common import logs

LOG = logs.get("common.process")
Main = Callable[[], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Listener:
    """An app on an address. `reuse_port`: several processes share the port. `closes_on_drain`: stop
    accepting when the drain begins, not at its end."""

    app: web.Application
    host: str
    port: int
    reuse_port: bool = False
    max_line_bytes: int = 8190
    max_field_bytes: int = 8190
    handler_cancellation: bool = False
    keepalive_s: float = 75.0
    backlog: int = 1024
    closes_on_drain: bool = False


def tune_garbage_collector() -> None:
    """After start-up nothing of it dies: keep it out of every later collection, and collect less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


async def serve(
    listeners: Sequence[Listener],
    *,
    on_ready: Callable[[], Awaitable[None]] | None = None,
    drain: Callable[[], Awaitable[None]] | None = None,
    drain_seconds: float = 30.0,
) -> None:
    """Serve until SIGTERM or SIGINT, then `drain` (bounded by `drain_seconds`) and close."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    runners = [await _start(listener) for listener in listeners]
    tune_garbage_collector()
    if on_ready is not None:
        await on_ready()
    await stop.wait()
    LOG.info("draining", seconds=drain_seconds)
    for listener, runner in zip(listeners, runners, strict=True):
        if listener.closes_on_drain:
            for site in tuple(runner.sites):
                await site.stop()
    if drain is not None:
        try:
            await asyncio.wait_for(drain(), drain_seconds)
        except TimeoutError:
            LOG.warning("drain took too long", seconds=drain_seconds)
    for runner in runners:
        await runner.cleanup()


async def _start(listener: Listener) -> web.AppRunner:
    runner = web.AppRunner(
        listener.app,
        access_log=None,
        handle_signals=False,
        handler_cancellation=listener.handler_cancellation,
        keepalive_timeout=listener.keepalive_s,
        max_line_size=listener.max_line_bytes,
        max_field_size=listener.max_field_bytes,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    site = web.SockSite(runner, _bind(listener), backlog=listener.backlog)
    await site.start()
    return runner


def _bind(listener: Listener) -> socket.socket:
    family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listener.reuse_port:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.bind((listener.host, listener.port))
    server.setblocking(False)
    return server


def run(main: Main) -> None:
    """Run `main` on uvloop to its end."""

    async def entry() -> None:
        await main()

    uvloop.run(entry())
