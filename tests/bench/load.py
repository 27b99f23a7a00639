"""The load generator, a process of its own: `python -m tests.bench.load`.

A job is a line of JSON on its input, its result a line of JSON on its output. It takes the CPU of the
measured processes itself, right before the first byte and a moment after the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import resource
import sys
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any

import uvloop

from tests.bench import procfs
from tests.bench.client import Connection, Seen
from tests.bench.figures import percentile

_CONNECTING_AT_ONCE = 200
_FINISH_SECONDS_MAX = 60.0
_PAUSE_SECONDS = 0.3
# libuv's timers tick in milliseconds, so what is due leaves a little late even when nothing is wrong.
_LATE_SECONDS = 0.003


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run. Closed loop: `connections` for `seconds`. Open loop: `total` requests at `rate` per second."""

    host: str
    port: int
    request: str
    # A short one of the same shape, whatever is measured.
    warm_up_request: str
    expected_events: int | None
    subject_pids: list[int]
    subject_names: dict[str, str] = field(default_factory=dict)
    mock_pids: list[int] = field(default_factory=list)
    connections: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    total: int = 0
    warm_up_seconds: float = 0.3
    tail_seconds: float = 0.7
    # When all streams are open, so that memory can be read: seconds after the start.
    memory_after_seconds: float | None = None
    # One more request, sent alone while the others run.
    side_request: str = ""
    side_after_seconds: float = 0.0


@dataclass(kw_only=True)
class Result:
    """What a run gave. `others_busy`: cores that processes outside this benchmark kept busy."""

    requests: int
    seconds: float
    cpu_seconds: float
    cpu_seconds_by_name: dict[str, float]
    events: int
    body_bytes: int
    failures: dict[str, int]
    latency_p50_ms: float
    latency_p99_ms: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    gap_p99_ms: float
    gap_most_ms: float
    late_share: float
    client_busy: float
    mock_busy: float
    others_busy: float
    memory_before_kib: int = 0
    memory_open_kib: int = 0
    # How many streams had begun when the memory was read.
    memory_streams: int = 0
    side_latency_ms: float = 0.0


