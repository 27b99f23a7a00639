from __future__ import annotations

import ipaddress

import pytest

from services.common.errors import BadRequest
from services.ledger.upstream_address import checked_headers, is_public_address, normalized_base_url


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2001:db8::1",
    ],
)
def test_an_address_that_not_everyone_could_mean_is_not_public(address: str) -> None:
    assert not is_public_address(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "64:ff9b::101:101"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public_address(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        (" https://api.openai.com/v1/ ", "https://api.openai.com/v1"),
        ("http://h:8000/v1beta/openai/", "http://h:8000/v1beta/openai"),
    ],
)
def test_a_base_url_loses_its_last_slash(text: str, normalized: str) -> None:
    assert normalized_base_url(text) == normalized


@pytest.mark.parametrize(
    "text",
    [
        "",
        "api.openai.com/v1",
        "file:///etc/passwd",
        "gopher://h/v1",
        "http:///v1",
        "http://h",
        "http://h/",
        "http://u@h/v1",
        "http://u:p@h/v1",
        "http://h/v1?x=1",
        "http://h/v1#x",
        "http://h:99999/v1",
        "http://[::1/v1",
        "http://h/" + "v" * 600,
    ],
)
def test_what_is_no_base_url_is_refused(text: str) -> None:
    with pytest.raises(BadRequest) as refused:
        normalized_base_url(text)
    assert (refused.value.code, refused.value.param) == ("invalid_base_url", "base_url")


def test_headers_are_kept_in_lower_case() -> None:
    given = {"X-Title": "Meterway", "HTTP-Referer": "https://m.example"}
    assert checked_headers(given) == {"x-title": "Meterway", "http-referer": "https://m.example"}


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "api-key",
        "HOST",
        "Content-Length",
        "Transfer-Encoding",
        "Proxy-Authorization",
        "Cookie",
    ],
)
def test_a_header_that_the_gateway_sets_cannot_be_overridden(name: str) -> None:
    with pytest.raises(BadRequest, match="set by the gateway"):
        checked_headers({name: "x"})


@pytest.mark.parametrize("headers", [{"": "x"}, {"a b": "x"}, {"a": "x\r\ny: z"}, {"a": "é"}, {"a\n": "x"}])
def test_a_header_that_would_break_the_request_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(BadRequest, match="not a valid header"):
        checked_headers(headers)


def test_a_header_is_there_once() -> None:
    with pytest.raises(BadRequest, match="twice"):
        checked_headers({"X-A": "1", "x-a": "2"})
