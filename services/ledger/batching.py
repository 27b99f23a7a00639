"""Natural batching: what waits while a batch runs leaves together as the next one. No timer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from services.common.errors import Unavailable

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Batcher(Generic[Item, Answer]):
    """`run` answers a batch's items in their order; when it raises, every item of the batch does.

    `size_of`: an item's weight; a batch holds up to `batch_size_max` (a larger item goes alone).
    `waiting_size_max`: more than that waiting is refused with Unavailable.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        *,
        size_of: Callable[[Item], int],
        batch_size_max: int,
        waiting_size_max: int,
    ) -> None:
        self._run = run
        self._size_of = size_of
        self._batch_size_max = batch_size_max
        self._waiting_size_max = waiting_size_max
        self._waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._waiting_size = 0
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Answer:
        size = self._size_of(item)
        if self._waiting and self._waiting_size + size > self._waiting_size_max:
            raise Unavailable(
                "Too much is waiting for the ledger. Please send it again.", retry_after_ms=1_000
            )
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._waiting_size += size
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await future

    async def close(self) -> None:
        """Wait for what was submitted."""
        if self._worker is not None:
            await self._worker

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch = self._take()
                try:
                    answers = await self._run([item for item, _future in batch])
                except Exception as error:
                    for _item, future in batch:
                        if not future.done():
                            future.set_exception(error)
                else:
                    for (_item, future), answer in zip(batch, answers, strict=True):
                        if not future.done():
                            future.set_result(answer)
        finally:
            self._worker = None

    def _take(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        batch: list[tuple[Item, asyncio.Future[Answer]]] = []
        batch_size = 0
        while self._waiting:
            size = self._size_of(self._waiting[0][0])
            if batch and batch_size + size > self._batch_size_max:
                break
            batch.append(self._waiting.popleft())
            batch_size += size
        self._waiting_size -= batch_size
        return batch
