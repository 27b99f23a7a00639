"""Failover in every way a channel can fail, against real servers."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from typing import Any

import pytest
from aiohttp import web

from services.common.contracts.catalogue import Channel
from services.common.errors import MeterwayError, RateLimited, Unavailable, UpstreamFailed
from services.common.money import TokenCounts
from services.edge.dialects.openai_chat import CHAT_COMPLETIONS
from services.edge.upstreams.attempts import (
    Answer,
    Attempt,
    CredentialRefused,
    Failover,
    RequestRejected,
)
from services.edge.upstreams.headers import request_headers
from services.edge.upstreams.health import Health, HealthLimits
from services.edge.upstreams.routing import Candidate
from services.edge.upstreams.transport import Transport
from tests.integration.edge_upstreams.conftest import Handler, StartUpstream
from tests.integration.edge_upstreams.raw_server import raw_upstream
from tests.unit.edge_upstreams.channels import channel

REPLY = {
    "id": "chatcmpl-1",
    "choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 1},
}
EVENTS = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\ndata: [DONE]\n\n'
EVENT_STREAM = {"Content-Type": "text/event-stream"}


class Caller:
    """A failover with a record of what it did."""

    def __init__(self, transport: Transport, *, limits: HealthLimits | None = None) -> None:
        self.attempts: list[Attempt] = []
        self.refused: list[CredentialRefused] = []
        self.failover = Failover(
            transport=transport,
            health=Health(limits),
            on_attempt=self.attempts.append,
            on_credential_refused=self.refused.append,
        )

    async def ask(self, *channels: Channel | Candidate, stream: bool = False) -> Answer:
        candidates = [found if isinstance(found, Candidate) else Candidate(found, None) for found in channels]
        return await self.failover.first_answer(
            candidates,
            CHAT_COMPLETIONS,
            stream=stream,
            body_for=lambda rename: json.dumps({"model": rename or "gpt-4o"}).encode(),
            headers=request_headers({}, request_id="r", stream=stream),
        )

    async def error(self, *channels: Channel, stream: bool = False) -> MeterwayError:
        with pytest.raises(MeterwayError) as caught:
            await self.ask(*channels, stream=stream)
        return caught.value

    @property
    def outcomes(self) -> list[str]:
        return [attempt.outcome for attempt in self.attempts]


@pytest.fixture
def caller(transport: Transport) -> Caller:
    return Caller(transport)


def replies(
    body: bytes | dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None
) -> Handler:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=data, status=status, headers=headers or {"Content-Type": "application/json"})

    return answer


def refused_channel(name: str = "down") -> Channel:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    return channel(name, base_url=f"http://127.0.0.1:{port}/v1")


ERROR_500 = {"error": {"message": "boom", "type": "server_error", "param": None, "code": None}}
BROKEN_PLAIN: dict[str, tuple[Handler, str]] = {
    "500": (replies(ERROR_500, status=500), "server_error"),
    "502 html": (replies(b"<html>", status=502), "server_error"),
    "503": (replies(b"", status=503), "server_error"),
    "401": (replies(ERROR_500, status=401), "credential_refused"),
    "402": (replies(b"", status=402), "credential_refused"),
    "403": (replies(b"", status=403), "credential_refused"),
    "429": (replies(b"", status=429), "rate_limited"),
    "out of money": (replies({"error": {"code": "insufficient_quota"}}, status=429), "credential_refused"),
    "redirect": (replies(b"", status=302, headers={"Location": "/v1/x"}), "garbage"),
    "html": (replies(b"<!doctype html>", headers={"Content-Type": "text/html"}), "garbage"),
    "empty": (replies(b""), "garbage"),
    "no object": (replies(b"[]"), "garbage"),
    "torn json": (replies(b'{"id":"chatcmpl-1","choi'), "garbage"),
    "no such encoding": (replies(b"{}", headers={"Content-Encoding": "rot13"}), "garbage"),
    "not that encoding": (replies(b"{}", headers={"Content-Encoding": "gzip"}), "garbage"),
    "error in a 200": (replies(ERROR_500), "server_error"),
    "no such model": (replies({"error": {"code": "model_not_found"}}, status=404), "unknown_model"),
}
BROKEN_STREAM: dict[str, tuple[Handler, str]] = {
    **{name: case for name, case in BROKEN_PLAIN.items() if name not in ("no object", "torn json")},
    "a plain reply": (replies(REPLY), "garbage"),
    "a plain reply called a stream": (replies(REPLY, headers=EVENT_STREAM), "garbage"),
    "html called a stream": (replies(b"<html>", headers=EVENT_STREAM), "garbage"),
    "an empty stream": (replies(b"", headers=EVENT_STREAM), "garbage"),
    "an error first": (
        replies(b'data: {"error":{"message":"x","code":"rate_limit_exceeded"}}\n\n', headers=EVENT_STREAM),
        "rate_limited",
    ),
}


@pytest.mark.parametrize("name", BROKEN_PLAIN)
async def test_a_plain_call_moves_on_to_the_next_channel(
    caller: Caller, start_upstream: StartUpstream, name: str
) -> None:
    handler, outcome = BROKEN_PLAIN[name]
    broken, good = await start_upstream(handler), await start_upstream(replies(REPLY))
    answer = await caller.ask(broken.channel("broken"), good.channel("good"))
    assert json.loads(answer.body) == REPLY
    assert answer.facts is not None
    assert answer.facts.usage is not None
    assert answer.facts.usage.tokens == TokenCounts(input=9, output=1)
    assert (answer.candidate.channel.name, answer.credential_id) == ("good", "good-0")
    assert caller.outcomes == [outcome, "answered"]


@pytest.mark.parametrize("name", BROKEN_STREAM)
async def test_a_streamed_call_moves_on_to_the_next_channel(
    caller: Caller, start_upstream: StartUpstream, name: str
) -> None:
    handler, outcome = BROKEN_STREAM[name]
    broken = await start_upstream(handler)
    good = await start_upstream(replies(EVENTS, headers=EVENT_STREAM))
    answer = await caller.ask(broken.channel("broken"), good.channel("good"), stream=True)
    assert b"".join([data async for data in answer.reply.chunks()]) == EVENTS
    assert answer.headers["content-type"] == "text/event-stream"
    assert caller.outcomes == [outcome, "answered"]


@pytest.mark.parametrize("stream", [False, True])
async def test_refused_connections_resets_and_silence_are_moved_on_from(
    caller: Caller, start_upstream: StartUpstream, stream: bool
) -> None:
    async def silence(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    silent = await start_upstream(silence)
    good = await start_upstream(replies(EVENTS, headers=EVENT_STREAM) if stream else replies(REPLY))
    caller.failover = Failover(
        transport=caller.failover.transport,
        health=Health(),
        attempts_max=4,
        on_attempt=caller.attempts.append,
    )
    async with raw_upstream(None) as resetting:
        answer = await caller.ask(
            refused_channel(),
            channel("resets", base_url=resetting),
            silent.channel("silent", first_byte_timeout_ms=150),
            good.channel("good"),
            stream=stream,
        )
    assert answer.candidate.channel.name == "good"
    assert caller.outcomes == ["refused", "broken", "timed_out", "answered"]
    await asyncio.wait_for(silent.closed.wait(), 1)
    answer.reply.close()


async def test_the_model_is_renamed_for_each_channel(caller: Caller, start_upstream: StartUpstream) -> None:
    broken, good = await start_upstream(replies(b"", status=500)), await start_upstream(replies(REPLY))
    await caller.ask(Candidate(broken.channel("a"), "azure-gpt"), Candidate(good.channel("b"), None))
    assert [upstream.requests[0]["body"] for upstream in (broken, good)] == [
        b'{"model": "azure-gpt"}',
        b'{"model": "gpt-4o"}',
    ]


async def test_no_more_than_three_upstreams_are_asked(caller: Caller, start_upstream: StartUpstream) -> None:
    broken = await start_upstream(replies(b"", status=500))
    error = await caller.error(*(broken.channel(f"c{number}") for number in range(5)))
    assert (error.status, error.code) == (502, "upstream_error")
    assert len(broken.requests) == 3


# --- what the client did wrong ----------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 404, 413, 422])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_clients_fault_is_passed_on_and_not_tried_elsewhere(
    caller: Caller, start_upstream: StartUpstream, status: int, stream: bool
) -> None:
    body = b'{"error": {"message":"too long","type":"invalid_request_error","param":"messages","code":"c"}}'
    rejecting = await start_upstream(replies(body, status=status))
    other = await start_upstream(replies(REPLY))
    with pytest.raises(RequestRejected) as caught:
        await caller.ask(rejecting.channel("a"), other.channel("b"), stream=stream)
    assert (caught.value.status, caught.value.body) == (status, body)
    assert caught.value.headers == {"content-type": "application/json"}
    assert other.requests == []
    assert caller.outcomes == ["rejected"]


async def test_a_compressed_rejection_is_decoded(caller: Caller, start_upstream: StartUpstream) -> None:
    body = b'{"error":{"message":"no","type":"t","param":null,"code":null}}'
    rejecting = await start_upstream(
        replies(gzip.compress(body), status=400, headers={"Content-Encoding": "gzip"})
    )
    with pytest.raises(RequestRejected) as caught:
        await caller.ask(rejecting.channel("a"))
    assert caught.value.body == body


async def test_the_clients_faults_do_not_open_a_channel(
    caller: Caller, start_upstream: StartUpstream
) -> None:
    rejecting = await start_upstream(replies(b"no", status=400))
    one = rejecting.channel("a")
    for _ in range(20):
        with pytest.raises(RequestRejected):
            await caller.ask(one)
    assert len(rejecting.requests) == 20


async def test_a_model_that_no_channel_has_is_a_404(caller: Caller, start_upstream: StartUpstream) -> None:
    lacking = await start_upstream(
        replies({"error": {"message": "no", "code": "model_not_found"}}, status=404)
    )
    with pytest.raises(RequestRejected) as caught:
        await caller.ask(lacking.channel("a"), lacking.channel("b"))
    assert caught.value.status == 404
    assert json.loads(caught.value.body)["error"]["code"] == "model_not_found"
    assert len(lacking.requests) == 2


# --- what the client sees in the end ----------------------------------------------------------


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_an_operators_credential_trouble_is_a_502(
    caller: Caller, start_upstream: StartUpstream, status: int
) -> None:
    upstream = await start_upstream(
        replies(
            {"error": {"message": "Incorrect API key: sk-oper", "code": "invalid_api_key"}}, status=status
        )
    )
    error = await caller.error(upstream.channel("a"))
    assert (type(error), error.status, error.code) == (UpstreamFailed, 502, "upstream_error")
    assert "sk-oper" not in error.message


async def test_a_refused_credential_is_reported_once_and_the_next_one_used(
    caller: Caller, start_upstream: StartUpstream
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers["Authorization"] == "Bearer secret-a-0":
            return web.json_response({}, status=401)
        return web.json_response(REPLY)

    upstream = await start_upstream(answer)
    two_keys = upstream.channel("a", credentials=2)
    for _ in range(3):
        found = await caller.ask(two_keys)
        assert found.credential_id == "a-1"
    assert caller.refused == [CredentialRefused(channel_id=two_keys.id, credential_id="a-0", status=401)]
    assert caller.outcomes == ["credential_refused", "answered", "answered", "answered"]


async def test_an_upstreams_rate_limit_is_ours_until_it_has_passed(
    caller: Caller, start_upstream: StartUpstream
) -> None:
    upstream = await start_upstream(replies(b"", status=429, headers={"Retry-After": "7"}))
    error = await caller.error(upstream.channel("a"))
    assert (type(error), error.status, error.code) == (RateLimited, 429, "upstream_rate_limited")
    assert error.retry_after_ms == 7_000
    error = await caller.error(upstream.channel("a"))
    assert (error.status, error.code) == (429, "upstream_rate_limited")
    assert error.retry_after_ms is not None
    assert 5_000 < error.retry_after_ms <= 7_000
    assert len(upstream.requests) == 1


async def test_a_channel_that_fails_again_and_again_is_left_alone(
    transport: Transport, start_upstream: StartUpstream
) -> None:
    caller = Caller(transport, limits=HealthLimits(failures_to_open=3, open_first_ms=200))
    is_broken = True

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.json_response({}, status=500) if is_broken else web.json_response(REPLY)

    upstream = await start_upstream(answer)
    for _ in range(10):
        error = await caller.error(upstream.channel("a"))
    assert (type(error), error.status, error.code) == (Unavailable, 503, "upstream_unavailable")
    assert error.retry_after_ms is not None
    assert len(upstream.requests) == 3
    is_broken = False
    await asyncio.sleep(0.25)
    await caller.ask(upstream.channel("a"))
    await caller.ask(upstream.channel("a"))
    assert len(upstream.requests) == 5


async def test_without_any_channel_the_model_is_unavailable(caller: Caller) -> None:
    error = await caller.error()
    assert (error.status, error.code) == (503, "upstream_unavailable")


async def test_a_kept_connection_that_was_closed_meanwhile_is_not_held_against_the_channel(
    caller: Caller,
) -> None:
    body = json.dumps(REPLY).encode()
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with raw_upstream(None, reply) as url:
        answer = await caller.ask(channel("a", base_url=url))
    assert answer.body == body
    assert caller.outcomes == ["answered"]


async def test_a_client_that_leaves_closes_the_upstream_at_once(
    caller: Caller, start_upstream: StartUpstream
) -> None:
    async def silence(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    upstream = await start_upstream(silence)
    task = asyncio.create_task(caller.ask(upstream.channel("a"), stream=True))
    await asyncio.wait_for(upstream.reached.wait(), 2)
    task.cancel()
    await asyncio.wait_for(upstream.closed.wait(), 1)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert caller.outcomes == ["abandoned"]


async def test_a_stream_that_trickles_is_recognised(caller: Caller, start_upstream: StartUpstream) -> None:
    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        for byte in EVENTS:
            await response.write(bytes([byte]))
            await asyncio.sleep(0)
        return response

    upstream = await start_upstream(trickle)
    answer = await caller.ask(upstream.channel("a"), stream=True)
    assert b"".join([data async for data in answer.reply.chunks()]) == EVENTS


async def test_a_huge_plain_reply_is_not_kept(transport: Transport, start_upstream: StartUpstream) -> None:
    upstream = await start_upstream(replies(b'{"x":"' + b"y" * 200_000 + b'"}'))
    attempts: list[Attempt] = []
    caller = Caller(transport)
    caller.failover = Failover(
        transport=transport, health=Health(), plain_reply_bytes_max=100_000, on_attempt=attempts.append
    )
    error = await caller.error(upstream.channel("a"))
    assert error.status == 502
    assert [attempt.outcome for attempt in attempts] == ["too_large"]
