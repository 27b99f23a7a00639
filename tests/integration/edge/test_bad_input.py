"""What isn't a request gets 4xx in the API's shape, holds nothing and costs nothing."""

from __future__ import annotations

import gzip
import io
import zlib

import brotli
import pytest
from backports import zstd

from tests.integration.edge.conftest import API_KEY, Edge, StartEdge, eventually
from tests.integration.edge.meter_double import Books

CHAT = '{"model":"gpt-4o","messages":[{"role":"user","content":"Hi"}]%s}'
ERROR_KEYS = {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe{}",
        CHAT.encode().replace(b"Hi", b"\xff\xfe") % b"",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model":"gpt-4o","messages":[]}',
        b'{"model":"gpt-4o","messages":"Hi"}',
        b'{"model":"gpt-4o"}',
        b'{"messages":[{"role":"user","content":"Hi"}]}',
        b'{"model":7,"messages":[{"role":"user","content":"Hi"}]}',
        (CHAT % ',"stream":"yes"').encode(),
        (CHAT % ',"n":1000000000').encode(),
        (CHAT % ',"n":0').encode(),
        (CHAT % ',"max_tokens":-1').encode(),
        (CHAT % ',"max_tokens":"x"').encode(),
        (CHAT % ',"max_tokens":NaN').encode(),
        (CHAT % (',"max_tokens":1' + "0" * 30)).encode(),
        (CHAT % "").replace("gpt-4o", "no-such-model").encode(),
    ],
    ids=lambda body: repr(body[:40]) + str(len(body)),
)
async def test_a_bad_body_is_refused_and_holds_nothing(edge: Edge, books: Books, body: bytes) -> None:
    url = f"{edge.url}/v1/chat/completions"
    headers = {"Content-Type": "application/json"}
    async with edge.client.post(url, data=body, headers=headers) as response:
        answer = await response.json()
    assert 400 <= response.status < 500
    assert set(answer["error"]) == ERROR_KEYS
    assert answer["error"]["type"] == "invalid_request_error"
    assert response.headers["x-request-id"]
    assert not books.account.held
    assert not books.granted
    assert not books.settled


async def test_a_body_over_the_limit_is_refused_however_it_is_packed(
    start_edge: StartEdge, books: Books
) -> None:
    edge = await start_edge(body_bytes_max=100_000)
    huge = (CHAT % (',"user":"' + "x" * 5_000_000 + '"')).encode()
    url = f"{edge.url}/v1/chat/completions"
    packed = {
        "": huge,
        "gzip": gzip.compress(huge),
        "deflate": zlib.compress(huge),
        "br": brotli.compress(huge),
        "zstd": zstd.compress(huge),
    }
    for encoding, body in packed.items():
        headers = {"Content-Encoding": encoding} if encoding else {}
        async with edge.client.post(url, data=io.BytesIO(body), headers=headers) as response:
            assert response.status == 413, encoding
            assert (await response.json())["error"]["code"] == "request_too_large"
    assert not books.granted


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
async def test_a_compressed_body_is_read(edge: Edge, books: Books, encoding: str) -> None:
    pack = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress, "zstd": zstd.compress}
    url, headers = f"{edge.url}/v1/chat/completions", {"Content-Encoding": encoding}
    data = pack[encoding]((CHAT % "").encode())
    async with edge.client.post(url, data=data, headers=headers) as response:
        assert response.status == 200, await response.text()
    async with edge.client.post(url, data=data[:-9] + b"garbage!!", headers=headers) as response:
        assert response.status == 400
    headers = {"Content-Encoding": "gzip, br"}
    async with edge.client.post(url, data=data, headers=headers) as response:
        assert response.status == 400
    await eventually(lambda: len(books.settled) == 1)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic abc"},
        {"Authorization": API_KEY},
        {"Authorization": "Bearer sk-unknown"},
        {"Authorization": "Bearer two words"},
        {"Authorization": f"Bearer {'x' * 5_000}"},
        {"x-api-key": "schlüssel"},
        {"api-key": "sk-unknown"},
    ],
    ids=str,
)
async def test_a_missing_malformed_or_unknown_key_gets_401(
    edge: Edge, books: Books, headers: dict[str, str]
) -> None:
    edge.client.headers.popall("Authorization")
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/v1/models/x")):
        async with edge.client.request(method, edge.url + path, data=b"{}", headers=headers) as response:
            answer = await response.json()
        assert response.status == 401
        assert set(answer["error"]) == ERROR_KEYS
        assert answer["error"]["code"] == "invalid_api_key"
    assert not books.granted


async def test_an_unknown_path_is_404_and_a_wrong_method_405(edge: Edge) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("POST", "/", 405),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/models/gpt-4o", 405),
    ):
        async with edge.client.request(method, edge.url + path) as response:
            assert response.status == status, path
            assert set((await response.json())["error"]) == ERROR_KEYS
            assert response.headers["x-request-id"]
    async with edge.client.head(f"{edge.url}/") as response:
        assert response.status == 200


async def test_no_balance_is_not_worth_a_retry(edge: Edge, books: Books) -> None:
    books.account.balance_nanos = 1_000
    for stream in (False, True):
        async with edge.chat(stream=stream) as response:
            error = (await response.json())["error"]
        assert response.status == 429
        assert (error["code"], error["type"]) == ("insufficient_quota", "insufficient_quota")
        assert response.headers["x-should-retry"] == "false"
    assert not books.account.held
