"""Holds per second through one meter process: WebSocket, meter, Redis, all real; only the ledger is a test's.

    python -m tests.bench.meter_holds [--seconds 4] [--json FILE]

A closed loop of C calls in flight, sent as an edge does: what waits leaves as one frame. CPU is read
from /proc, because calls per second on a machine shared with the generator say little.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from aiohttp import web

from services.common.contracts.charging import Admitted, Call, Reply
from services.common.contracts.frames import decode_replies, encode_frame
from services.common.money import NANOS_PER_USD
from services.standalone.embedded_redis import EmbeddedRedis
from services.standalone.ports import new_port
from tests.integration.meter.edge_line import CREDENTIAL, open_call, settle_call
from tests.integration.meter.fake_ledger import FakeLedger

ROOT = Path(__file__).parents[2]
METER = "from services.common.process import run; from services.meter.main import main; run(main)"
CONCURRENCY = (1, 16, 64, 256)


class Line:
    """A socket whose writer takes all calls that wait at once."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._unsent: list[tuple[int, Call]] = []
        self._wake = asyncio.Event()
        self._next = 0
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    def call(self, call: Call) -> asyncio.Future[Reply]:
        self._next += 1
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[self._next] = future
        self._unsent.append((self._next, call))
        self._wake.set()
        return future

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            unsent, self._unsent = self._unsent, []
            await self._socket.send_bytes(encode_frame(unsent))

    async def _read(self) -> None:
        async for message in self._socket:
            for call_id, reply in decode_replies(message.data):
                self._waiting.pop(call_id).set_result(reply)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def stack(ledger: FakeLedger, folder: Path) -> AsyncIterator[tuple[str, int, int]]:
    """(meter's URL, its pid, Redis's pid)."""
    redis = EmbeddedRedis(folder / "redis", shared_root=folder / "shared", append_only=True)
    await redis.start()
    runner = web.AppRunner(ledger.make_app())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = new_port(folder / "meter-port")
    environment = {
        **os.environ,
        "METERWAY_INTERNAL_CREDENTIAL": CREDENTIAL,
        "REDIS_URL": redis.meter_url,
        "METERWAY_LEDGER_URLS": f"http://127.0.0.1:{runner.addresses[0][1]}",
        "METERWAY_METER_PORT": str(port),
        "METERWAY_LOG_LEVEL": "ERROR",
    }
    meter = await asyncio.create_subprocess_exec(sys.executable, "-c", METER, cwd=ROOT, env=environment)
    try:
        yield f"http://127.0.0.1:{port}", meter.pid, redis.pid
    finally:
        meter.terminate()
        await meter.wait()
        await runner.cleanup()
        await redis.stop("immediate")


async def until_ready(http: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(f"{url}/readyz") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.05)


async def measure(
    line: Line, key: Any, *, settles: bool, concurrency: int, seconds: float, pids: tuple[int, int]
) -> dict[str, float]:
    latencies: list[float] = []
    calls = 0
    ends_at = time.perf_counter() + seconds

    async def work() -> None:
        nonlocal calls
        while time.perf_counter() < ends_at:
            call = open_call(key)
            started = time.perf_counter()
            reply = await line.call(call)
            latencies.append(time.perf_counter() - started)
            calls += 1
            if not isinstance(reply, Admitted):
                raise RuntimeError(f"not admitted: {reply}")
            if settles:
                await line.call(settle_call(reply, output_tokens=20))
                calls += 1

    before = [cpu_seconds(pid) for pid in pids]
    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    elapsed = time.perf_counter() - started
    meter_s, redis_s = (cpu_seconds(pid) - then for pid, then in zip(pids, before, strict=True))
    return {
        "in_flight": concurrency,
        "holds_per_s": round(len(latencies) / elapsed),
        "p50_us": round(statistics.median(latencies) * 1e6),
        "p99_us": round(statistics.quantiles(latencies, n=100)[98] * 1e6),
        "meter_cpu_us_per_call": round(meter_s / calls * 1e6, 1),
        "redis_cpu_us_per_call": round(redis_s / calls * 1e6, 1),
    }


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ledger = FakeLedger()
    key = ledger.add_key(ledger.add_account("bench", 4_000_000 * NANOS_PER_USD))
    results: dict[str, list[dict[str, float]]] = {"open": [], "open_and_settle": []}
    with tempfile.TemporaryDirectory(prefix="meterway-bench-") as name:
        folder = Path(name)
        os.chmod(folder, 0o711)
        async with (
            stack(ledger, folder) as (url, *pids),
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {CREDENTIAL}"}) as http,
        ):
            await until_ready(http, url)
            socket = await http.ws_connect(f"{url}/internal/v1/charging", max_msg_size=0, compress=0)
            line = Line(socket)
            for what, figures in results.items():
                print(f"{what}:")
                for concurrency in CONCURRENCY:
                    figures.append(
                        await measure(
                            line, key, settles=what != "open", concurrency=concurrency,
                            seconds=arguments.seconds, pids=(pids[0], pids[1]),
                        )
                    )  # fmt: skip
                    print("  " + "  ".join(f"{name} {value}" for name, value in figures[-1].items()))
            line.close()
            await socket.close()
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    uvloop.run(main())
