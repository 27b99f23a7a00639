"""Random requests to the public API: no 5xx, always the API's error shape, and nothing stays held."""

from __future__ import annotations

import gzip
import json
import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
import urllib3
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.clients.payer import Payer, cost_of, emulator_rows, sent_by
from tests.e2e.stack import Stack

EXAMPLES = 300
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "Hello [[emulate tokens=3]]"}],
        "max_tokens": 8,
    },
    "/v1/completions": {
        "model": "gpt-3.5-turbo-instruct",
        "prompt": "Hello [[emulate tokens=3]]",
        "max_tokens": 8,
    },
    "/v1/embeddings": {"model": "text-embedding-3-small", "input": ["Hello"], "dimensions": 8},
    "/v1/moderations": {"input": "Hello"},
}
FIELDS = (
    "model", "messages", "prompt", "input", "n", "best_of", "max_tokens", "max_completion_tokens", "stream",
    "stream_options", "tools", "functions", "response_format", "logprobs", "stop", "user", "echo", "suffix",
    "temperature", "dimensions", "encoding_format", "metadata", "Model", "MAX_TOKENS",
)  # fmt: skip
# Lone surrogates can't be sent as UTF-8, but JSON escapes can carry them.
TEXTS = st.text(max_size=12) | st.sampled_from(["\ud800", "\u0000", "[DONE]", "gpt-4o", "中文", "😀" * 5])
NUMBERS = st.integers(-2, 9) | st.sampled_from([2**31, 2**63, -(2**64), 10**40, 0.5, 1e300, float("nan")])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
METHODS = st.sampled_from(
    ["POST"] * 40 + ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW"]
)
ADDRESSES = st.sampled_from(
    [*PATHS] * 12 + ["/v1/models", "/v1/models/gpt-4o", "/", "/v1", "/v1/", "/metrics"]
)
HEADER_NAMES = st.sampled_from(
    [
        "content-type", "content-encoding", "accept", "accept-encoding", "x-request-id", "openai-beta",
        "range", "anthropic-version", "x-forwarded-for", "expect", "origin", "cookie", "via",
    ]
)  # fmt: skip
HEADER_VALUES = st.sampled_from(
    [
        "",
        "application/json",
        "text/plain",
        "gzip",
        "br",
        "identity",
        "*/*",
        "bytes=0-1",
        "100-continue",
        "::1",
    ]
) | st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=30)


@st.composite
def paths(draw: st.DrawFn) -> str:
    if draw(st.integers(0, 14)):
        return draw(ADDRESSES)
    tail = draw(
        st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=20)
    )
    return (
        draw(
            st.sampled_from(["/", "/v1/", "/v1/models/", "/v1/chat/", "/internal/", "/v1/chat/completions?"])
        )
        + tail
    )


@st.composite
def bodies(draw: st.DrawFn, path: str) -> bytes:
    """A valid body, mostly changed in a place or two; or any JSON; or any bytes."""
    kind = draw(st.integers(0, 15))
    if kind == 0:
        return draw(st.binary(max_size=64))
    if kind == 1:
        return json.dumps(draw(VALUES)).encode()
    document: dict[str, Any] = json.loads(json.dumps(PATHS.get(path, PATHS["/v1/chat/completions"])))
    for _ in range(draw(st.sampled_from([0, 1, 1, 2]))):
        _change(draw, document)
    body = json.dumps(document).encode()
    if kind == 2:
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=6)) + body[at + draw(st.integers(0, 6)) :]
    return gzip.compress(body) if kind == 3 else body


def _change(draw: st.DrawFn, document: dict[str, Any]) -> None:
    if "messages" in document and isinstance(document["messages"], list) and draw(st.booleans()):
        message = draw(st.sampled_from(["role", "content", "name", "tool_calls", "function_call", "refusal"]))
        new = {"role": "user", "content": "Hi", message: draw(VALUES)}
        parts = [{"type": draw(st.sampled_from(["text", "image_url", "file", "odd"])), "text": draw(VALUES)}]
        if draw(st.booleans()):
            new["content"] = parts
        document["messages"].append(new)
        return
    name = draw(st.sampled_from(FIELDS) | TEXTS)
    if draw(st.integers(0, 4)) == 0:
        document.pop(name, None)
    else:
        document[name] = draw(VALUES)


