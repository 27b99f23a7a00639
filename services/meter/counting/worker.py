"""Counting beside an event loop: short inputs at once, long ones on threads, in two bounded lanes.

tiktoken holds no GIL while it encodes, and gets pieces of 16 Ki characters, so that a thread in the
middle of a megabyte keeps the loop from running for less than a millisecond at a time. Huge inputs
have a lane of their own: however many wait there, the other lane's thread stays free for the rest.

Outage behaviour: a lane that is full refuses with `CountingOverloaded` (503, nothing is held).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from services.common.errors import Unavailable
from services.meter.counting.cache import CountCache
from services.meter.counting.chat import count_chat_input
from services.meter.counting.encodings import preload
from services.meter.counting.models import counting_for
from services.meter.counting.prompts import count_embedding_input, count_prompt_input
from services.meter.counting.tally import InputCount, TextCounter
from services.meter.counting.text import count_growing, count_tokens

# Counting this many takes about as long as handing the work to a thread and waking up again (0.5 ms).
INLINE_BYTES_MAX = 8 * 1024
HUGE_BYTES_MIN = 128 * 1024

T = TypeVar("T")
InputCounter = Callable[..., InputCount]


class CountingOverloaded(Unavailable):
    """Too many inputs are waiting to be counted. Please try again in a moment; nothing was charged."""

    code = "counting_overloaded"


class _Lane:
    """Threads, and a bounded number of jobs that may wait for them."""

    def __init__(self, name: str, *, threads: int, waiting_max: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"counting-{name}")
        self._jobs_max = threads + waiting_max
        self.jobs = 0

    async def run(self, job: Callable[[], T]) -> T:
        if self.jobs >= self._jobs_max:
            raise CountingOverloaded(retry_after_ms=1_000)
        self.jobs += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, job)
        # Counted until it has really ended: a caller that gives up does not free the thread.
        future.add_done_callback(self._ended)
        return await asyncio.shield(future)

    def _ended(self, future: asyncio.Future[Any]) -> None:
        self.jobs -= 1
        # A caller that gave up never asks; asyncio would complain of an exception nobody saw.
        if not future.cancelled():
            future.exception()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class Counter:
    """Counts inputs and texts for one event loop.

    Raises `CountingOverloaded` when `waiting_max` jobs wait in the lane that the input belongs to.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        huge_threads: int = 1,
        waiting_max: int = 256,
        cache_bytes_max: int = 16 << 20,
    ) -> None:
        self.cache = CountCache(cache_bytes_max)
        self._long = _Lane("long", threads=threads, waiting_max=waiting_max)
        self._huge = _Lane("huge", threads=huge_threads, waiting_max=max(1, waiting_max // 8))

    async def __aenter__(self) -> Self:
        await asyncio.get_running_loop().run_in_executor(None, preload)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """Jobs running or waiting, both lanes."""
        return self._long.jobs + self._huge.jobs

    def close(self) -> None:
        """Refuse what waits, finish what runs."""
        self._long.close()
        self._huge.close()

    async def count_chat_input(self, model: str, request: Any, *, body_bytes: int) -> InputCount:
        """`body_bytes`: the size of the request's JSON, which decides where it is counted."""
        return await self._input(count_chat_input, model, request, body_bytes)

    async def count_prompt_input(self, model: str, request: Any, *, body_bytes: int) -> InputCount:
        return await self._input(count_prompt_input, model, request, body_bytes)

    async def count_embedding_input(self, model: str, request: Any, *, body_bytes: int) -> InputCount:
        return await self._input(count_embedding_input, model, request, body_bytes)

    async def count_text(self, model: str, text: str) -> int:
        """Tokens of a whole text."""
        name = counting_for(model).encoding
        return await self._run(lambda: count_tokens(name, text), _size(text))

    async def count_prefix(self, model: str, text: str, *, final: bool) -> tuple[int, int]:
        """As `counting.count_prefix`."""
        name = counting_for(model).encoding
        return await self._run(lambda: count_growing(name, text, final=final), _size(text))

    async def _input(self, counter: InputCounter, model: str, request: Any, body_bytes: int) -> InputCount:
        count: TextCounter = self.cache.count
        return await self._run(lambda: counter(model, request, count=count), body_bytes)

    async def _run(self, job: Callable[[], T], size_bytes: int) -> T:
        if size_bytes <= INLINE_BYTES_MAX:
            return job()
        return await (self._huge if size_bytes >= HUGE_BYTES_MIN else self._long).run(job)


def _size(text: str) -> int:
    """About the text's UTF-8 bytes, without encoding it."""
    return len(text) if text.isascii() else 3 * len(text)
