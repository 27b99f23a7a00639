"""The transport against real servers."""

from __future__ import annotations

import asyncio
import gzip
import socket
import sys
import time
import zlib
from collections.abc import Callable

import brotli  # type: ignore[import-untyped]
import pytest
from aiohttp import web

from services.common.contracts.catalogue import Channel
from services.edge.upstreams.headers import request_headers
from services.edge.upstreams.transport import Transport, TransportError, UpstreamReply
from tests.integration.edge_upstreams.conftest import StartUpstream, Upstream
from tests.integration.edge_upstreams.raw_server import http_reply, raw_upstream
from tests.unit.edge_upstreams.channels import channel

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BODY = b'{"model":"gpt-4o"}'
HEADERS = request_headers({}, request_id="req-1", stream=True)


async def send(transport: Transport, to: Channel, body: bytes = BODY) -> UpstreamReply:
    return await transport.send(to, to.credentials[0], "/chat/completions", body, HEADERS)


async def kind_of_failure(transport: Transport, to: Channel) -> str:
    with pytest.raises(TransportError) as caught:
        await (await send(transport, to)).read_bounded(1_000_000)
    assert "secret" not in str(caught.value)
    return caught.value.kind


async def test_a_request_arrives_as_it_should(transport: Transport, start_upstream: StartUpstream) -> None:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.json_response({"ok": True}, headers={"Set-Cookie": "a=b; Path=/"})

    upstream = await start_upstream(answer)
    for _ in range(2):
        reply = await send(transport, upstream.channel(headers={"X-Title": "t"}))
        assert (reply.status, await reply.read_bounded(100)) == (200, b'{"ok": true}')
        assert reply.headers["content-type"].startswith("application/json")
    for request in upstream.requests:
        assert (request["path"], request["body"]) == ("/v1/chat/completions", BODY)
        headers = {name.lower(): value for name, value in request["headers"].items()}
        headers.pop("host")
        assert headers == {
            "content-type": "application/json",
            "content-length": str(len(BODY)),
            "accept": "text/event-stream",
            "accept-encoding": "identity",
            "user-agent": "meterway",
            "x-request-id": "req-1",
            "x-title": "t",
            "authorization": "Bearer secret-up-0",
        }


async def test_a_large_body_arrives_whole(transport: Transport, start_upstream: StartUpstream) -> None:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.json_response({})

    upstream = await start_upstream(answer)
    body = b"x" * (5 * 1024 * 1024)
    reply = await send(transport, upstream.channel(), body)
    await reply.read_bounded(100)
    assert upstream.requests[0]["body"] == body


async def test_chunks_come_as_they_are_sent(transport: Transport, start_upstream: StartUpstream) -> None:
    more = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: one\n\n")
        await more.wait()
        await response.write(b"data: two\n\n")
        return response

    upstream = await start_upstream(answer)
    reply = await send(transport, upstream.channel())
    assert await reply.read_some() == b"data: one\n\n"
    reply.put_back(b"data: one\n\n")
    more.set()
    assert b"".join([data async for data in reply.chunks()]) == b"data: one\n\ndata: two\n\n"
    assert await reply.read_some() == b""


def gzip_flushing() -> Callable[[bytes], bytes]:
    compressor = zlib.compressobj(wbits=31)
    return lambda data: (
        compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH if data else zlib.Z_FINISH)
    )


def deflate_flushing() -> Callable[[bytes], bytes]:
    compressor = zlib.compressobj()
    return lambda data: (
        compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH if data else zlib.Z_FINISH)
    )


def brotli_flushing() -> Callable[[bytes], bytes]:
    compressor = brotli.Compressor()
    return lambda data: compressor.process(data) + compressor.flush() if data else compressor.finish()


def zstd_flushing() -> Callable[[bytes], bytes]:
    compressor = zstd.ZstdCompressor()
    return lambda data: compressor.compress(data, compressor.FLUSH_BLOCK if data else compressor.FLUSH_FRAME)


