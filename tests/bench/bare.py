"""The yardstick: a pass-through proxy of aiohttp and uvloop that meters nothing.

`python -m tests.bench.bare --upstream http://127.0.0.1:9000 --ready-file F`. It is written as one would write
it for speed: no access log, no middlewares, plain answers in one piece, chunks passed on as they arrive.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from services.common.process import tune_garbage_collector

_UPSTREAM = web.AppKey("upstream", str)
_SESSION = web.AppKey("session", ClientSession)
_BODY_BYTES_MAX = 32 * 1024 * 1024


async def _pass_on(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    headers = {
        "authorization": request.headers.get("authorization", ""),
        "content-type": request.headers.get("content-type", "application/json"),
    }
    url = request.app[_UPSTREAM] + request.path
    async with request.app[_SESSION].post(url, data=body, headers=headers) as answer:
        content_type = answer.headers.get("content-type", "application/json")
        if not content_type.startswith("text/event-stream"):
            whole = await answer.read()
            return web.Response(status=answer.status, body=whole, headers={"content-type": content_type})
        response = web.StreamResponse(status=answer.status, headers={"content-type": content_type})
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


async def _session(app: web.Application) -> AsyncIterator[None]:
    connector = TCPConnector(limit=0, keepalive_timeout=60)
    async with ClientSession(
        connector=connector, timeout=ClientTimeout(total=None), auto_decompress=False
    ) as session:
        app[_SESSION] = session
        yield


async def _serve(upstream: str, ready_file: Path) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    app = web.Application(client_max_size=_BODY_BYTES_MAX)
    app[_UPSTREAM] = upstream
    app.cleanup_ctx.append(_session)
    app.router.add_post("/v1/chat/completions", _pass_on)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    tune_garbage_collector()
    draft = ready_file.with_suffix(".part")
    draft.write_text(str(runner.addresses[0][1]))
    draft.replace(ready_file)
    await stop.wait()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bare", description=__doc__)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--ready-file", type=Path, required=True)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(_serve(options.upstream, options.ready_file))


if __name__ == "__main__":
    main()