class Run:
    """One job while it runs."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.seen = Seen()
        self.loop = asyncio.get_running_loop()
        self.request = self.asking = (job.request.encode("latin-1"), job.expected_events)
        self.connections: list[Connection] = []
        self.idle: list[Connection] = []
        self.stop_at = 0.0
        self.unfinished = 0
        self.late = 0
        self.finished = asyncio.Event()
        self.memory_before_kib = 0
        self.memory_open_kib = 0
        self.memory_streams = 0
        self.side_seen = Seen()

    async def measure(self) -> Result:
        job = self.job
        await self._connect(job.connections or min(job.total, 32))
        await self._closed((job.warm_up_request.encode("latin-1"), None), job.warm_up_seconds)
        await asyncio.sleep(_PAUSE_SECONDS)
        self.seen.forget()
        if job.memory_after_seconds is not None:
            self.memory_before_kib = procfs.memory_kib(job.subject_pids)
        gc.collect()
        gc.disable()
        names = {int(pid): name for pid, name in job.subject_names.items()}
        busy_before, mock_before = procfs.machine_busy_seconds(), _sum(job.mock_pids)
        cpu_before, client_before = procfs.cpu_seconds_by_name(job.subject_pids, names), process_time()
        started_at = perf_counter()
        sides = asyncio.gather(self._read_memory(), self._ask_aside())
        if job.rate:
            await self._open()
        else:
            await self._closed(self.request, job.seconds)
        seconds = perf_counter() - started_at
        client_seconds, mock_seconds = process_time() - client_before, _sum(job.mock_pids) - mock_before
        await asyncio.sleep(job.tail_seconds)
        cpu_after = procfs.cpu_seconds_by_name(job.subject_pids, names)
        wall = perf_counter() - started_at
        busy_seconds = procfs.machine_busy_seconds() - busy_before
        gc.enable()
        await sides
        cpu = {name: cpu_after[name] - cpu_before.get(name, 0.0) for name in cpu_after}
        others_seconds = max(0.0, busy_seconds - sum(cpu.values()) - client_seconds - mock_seconds)
        for connection in self.connections:
            connection.close()
        return self._result(
            seconds, cpu, client_seconds / seconds, mock_seconds / seconds, others_seconds / wall
        )

    def _result(
        self, seconds: float, cpu: dict[str, float], client_busy: float, mock_busy: float, others_busy: float
    ) -> Result:
        seen = self.seen
        for why, count in self.side_seen.failures.items():
            seen.failures[f"beside: {why}"] = count
        latencies, first = seen.latencies or [0.0], seen.first_byte_times or [0.0]
        gaps = seen.gaps or [0.0]
        return Result(
            requests=len(seen.latencies),
            seconds=seconds,
            cpu_seconds=sum(cpu.values()),
            cpu_seconds_by_name=cpu,
            events=seen.events,
            body_bytes=seen.body_bytes,
            failures=seen.failures,
            latency_p50_ms=percentile(latencies, 0.5) * 1e3,
            latency_p99_ms=percentile(latencies, 0.99) * 1e3,
            ttft_p50_ms=percentile(first, 0.5) * 1e3,
            ttft_p99_ms=percentile(first, 0.99) * 1e3,
            gap_p99_ms=percentile(gaps, 0.99) * 1e3,
            gap_most_ms=max(gaps) * 1e3,
            late_share=self.late / max(1, self.job.total),
            client_busy=client_busy,
            mock_busy=mock_busy,
            others_busy=others_busy,
            memory_before_kib=self.memory_before_kib,
            memory_open_kib=self.memory_open_kib,
            memory_streams=self.memory_streams,
            side_latency_ms=max(self.side_seen.latencies, default=0.0) * 1e3,
        )

    async def _new_connection(self) -> Connection:
        job = self.job
        _, connection = await self.loop.create_connection(
            lambda: Connection(self.seen, self._done), job.host, job.port
        )
        self.connections.append(connection)
        return connection

    async def _connect(self, count: int) -> None:
        for start in range(0, count, _CONNECTING_AT_ONCE):
            batch = range(start, min(count, start + _CONNECTING_AT_ONCE))
            self.idle += await asyncio.gather(*(self._new_connection() for _ in batch))

    def _done(self, connection: Connection) -> None:
        if perf_counter() < self.stop_at and connection.is_open:
            connection.ask(*self.asking)
            return
        if connection.is_open:
            self.idle.append(connection)
        self.unfinished -= 1
        if self.unfinished == 0:
            self.finished.set()

    async def _closed(self, request: tuple[bytes, int | None], seconds: float) -> None:
        """Each connection asks again as soon as it is answered."""
        self.asking = request
        self.finished.clear()
        self.stop_at = perf_counter() + seconds
        connections, self.idle = self.idle, []
        self.unfinished = len(connections)
        for connection in connections:
            connection.ask(*request)
        await self._finish(seconds)

    async def _open(self) -> None:
        """Requests leave at their time whether or not earlier ones are answered."""
        job = self.job
        self.finished.clear()
        self.stop_at = 0.0
        self.unfinished = job.total
        opening: set[asyncio.Task[None]] = set()
        started_at = perf_counter()
        sent = 0
        while sent < job.total:
            elapsed = perf_counter() - started_at
            due = min(job.total, int(elapsed * job.rate) + 1)
            for number in range(sent, due):
                self.late += elapsed - number / job.rate > _LATE_SECONDS
                if self.idle:
                    self.idle.pop().ask(*self.request)
                else:
                    task = asyncio.create_task(self._connect_and_ask())
                    opening.add(task)
                    task.add_done_callback(opening.discard)
            sent = due
            await asyncio.sleep(0.001)
        await self._finish(job.total / job.rate)

    async def _connect_and_ask(self) -> None:
        # The time it takes is the client's own affair: the clock of the request starts when it is sent.
        connection = await self._new_connection()
        connection.ask(*self.request)

    async def _finish(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.finished.wait(), seconds + _FINISH_SECONDS_MAX)
        except TimeoutError:
            for connection in self.connections:
                if connection.busy:
                    connection.busy = False
                    self.seen.fail("no end of the answer")

    async def _read_memory(self) -> None:
        if self.job.memory_after_seconds is not None:
            await asyncio.sleep(self.job.memory_after_seconds)
            self.memory_streams = sum(connection.is_streaming for connection in self.connections)
            # On a thread: the streams go on meanwhile.
            self.memory_open_kib = await asyncio.to_thread(procfs.memory_kib, self.job.subject_pids)

    async def _ask_aside(self) -> None:
        job = self.job
        if not job.side_request:
            return
        await asyncio.sleep(job.side_after_seconds)
        done = asyncio.Event()
        _, connection = await self.loop.create_connection(
            lambda: Connection(self.side_seen, lambda _: done.set()), job.host, job.port
        )
        connection.ask(job.side_request.encode("latin-1"), None)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), _FINISH_SECONDS_MAX)
        connection.close()


def _sum(pids: list[int]) -> float:
    return sum(procfs.cpu_seconds_by_name(pids).values())


async def _measure(fields: dict[str, Any]) -> Result:
    return await Run(Job(**fields)).measure()


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for line in sys.stdin:
        result = uvloop.run(_measure(json.loads(line)))
        print(json.dumps(dataclasses.asdict(result)), flush=True)


if __name__ == "__main__":
    main()
