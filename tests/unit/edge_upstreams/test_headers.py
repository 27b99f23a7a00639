"""What passes, each way."""

from __future__ import annotations

from multidict import CIMultiDict

from services.common.contracts.catalogue import ChannelCredential
from services.edge.upstreams.headers import reply_headers, request_headers, upstream_headers
from tests.unit.edge_upstreams.channels import channel

CREDENTIAL = ChannelCredential(id="c", secret="upstream-secret")


def test_only_named_request_headers_go_upstream() -> None:
    client = CIMultiDict(
        {
            "Authorization": "Bearer sk-mw-client",
            "Cookie": "session=1",
            "X-Forwarded-For": "192.0.2.1",
            "X-Api-Key": "sk-mw-client",
            "Idempotency-Key": "k",
            "OpenAI-Beta": "assistants=v2",
            "OpenAI-Organization": "org-client",
            "User-Agent": "OpenAI/Python",
            "Host": "gateway",
        }
    )
    headers = request_headers(client, request_id="req-1", stream=True)
    assert headers == {
        "content-type": "application/json",
        "accept": "text/event-stream",
        "accept-encoding": "identity",
        "user-agent": "meterway",
        "x-request-id": "req-1",
        "openai-beta": "assistants=v2",
    }
    assert request_headers({}, request_id="r", stream=False)["accept"] == "application/json"


def test_the_channels_credential_goes_where_its_kind_wants_it() -> None:
    openai, azure = channel("a", headers={"X-Title": "t"}), channel("a", kind="azure")
    assert upstream_headers({}, openai, CREDENTIAL) == {
        "x-title": "t",
        "authorization": "Bearer upstream-secret",
    }
    assert upstream_headers({}, azure, CREDENTIAL) == {"api-key": "upstream-secret"}


def test_a_channels_headers_win_but_do_not_frame_the_message() -> None:
    odd = channel("a", headers={"USER-AGENT": "x", "Content-Length": "5", "Transfer-Encoding": "chunked"})
    merged = upstream_headers({"user-agent": "meterway", "accept": "*/*"}, odd, CREDENTIAL)
    assert merged == {"user-agent": "x", "accept": "*/*", "authorization": "Bearer upstream-secret"}


def test_only_named_reply_headers_reach_the_client() -> None:
    upstream = CIMultiDict(
        {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Content-Encoding": "gzip",
            "Content-Length": "5",
            "Transfer-Encoding": "chunked",
            "Connection": "close",
            "Set-Cookie": "__cf_bm=1",
            "OpenAI-Processing-Ms": "12",
            "OpenAI-Organization": "operator-org",
            "X-RateLimit-Remaining-Requests": "9",
            "X-Request-Id": "req_upstream",
            "Server": "cloudflare",
        }
    )
    assert reply_headers(upstream) == {
        "content-type": "text/event-stream; charset=utf-8",
        "openai-processing-ms": "12",
    }
