"""Keys, addresses, errors and batches: small pure parts of the edge."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.common.contracts.charging import CountInput, RateLimitState, Refused, Resolve
from services.common.errors import InsufficientQuota, InvalidApiKey, MeterwayError, RateLimited
from services.common.ids import hash_api_key
from services.common.money import PriceVector
from services.edge.auth import read_api_key
from services.edge.client_address import TrustedProxies
from services.edge.errors_http import duration, error_of, error_reply, rate_limit_headers
from services.edge.handlers.models import usd_per_million
from services.edge.meter_client import FRAME_BODY_BYTES, _Link, pick_link, split_batch
from services.edge.metrics import register


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer sk-1"},
        {"Authorization": "bearer  sk-1 "},
        {"x-api-key": "sk-1"},
        {"api-key": "sk-1"},
        {"Authorization": "Basic abc", "x-api-key": "sk-1"},
    ],
)
def test_a_key_is_found_in_each_header(headers: dict[str, str]) -> None:
    assert read_api_key(headers) == "sk-1"


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "sk-1"}, {"x-api-key": "a b"}, {"api-key": "x" * 257}, {"api-key": "é"}]
)
def test_what_can_not_be_a_key_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidApiKey):
        read_api_key(headers)


def test_only_a_trusted_proxy_is_believed() -> None:
    proxies = TrustedProxies(["10.0.0.0/8", "::1/128"])
    assert proxies.client_address("203.0.113.9", "1.2.3.4") == "203.0.113.9"
    assert proxies.client_address("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.9.9.9") == "1.2.3.4"
    assert proxies.client_address("10.0.0.1", "1.2.3.4, nonsense") == "10.0.0.1"
    assert proxies.client_address("10.0.0.1", None) == "10.0.0.1"
    assert proxies.client_address("::1", "2001:db8::1") == "2001:db8::1"
    assert TrustedProxies([]).client_address("10.0.0.1", "1.2.3.4") == "10.0.0.1"
    with pytest.raises(ValueError, match="does not appear"):
        TrustedProxies(["everyone"])


def test_a_refusal_becomes_the_error_it_names() -> None:
    error = error_of(Refused("RateLimited", "rate_limit_exceeded", "Wait.", retry_after_ms=1_500))
    assert isinstance(error, RateLimited)
    reply = error_reply(error, "request-1", RateLimitState(requests_limit=3, requests_reset_ms=61_000))
    assert reply.status == 429
    assert reply.headers["retry-after"] == "2"
    assert reply.headers["retry-after-ms"] == "1500"
    assert reply.headers["x-ratelimit-remaining-requests"] == "0"
    assert reply.headers["x-ratelimit-reset-requests"] == "1m1s"
    assert "x-should-retry" not in reply.headers
    assert type(error_of(Refused("NewerThanThis", "x", "y"))) is MeterwayError


def test_no_quota_is_not_worth_a_retry() -> None:
    assert error_reply(InsufficientQuota(), "request-1").headers["x-should-retry"] == "false"


def test_rate_limit_headers_name_only_limits_that_there_are() -> None:
    assert rate_limit_headers(RateLimitState()) == {}
    headers = rate_limit_headers(RateLimitState(tokens_limit=5, tokens_remaining=4, tokens_reset_ms=20))
    assert headers == {
        "x-ratelimit-limit-tokens": "5",
        "x-ratelimit-remaining-tokens": "4",
        "x-ratelimit-reset-tokens": "20ms",
    }
    assert [duration(ms) for ms in (0, 999, 1_000, 1_001, 360_000)] == ["0ms", "999ms", "1s", "2s", "6m0s"]


def test_prices_are_shown_exactly() -> None:
    price = PriceVector(input=2_500_000, output=75_000)
    assert usd_per_million(price.input) == "2.5"
    assert usd_per_million(price.output) == "0.075"
    assert usd_per_million(30_000_000) == "30"


def test_large_bodies_do_not_share_a_frame() -> None:
    small = Resolve(hash_api_key("sk-1"))
    large = CountInput("chat.completions", "gpt-4o", b"x" * FRAME_BODY_BYTES)
    batch = [(1, small), (2, large), (3, large), (4, small)]
    assert [[call_id for call_id, _ in part] for part in split_batch(batch)] == [[1, 2], [3, 4]]


def test_when_a_meter_goes_only_its_own_buckets_move() -> None:
    links = [_Link(f"http://10.0.0.{number}:7001", None) for number in range(4)]  # type: ignore[arg-type]
    before = [pick_link(links, bucket) for bucket in range(256)]
    assert all(sum(link is chosen for chosen in before) > 30 for link in links)
    after = [pick_link(links[1:], bucket) for bucket in range(256)]
    assert all(new is old for old, new in zip(before, after, strict=True) if old is not links[0])
    assert pick_link([], 3) is None


def test_metrics_are_collected_on_scrape() -> None:
    registry = CollectorRegistry()
    metrics = register(registry)
    metrics.refusals["insufficient_quota"] += 2
    assert b'meterway_edge_refusals_total{code="insufficient_quota"} 2.0' in generate_latest(registry)