@pytest.mark.parametrize(
    ("encoding", "flushing"),
    [
        ("gzip", gzip_flushing),
        ("deflate", deflate_flushing),
        ("br", brotli_flushing),
        ("zstd", zstd_flushing),
    ],
)
async def test_encoded_streams_are_decoded_as_they_come(
    transport: Transport,
    start_upstream: StartUpstream,
    encoding: str,
    flushing: Callable[[], Callable[[bytes], bytes]],
) -> None:
    steps: asyncio.Queue[bytes] = asyncio.Queue()

    async def answer(request: web.Request) -> web.StreamResponse:
        encode = flushing()
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Content-Encoding": encoding}
        )
        await response.prepare(request)
        while data := await steps.get():
            await response.write(encode(data))
        await response.write(encode(b""))
        return response

    upstream = await start_upstream(answer)
    steps.put_nowait(b"data: one\n\n")
    reply = await send(transport, upstream.channel())
    assert await reply.read_some() == b"data: one\n\n"
    steps.put_nowait(b"data: two\n\n")
    assert await reply.read_some() == b"data: two\n\n"
    steps.put_nowait(b"")
    assert await reply.read_some() == b""


async def test_a_plain_encoded_reply_is_decoded_within_its_bound(
    transport: Transport, start_upstream: StartUpstream
) -> None:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=gzip.compress(b"x" * 5_000_000), headers={"Content-Encoding": "gzip"})

    upstream = await start_upstream(answer)
    reply = await send(transport, upstream.channel())
    assert len(await reply.read_bounded(5_000_000)) == 5_000_000
    reply = await send(transport, upstream.channel())
    with pytest.raises(TransportError) as caught:
        await reply.read_bounded(4_999_999)
    assert caught.value.kind == "too_large"


