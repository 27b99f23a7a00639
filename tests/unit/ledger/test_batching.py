import asyncio
from collections.abc import Sequence

import pytest

from services.common.errors import Unavailable
from services.ledger.batching import Batcher


def batcher(batches: list[list[int]], gate: asyncio.Event, **limits: int) -> Batcher[int, int]:
    async def run(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        await gate.wait()
        if 13 in items:
            raise ValueError("13")
        return [item * 2 for item in items]

    sizes = {"batch_size_max": 100, "waiting_size_max": 1_000} | limits
    return Batcher(run, size_of=lambda _item: 1, **sizes)


async def test_what_waits_while_a_batch_runs_leaves_together() -> None:
    batches: list[list[int]] = []
    gate = asyncio.Event()
    gate.set()
    numbers = batcher(batches, gate)
    assert await numbers.submit(1) == 2
    gate.clear()
    waiting = [asyncio.create_task(numbers.submit(number)) for number in range(2, 6)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    more = [asyncio.create_task(numbers.submit(number)) for number in range(6, 9)]
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*waiting, *more) == [4, 6, 8, 10, 12, 14, 16]
    assert batches == [[1], [2, 3, 4, 5], [6, 7, 8]]


async def test_a_batch_holds_no_more_than_its_limit() -> None:
    batches: list[list[int]] = []
    gate = asyncio.Event()
    gate.set()
    numbers = batcher(batches, gate, batch_size_max=2)
    await asyncio.gather(*(numbers.submit(number) for number in range(5)))
    assert [len(batch) for batch in batches] == [2, 2, 1]


async def test_more_than_may_wait_is_refused() -> None:
    gate = asyncio.Event()
    numbers = batcher([], gate, waiting_size_max=2, batch_size_max=1)
    waiting = []
    for number in range(3):
        waiting.append(asyncio.create_task(numbers.submit(number)))
        await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        await numbers.submit(9)
    gate.set()
    await asyncio.gather(*waiting)


async def test_a_failing_batch_fails_its_own_callers_only() -> None:
    gate = asyncio.Event()
    gate.set()
    numbers = batcher([], gate, batch_size_max=1)
    results = await asyncio.gather(
        *(numbers.submit(number) for number in (12, 13, 14)), return_exceptions=True
    )
    assert results[0] == 24
    assert isinstance(results[1], ValueError)
    assert results[2] == 28
    await numbers.close()