class Caller:
    """Sends requests as one customer and judges the answers."""

    def __init__(self, payer: Payer) -> None:
        self.payer = payer
        self.pool = urllib3.PoolManager(retries=False, timeout=20.0)
        self.statuses: Counter[int] = Counter()
        self.first_seq = max((row["seq"] for row in emulator_rows(payer.emulator)), default=0)

    def _ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> urllib3.BaseHTTPResponse:
        url = self.payer.edge_url + path
        try:
            return self.pool.request(method, url, body=body, headers=headers, redirect=False)
        except urllib3.exceptions.ProtocolError:
            # After a body that can't be read the edge closes: a kept connection may end under the next one.
            self.pool.clear()
            return self.pool.request(method, url, body=body, headers=headers, redirect=False)

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        answer = self._ask(method, path, headers, body)
        self.statuses[answer.status] += 1
        text = answer.data
        if answer.status in (502, 503):
            # The emulator is healthy: what it refuses is the client's fault.
            raise AssertionError(f"{answer.status}: {text!r}")
        assert answer.status < 500, (answer.status, text)
        if answer.status >= 400 and method != "HEAD" and answer.headers.get("x-request-id"):
            assert set(json.loads(text)["error"]) >= {"message", "type", "param", "code"}, text
        elif answer.status >= 400 and method != "HEAD":
            # Not even HTTP: refused by the server's parser before there is a request.
            assert answer.status == 400, text
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            assert b"data: [DONE]" in text or b'"error"' in text, text


@pytest.fixture(scope="module")
def caller(stack: Stack) -> Iterator[Caller]:
    caller = Caller(Payer.create(stack))
    yield caller
    caller.pool.clear()


@given(data=st.data())
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_no_request_is_answered_with_a_server_error(caller: Caller, data: st.DataObject) -> None:
    path = data.draw(paths(), label="path")
    method = data.draw(METHODS, label="method")
    body = data.draw(bodies(path.partition("?")[0]), label="body")
    headers = data.draw(st.dictionaries(HEADER_NAMES, HEADER_VALUES, max_size=3), label="headers")
    key = data.draw(st.sampled_from([caller.payer.api_key] * 30 + ["", "sk-wrong", "\x7f"]), label="key")
    if body[:2] == b"\x1f\x8b":
        headers["content-encoding"] = "gzip"
    caller.send(method, path, headers | {"Authorization": f"Bearer {key}"}, body)


def test_random_models_are_not_found(caller: Caller) -> None:
    @given(model=st.text(min_size=1, max_size=300))
    @settings(max_examples=40, deadline=None, database=None, derandomize=True)
    def ask(model: str) -> None:
        body = json.dumps({**PATHS["/v1/chat/completions"], "model": model}).encode()
        caller.send("POST", "/v1/chat/completions", {"Authorization": f"Bearer {caller.payer.api_key}"}, body)

    ask()


def test_a_header_that_cannot_be_sent_on_is_not_taken_for_the_upstreams_failure(caller: Caller) -> None:
    key = f"Bearer {caller.payer.api_key}"
    # More than it takes to open both edges' breakers, which would stop everybody.
    for _ in range(20):
        body = json.dumps(PATHS["/v1/moderations"]).encode()
        caller.send("POST", "/v1/moderations", {"Authorization": key, "openai-beta": "\u00e9\u00ff"}, body)


HEADS = st.lists(
    st.sampled_from(
        [
            b"POST /v1/chat/completions HTTP/1.1\r\n", b"GET /v1/models HTTP/1.1\r\n", b"Host: a\r\n",
            b"\r\n", b"GET  HTTP/9.9\r\n", b" folded\r\n",
            b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: 99999999999999\r\n",
            b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"zz\r\n", b"{}", b"\x00\xff",
            b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"Content-Encoding: gzip\r\n", b": x\r\n",
            b"X: " + b"y" * 9_000 + b"\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ]
    )
    | st.binary(max_size=20),
    max_size=8,
)  # fmt: skip


@given(parts=HEADS)
@settings(
    max_examples=80,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_bytes_that_are_hardly_http_get_no_server_error(caller: Caller, parts: list[bytes]) -> None:
    edge = urlsplit(caller.payer.edge_url)
    with socket.create_connection((edge.hostname, edge.port), timeout=10) as connection:
        said = b""
        with suppress(ConnectionError):
            connection.sendall(b"".join(parts))
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(65_536):
                said += data
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", said)]
    assert not said or statuses
    assert all(status < 500 for status in statuses), said


def test_afterwards_nothing_is_held_and_every_charge_is_the_upstreams(stack: Stack, caller: Caller) -> None:
    rows = {row["request_id"]: row["cost_nanos"] for row in caller.payer.settled_any()}
    due = {}
    for request_id, sent in sent_by(caller.payer.emulator).items():
        if sent["seq"] > caller.first_seq and sent["usage"] is not None:
            due[request_id] = cost_of(caller.payer.prices[sent["model"]], sent["usage"])
    assert rows == {request_id: cost for request_id, cost in due.items() if cost}
    assert stack.cli("reconcile")["differences"] == []
    # Both sides of the fence were met.
    assert caller.statuses[200] >= 30, caller.statuses
    assert caller.statuses[400] >= 30, caller.statuses
    assert caller.statuses[404] >= 10, caller.statuses
