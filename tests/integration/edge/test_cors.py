"""Browser pages of another origin, and addresses that aren't the API's."""

from typing import Any

import aiohttp
import pytest

from services.edge import cors
from services.edge.routes import ALLOWED_METHODS
from tests.integration.edge.conftest import API_KEY, Edge, StartEdge

ORIGIN = {"Origin": "https://chat.example.com"}


def preflight(edge: Edge, path: str, method: str = "POST", asked: str = "authorization", **more: str) -> Any:
    headers = {
        **ORIGIN,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": asked,
        **more,
    }
    return aiohttp.request("OPTIONS", f"{edge.url}{path}", headers=headers)


async def test_every_address_answers_a_preflight_without_a_key(edge: Edge) -> None:
    paths = [path.replace("{id:.+}", "org/model") for path in ALLOWED_METHODS]
    assert len(paths) >= 14
    for path in paths:
        async with preflight(edge, path) as response:
            assert response.status == 204, path
            assert response.headers["Access-Control-Allow-Origin"] == "*"
            assert response.headers["Access-Control-Allow-Methods"] in ("POST", "GET, HEAD")
            allowed = response.headers["Access-Control-Allow-Headers"].split(", ")
            assert {"authorization", "content-type", "x-api-key", "x-stainless-lang"} <= set(allowed)
            assert "Access-Control-Allow-Credentials" not in response.headers
            assert int(response.headers["Access-Control-Max-Age"]) > 0
    async with preflight(edge, "/v1/nothing") as response:
        assert response.status == 404


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("X-Stainless-New, my-header", {"x-stainless-new", "my-header"}),
        ("", set()),
        (" , ,", set()),
        ("a" * 101, set()),
        ("a b", set()),
        ("ok, bad\u00e9", set()),
        (", ".join(f"h{number}" for number in range(101)), set()),
        ("x-y" + "," * 4_096, set()),
    ],
)
def test_headers_that_are_asked_for_are_allowed_when_they_are_sane(asked: str, expected: set[str]) -> None:
    assert set(cors.allowed_headers(asked)) - set(cors.ALLOWED_HEADERS) == expected


async def test_replies_errors_and_streams_may_be_read_by_a_page(edge: Edge) -> None:
    url = f"{edge.url}/v1/chat/completions"
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi [[emulate tokens=3]]"}]}
    for document, headers, status in (
        (body, {}, 200),
        (body | {"stream": True}, {}, 200),
        ({}, {}, 400),
        (body, {"Authorization": "Bearer sk-unknown"}, 401),
        (body | {"model": "unknown"}, {}, 404),
    ):
        async with edge.client.post(url, json=document, headers=ORIGIN | headers) as response:
            assert response.status == status
            assert response.headers["Access-Control-Allow-Origin"] == "*"
            exposed = response.headers["Access-Control-Expose-Headers"]
            assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens"} <= set(exposed.split(", "))
            await response.read()
    async with edge.client.post(url, json=body) as response:
        assert not [name for name in response.headers if name.startswith("Access-Control")]


async def test_only_listed_origins_are_allowed_when_there_is_a_list(start_edge: StartEdge) -> None:
    edge = await start_edge(cors_origins=("https://Chat.example.com", "http://localhost:3000"))
    for origin, is_allowed in (
        ("https://chat.example.com", True),
        ("http://localhost:3000", True),
        ("https://evil.example.com", False),
        ("null", False),
    ):
        async with preflight(edge, "/v1/models", "GET", **{"Origin": origin}) as response:
            assert response.headers.get("Access-Control-Allow-Origin") == (origin if is_allowed else None)
            assert response.headers["Vary"] == "Origin"


async def test_no_origin_is_allowed_when_the_setting_says_so(start_edge: StartEdge) -> None:
    edge = await start_edge(cors_origins=("none",))
    async with preflight(edge, "/v1/models", "GET") as response:
        assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize(
    "origins", [("chat.example.com",), ("https://a.example/path",), ("none", "*"), ("",)]
)
def test_an_origin_that_is_none_stops_the_start(origins: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="METERWAY_CORS_ORIGINS"):
        cors.Cors(origins)


async def test_the_root_says_what_this_is(edge: Edge) -> None:
    async with aiohttp.ClientSession() as client:
        async with client.get(edge.url) as response:
            assert response.status == 200
            assert (await response.json())["service"] == "meterway"
        async with client.head(edge.url) as response:
            assert response.status == 200


async def test_unknown_addresses_and_wrong_methods_come_in_the_apis_shape(edge: Edge) -> None:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    for method, path, status, allow in (
        ("GET", "/v1/nothing", 404, None),
        ("POST", "/dashboard/billing", 404, None),
        ("GET", "/v1/embeddings", 405, "POST, OPTIONS"),
        ("DELETE", "/v1/balance", 405, "GET, HEAD, OPTIONS"),
        ("PUT", "/dashboard/billing/usage", 405, "GET, HEAD, OPTIONS"),
        ("POST", "/v1/models/org/model", 405, "GET, HEAD, OPTIONS"),
    ):
        async with aiohttp.request(method, f"{edge.url}{path}", headers=headers) as response:
            assert (response.status, response.headers.get("Allow")) == (status, allow)
            error = (await response.json())["error"]
            assert set(error) == {"message", "type", "param", "code"}
