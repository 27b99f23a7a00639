"""The processes that `meterway up` keeps alive, and how one is started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import aiohttp

from services.standalone.store_process import wait_for_exit

_BACKOFF_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
# A child that ran this long is healthy: its next death starts again without delay.
_HEALTHY_SECONDS = 30.0
_READY_POLL_SECONDS = 0.05


class Child(Protocol):
    """Something with a process: a store or a service."""

    name: str

    @property
    def pid(self) -> int: ...
    async def start(self) -> None:
        """Return once it serves."""

    async def wait(self) -> int: ...
    async def stop(self, seconds_max: float) -> None: ...
    def kill(self) -> None: ...


@dataclass
class ServiceChild:
    """One service process: `python -m MODULE ARGUMENTS`, ready when `ready_url` answers 200."""

    name: str
    module: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    ready_url: str
    log_file: Path
    ready_seconds_max: float = 40.0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        self.spawn()
        await self.become_ready()

    def spawn(self) -> None:
        """Start the process without waiting for it."""
        # Ctrl-C reaches the whole group; children are stopped by us, in order, so they don't see it.
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with self.log_file.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    [sys.executable, "-m", self.module, *self.arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**self.environment, "METERWAY_PARENT_PID": str(os.getpid())},
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)

    async def become_ready(self) -> None:
        """Wait until it serves. Raises ChildError when it ends or takes too long."""
        give_up_at = time.monotonic() + self.ready_seconds_max
        async with aiohttp.ClientSession() as session:
            while not await _is_ready(session, self.ready_url):
                if self._process is None or self._process.poll() is not None:
                    raise ChildError(f"{self.name} ended while starting; see {self.log_file}")
                if time.monotonic() > give_up_at:
                    raise ChildError(
                        f"{self.name} was not ready after {self.ready_seconds_max:g} s; see {self.log_file}"
                    )
                await asyncio.sleep(_READY_POLL_SECONDS)

    async def wait(self) -> int:
        assert self._process is not None
        return await wait_for_exit(self._process)

    async def stop(self, seconds_max: float) -> None:
        """SIGTERM, then SIGKILL after `seconds_max`."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wait(), seconds_max)
        self.kill()
        await self.wait()

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()


class ChildError(Exception):
    """A child can't be started; the message says where to look."""


async def _is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=2)) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


async def keep_alive(
    child: Child, *, on_change: Callable[[], Awaitable[None]], progress: Callable[[str], None]
) -> None:
    """Start `child` again whenever it dies: at once at first, then with back-off. Runs until cancelled."""
    failures = 0
    while True:
        started_at = time.monotonic()
        code = await child.wait()
        if time.monotonic() - started_at > _HEALTHY_SECONDS:
            failures = 0
        while True:
            delay = _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)]
            progress(f"{child.name} ended ({_ended_by(code)}); starting it again" + _in(delay))
            await asyncio.sleep(delay)
            failures += 1
            try:
                await child.start()
                break
            except Exception as error:  # whatever it is, the next attempt is the answer
                progress(str(error))
                child.kill()
        await on_change()


def _ended_by(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _in(seconds: float) -> str:
    return f" in {seconds:g} s" if seconds else ""
