from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from services.meter.counting import Counter, CountingOverloaded, count_chat_input, count_prefix, count_text
from services.meter.counting.cache import CountCache
from services.meter.counting.text import count_tokens
from services.meter.counting.worker import HUGE_BYTES_MIN, INLINE_BYTES_MAX

PROSE = "A meter counts what a caller sends; it isn't wrong. \u4f60\u597d\uff0c\u4e16\u754c\u3002\n"


def chat(*contents: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content} for content in contents]}


@pytest_asyncio.fixture
async def counter() -> AsyncIterator[Counter]:
    async with Counter() as counter:
        yield counter


@pytest.mark.parametrize("size", [100, 2 * INLINE_BYTES_MAX, 2 * HUGE_BYTES_MIN])
async def test_every_lane_counts_the_same(counter: Counter, size: int) -> None:
    text = (PROSE * (size // len(PROSE) + 1))[:size]
    assert await counter.count_text("gpt-4o", text) == count_text("gpt-4o", text)
    assert await counter.count_prefix("gpt-4o", text, final=False) == count_prefix(
        "gpt-4o", text, final=False
    )
    request = chat(text, text)
    assert await counter.count_chat_input("gpt-4o", request, body_bytes=2 * size) == count_chat_input(
        "gpt-4o", request
    )
    embedding = {"input": text}
    counted = await counter.count_embedding_input("text-embedding-3-small", embedding, body_bytes=size)
    assert counted.tokens == count_text("text-embedding-3-small", text)
    counted = await counter.count_prompt_input("davinci-002", {"prompt": text}, body_bytes=size)
    assert counted.tokens == count_text("davinci-002", text)


async def test_a_growing_chat_is_not_counted_anew(counter: Counter) -> None:
    turns = [f"{number}: {PROSE * 10}" for number in range(20)]
    for end in range(1, 21):
        request = chat(*turns[:end])
        assert await counter.count_chat_input("gpt-4o", request, body_bytes=9_999) == count_chat_input(
            "gpt-4o", request
        )
    assert counter.cache.misses == 20
    assert counter.cache.hits == sum(range(20))


async def test_one_text_is_cached_apart_for_each_encoding(counter: Counter) -> None:
    text = "\u4f60\u597d\u4e16\u754c" * 200
    for model in ("gpt-4o", "gpt-4", "gpt-4o", "gpt-4"):
        counted = await counter.count_chat_input(model, chat(text), body_bytes=9_999)
        assert counted == count_chat_input(model, chat(text))


def test_the_cache_forgets_the_longest_unused_first_and_stays_in_its_size() -> None:
    cache = CountCache(320 * 3)
    texts = [f"{number}" * 300 for number in range(5)]
    for text in texts[:3]:
        cache.count("o200k_base", text)
    cache.count("o200k_base", texts[0])
    cache.count("o200k_base", texts[3])
    assert len(cache) == 3
    assert cache.count("o200k_base", texts[0]) == count_tokens("o200k_base", texts[0])
    assert (cache.hits, cache.misses) == (2, 4)
    cache.count("o200k_base", texts[1])
    assert cache.misses == 5


async def test_a_megabyte_being_counted_stalls_neither_the_loop_nor_a_shorter_count(counter: Counter) -> None:
    huge = PROSE * (2_000_000 // len(PROSE))
    jobs = [asyncio.create_task(counter.count_text("gpt-4o", huge)) for _ in range(2)]
    await asyncio.sleep(0)
    worst_gap_ms = 0.0
    shorter = 0
    while not all(job.done() for job in jobs):
        started = time.perf_counter()
        await asyncio.sleep(0.001)
        worst_gap_ms = max(worst_gap_ms, (time.perf_counter() - started) * 1e3)
        if shorter < 10:
            await counter.count_text("gpt-4o", PROSE * 200)
            shorter += 1
    assert shorter == 10, "the shorter counts waited for the huge ones"
    # The goal is 10 ms on an idle machine; the tests' machine is shared.
    assert worst_gap_ms < 100
    assert {job.result() for job in jobs} == {count_text("gpt-4o", huge)}


async def test_a_full_lane_refuses_and_keeps_serving_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(waiting_max=2)
    let_go = threading.Event()
    text = PROSE * 200
    monkeypatch.setattr(
        "services.meter.counting.worker.count_tokens", lambda name, text: let_go.wait(10) and 7
    )
    jobs = [asyncio.create_task(counter.count_text("gpt-4o", text)) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert counter.waiting == 3
    with pytest.raises(CountingOverloaded) as refused:
        await counter.count_text("gpt-4o", text)
    assert refused.value.status == 503
    assert refused.value.retry_after_ms == 1_000
    huge = asyncio.create_task(counter.count_text("gpt-4o", "x" * HUGE_BYTES_MIN))
    await asyncio.sleep(0.01)
    assert counter.waiting == 4
    let_go.set()
    assert await asyncio.gather(*jobs, huge) == [7, 7, 7, 7]
    await asyncio.sleep(0)
    assert counter.waiting == 0
    counter.close()


async def test_a_caller_that_gives_up_does_not_free_a_busy_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(waiting_max=0)
    let_go = threading.Event()
    monkeypatch.setattr(
        "services.meter.counting.worker.count_tokens", lambda name, text: let_go.wait(10) and 7
    )
    job = asyncio.create_task(counter.count_text("gpt-4o", PROSE * 200))
    await asyncio.sleep(0.01)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    with pytest.raises(CountingOverloaded):
        await counter.count_text("gpt-4o", PROSE * 200)
    let_go.set()
    while counter.waiting:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.001)
    assert await counter.count_text("gpt-4o", PROSE * 200) == 7
    counter.close()