async def hang_after(upstream_start: StartUpstream, sent: bytes | None) -> Upstream:
    """An upstream that sends headers and `sent` (None: nothing at all), then nothing more."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if sent is not None:
            await response.prepare(request)
            if sent:
                await response.write(sent)
        await asyncio.sleep(60)
        return response

    return await upstream_start(answer)


@pytest.mark.parametrize("sent", [None, b""], ids=["no headers", "headers only"])
async def test_the_first_byte_may_take_so_long_and_no_longer(
    transport: Transport, start_upstream: StartUpstream, sent: bytes | None
) -> None:
    upstream = await hang_after(start_upstream, sent)
    started = time.monotonic()
    to = upstream.channel(first_byte_timeout_ms=200, idle_timeout_ms=50_000)
    assert await kind_of_failure(transport, to) == "timed_out"
    assert 0.15 < time.monotonic() - started < 2
    await asyncio.wait_for(upstream.closed.wait(), 1)


async def test_after_the_first_byte_the_idle_timeout_applies(
    transport: Transport, start_upstream: StartUpstream
) -> None:
    upstream = await hang_after(start_upstream, b"data: one\n\n")
    started = time.monotonic()
    to = upstream.channel(first_byte_timeout_ms=50_000, idle_timeout_ms=200)
    assert await kind_of_failure(transport, to) == "timed_out"
    assert time.monotonic() - started < 2


async def test_a_slow_first_byte_is_not_cut_by_the_idle_timeout(
    transport: Transport, start_upstream: StartUpstream
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(0.4)
        await response.write(b"data: one\n\n")
        return response

    upstream = await start_upstream(answer)
    to = upstream.channel(first_byte_timeout_ms=5_000, idle_timeout_ms=100)
    reply = await send(transport, to)
    assert await reply.read_some() == b"data: one\n\n"


async def test_a_refused_connection_is_told_from_a_silent_one(transport: Transport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert await kind_of_failure(transport, channel("a", base_url=f"http://127.0.0.1:{port}/v1")) == "refused"
    assert await kind_of_failure(transport, channel("a", base_url="http://nowhere.invalid/v1")) == "refused"
    assert await kind_of_failure(transport, channel("a", base_url="not a url")) == "refused"
    with_fault = channel("a", base_url=f"http://127.0.0.1:{port}/v1", headers={"X": "a\r\nY: b"})
    assert await kind_of_failure(transport, with_fault) == "refused"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (None, "stale"),
        (b"", "stale"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "broken"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort", "broken"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "broken"),
        (http_reply(b"plain", extra="Content-Encoding: gzip\r\n"), "bad_encoding"),
        (http_reply(gzip.compress(b"x" * 99)[:-6], extra="Content-Encoding: gzip\r\n"), "bad_encoding"),
        (http_reply(b"plain", extra="Content-Encoding: rot13\r\n"), "bad_encoding"),
        (http_reply(b"x" * 1_000_001), "too_large"),
    ],
    ids=range(9),
)
async def test_broken_replies_are_told_apart(transport: Transport, reply: bytes | None, kind: str) -> None:
    async with raw_upstream(reply) as url:
        assert await kind_of_failure(transport, channel("a", base_url=url)) == kind


async def test_redirects_are_not_followed(transport: Transport, start_upstream: StartUpstream) -> None:
    async def answer(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect("http://127.0.0.1:1/elsewhere")

    upstream = await start_upstream(answer)
    assert (await send(transport, upstream.channel())).status == 307


# --- closing ----------------------------------------------------------------------------------


async def test_the_upstream_sees_a_close_within_a_second(
    transport: Transport, start_upstream: StartUpstream
) -> None:
    upstream = await hang_after(start_upstream, b"data: one\n\n")
    reply = await send(transport, upstream.channel())
    await reply.read_some()
    reply.close()
    reply.close()
    await asyncio.wait_for(upstream.closed.wait(), 1)


async def test_a_close_is_seen_even_when_nobody_was_reading(
    transport: Transport, start_upstream: StartUpstream
) -> None:
    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"data: " + b"x" * 8_000 + b"\n\n")

    upstream = await start_upstream(flood)
    reply = await send(transport, upstream.channel())
    await asyncio.sleep(0.3)
    reply.close()
    await asyncio.wait_for(upstream.closed.wait(), 1)


async def test_cancelling_a_request_that_waits_for_headers_closes_it(
    transport: Transport, start_upstream: StartUpstream
) -> None:
    upstream = await hang_after(start_upstream, None)
    task = asyncio.create_task(send(transport, upstream.channel()))
    await asyncio.wait_for(upstream.reached.wait(), 2)
    task.cancel()
    await asyncio.wait_for(upstream.closed.wait(), 1)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_slow_reader_slows_its_upstream_and_nobody_else(
    transport: Transport, start_upstream: StartUpstream
) -> None:
    written_bytes = 0

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal written_bytes
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65_536)
            written_bytes += 65_536

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.json_response({})

    flooding, quick = await start_upstream(flood), await start_upstream(answer)
    reply = await send(transport, flooding.channel())
    await asyncio.sleep(0.3)
    stalled_bytes = written_bytes
    started = time.monotonic()
    assert await (await send(transport, quick.channel("quick"))).read_bounded(100) == b"{}"
    assert time.monotonic() - started < 0.5
    await asyncio.sleep(0.3)
    # What is under way sits in the kernel's buffers, not in ours.
    assert written_bytes == stalled_bytes
    read_bytes = len(await reply.read_some())
    assert 0 < read_bytes <= 256 * 1024
    reply.close()


async def test_a_waiting_reader_does_not_let_the_idle_clock_run(
    transport: Transport, start_upstream: StartUpstream
) -> None:
    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(400):
            await response.write(b"x" * 65_536)
        return response

    upstream = await start_upstream(flood)
    reply = await send(transport, upstream.channel(idle_timeout_ms=150))
    total = len(await reply.read_some())
    await asyncio.sleep(0.5)
    while data := await reply.read_some():
        total += len(data)
    assert total == 400 * 65_536
