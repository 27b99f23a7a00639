"""`python -m services.emulator`: the emulator as a process. docs/emulator.md lists the options."""

import argparse
import asyncio
import gc
import os
import resource
import signal
import socket
from pathlib import Path
from typing import Final

import uvloop
from aiohttp import web

from services.emulator.app import make_app
from services.emulator.fast import FastProtocol, new_totals
from services.emulator.script import Script

_BACKLOG: Final = 4096


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.emulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090, help="0 takes a free one")
    parser.add_argument("--ready-file", type=Path, help="the port is written here once it serves")
    parser.add_argument("--log-file", type=Path, help="one JSON line for each request")
    parser.add_argument("--api-key", action="append", help="let only these keys in (may be repeated)")
    parser.add_argument("--model", action="append", help="serve only these models (may be repeated)")
    parser.add_argument("--tokens", type=int, default=64, help="usual length of an answer")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="usual wait between two chunks")
    parser.add_argument("--fast", action="store_true", help="for benchmarks: no log, no faults")
    return parser


def _write_ready(file: Path, port: int) -> None:
    draft = file.with_name(file.name + ".part")
    draft.write_text(f"{port}\n")
    draft.replace(file)


def _allow_many_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    listener = socket.create_server(
        (options.host, options.port), backlog=_BACKLOG, family=_family(options.host)
    )
    port = listener.getsockname()[1]
    runner = None
    if options.fast:
        totals = new_totals()
        server = await loop.create_server(lambda: FastProtocol(totals), sock=listener, backlog=_BACKLOG)
    else:
        app = make_app(
            api_keys=frozenset(options.api_key) if options.api_key else None,
            models=frozenset(options.model) if options.model else None,
            log_file=options.log_file,
            defaults=Script(tokens=options.tokens, delay_ms=options.delay_ms),
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        await web.SockSite(runner, listener, backlog=_BACKLOG).start()
    gc.collect()
    gc.freeze()
    if options.ready_file is not None:
        _write_ready(options.ready_file, port)
    print(f"The emulator serves on http://{options.host}:{port}/v1 (process {os.getpid()})", flush=True)
    await stop.wait()
    if runner is not None:
        await runner.cleanup()
    else:
        server.close()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def main() -> None:
    options = _options().parse_args()
    _allow_many_connections()
    uvloop.run(_serve(options))


if __name__ == "__main__":
    main()
