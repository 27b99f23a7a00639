"""CPU per chunk of the pure stream code: `python -m tests.bench.stream_parsing`."""

from __future__ import annotations

import time
import timeit
import tracemalloc
from collections.abc import Callable
from functools import partial

from services.edge.dialects.openai_chat import CHAT_COMPLETIONS
from services.edge.dialects.openai_chunks import OpenAIChunkReader
from services.edge.streams.sse import EventSplitter

CHUNK = (
    b'data: {"id":"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG","object":"chat.completion.chunk",'
    b'"created":1741570283,"model":"gpt-4o-2024-08-06","service_tier":"default",'
    b'"system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{"content":" hello"},'
    b'"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
)
REQUEST = (
    b'{"model":"gpt-4o","messages":[{"role":"system","content":"You are helpful."},{"role":"user",'
    b'"content":"' + b"hello world " * 80 + b'"}],"temperature":0.7,"max_tokens":500,"stream":true}'
)
MEGABYTE_REQUEST = (
    b'{"model":"gpt-4o","messages":['
    + b",".join([b'{"role":"user","content":"' + b"hello world\\n" * 80 + b'"}'] * 1000)
    + b'],"stream":true}'
)


def microseconds(function: Callable[[], object], repeats: int) -> float:
    """CPU time, the best of seven rounds: other work on the machine only ever adds."""
    rounds = timeit.repeat(function, timer=time.process_time, number=repeats, repeat=7)
    return min(rounds) / repeats * 1e6


def split_one_by_one() -> None:
    splitter = EventSplitter()
    for _ in range(200):
        splitter.feed(CHUNK)


def split_by_ten() -> None:
    splitter = EventSplitter()
    ten = CHUNK * 10
    for _ in range(20):
        splitter.feed(ten)


def split_crlf() -> None:
    splitter = EventSplitter()
    chunk = CHUNK.replace(b"\n", b"\r\n")
    for _ in range(200):
        splitter.feed(chunk)


def split_torn() -> None:
    splitter = EventSplitter()
    first, second = CHUNK[:150], CHUNK[150:]
    for _ in range(200):
        splitter.feed(first)
        splitter.feed(second)


def read_200_chunks() -> None:
    reader = OpenAIChunkReader()
    data = CHUNK[6:-2]
    for _ in range(200):
        reader.accept(data)


def split_and_read() -> None:
    splitter = EventSplitter()
    reader = OpenAIChunkReader()
    for _ in range(200):
        for event in splitter.feed(CHUNK):
            if event.data is not None:
                reader.accept(event.data, event.name)


def main() -> None:
    rows = [
        ("split, an event per read", split_one_by_one, 200),
        ("split, ten events per read", split_by_ten, 200),
        ("split, CRLF", split_crlf, 200),
        ("split, an event in two reads", split_torn, 200),
        ("read a content chunk", read_200_chunks, 200),
        ("split and read", split_and_read, 200),
    ]
    for name, function, chunks in rows:
        print(f"{name:36} {microseconds(function, 200) / chunks:8.2f} us per chunk")
    for name, body, repeats in (("1 KB", REQUEST, 5_000), ("1 MB", MEGABYTE_REQUEST, 20)):
        read = microseconds(partial(CHAT_COMPLETIONS.read_request, body), repeats)
        print(f"read request, {name:22} {read:8.1f} us")
        for what, rename in (("usage", None), ("usage and model", "x")):
            splice = partial(CHAT_COMPLETIONS.upstream_body, body, include_usage=True, model_rename=rename)
            print(f"splice {what + ', ' + name:29} {microseconds(splice, repeats):8.1f} us")
    print(f"{'memory of a stream of 500 tokens':36} {bytes_per_stream():8.0f} bytes")


def bytes_per_stream() -> float:
    """What the pure stream code keeps for a stream whose 500 tokens are not counted yet."""
    streams = []
    tracemalloc.start()
    for _ in range(100):
        splitter, reader = EventSplitter(), OpenAIChunkReader()
        streams.append((splitter, reader))
        for _ in range(500):
            for event in splitter.feed(CHUNK):
                reader.accept(event.data or b"")
    used_bytes, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used_bytes / len(streams)


if __name__ == "__main__":
    main()
