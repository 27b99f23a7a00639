"""What upstreams' failures mean, and what of them a client sees."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.edge.dialects.endpoint import UpstreamError
from services.edge.upstreams.verdicts import (
    error_for_client,
    judge_error,
    judge_status,
    rejection_body,
    retry_after_ms,
)


def error(**fields: Any) -> bytes:
    return json.dumps({"error": {"message": "m", **fields}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "outcome", "counts_as"),
    [
        (400, error(code="context_length_exceeded"), "rejected", 400),
        (404, error(code="x"), "rejected", 404),
        (404, error(code="model_not_found"), "unknown_model", 404),
        (409, b"", "rejected", 409),
        (413, b"<html>", "rejected", 413),
        (422, b"{}", "rejected", 422),
        (400, error(code="invalid_api_key"), "credential_refused", 401),
        (
            400,
            error(status="INVALID_ARGUMENT", details=[{"reason": "API_KEY_INVALID"}]),
            "credential_refused",
            401,
        ),
        (401, b"", "credential_refused", 401),
        (402, b"", "credential_refused", 402),
        (403, b"", "credential_refused", 403),
        (429, b"", "rate_limited", 429),
        (429, error(code="rate_limit_exceeded"), "rate_limited", 429),
        (429, error(code="insufficient_quota", type="insufficient_quota"), "credential_refused", 402),
        (408, b"", "server_error", 408),
        (500, b"", "server_error", 500),
        (503, b"", "server_error", 503),
        (529, b"", "server_error", 529),
        (302, b"", "garbage", 302),
        (204, b"", "garbage", 204),
    ],
)
def test_statuses_are_judged(status: int, body: bytes, outcome: str, counts_as: int) -> None:
    verdict = judge_status(status, {}, body)
    assert (verdict.outcome, verdict.status) == (outcome, counts_as)


@pytest.mark.parametrize(
    ("code", "kind", "outcome"),
    [
        ("insufficient_quota", "", "credential_refused"),
        ("", "invalid_api_key", "credential_refused"),
        ("429", "", "rate_limited"),
        ("", "rate_limit_error", "rate_limited"),
        ("", "server_error", "server_error"),
        ("", "", "server_error"),
    ],
)
def test_errors_that_come_with_status_200_are_judged(code: str, kind: str, outcome: str) -> None:
    assert judge_error(UpstreamError("m", code, kind), {}).outcome == outcome


@pytest.mark.parametrize(
    ("outcome", "status", "client_status", "code"),
    [
        ("credential_refused", 401, 502, "upstream_error"),
        ("credential_refused", 402, 502, "upstream_error"),
        ("credential_refused", 403, 502, "upstream_error"),
        ("rate_limited", 429, 429, "upstream_rate_limited"),
        ("server_error", 500, 502, "upstream_error"),
        ("server_error", 503, 503, "upstream_unavailable"),
        ("server_error", 529, 503, "upstream_unavailable"),
        ("unavailable", 503, 503, "upstream_unavailable"),
        ("garbage", 200, 502, "upstream_error"),
        ("timed_out", 0, 502, "upstream_timeout"),
        ("refused", 0, 502, "upstream_error"),
    ],
)
def test_an_operators_trouble_never_looks_like_the_clients(
    outcome: str, status: int, client_status: int, code: str
) -> None:
    found = error_for_client(outcome, status, 2_000)
    assert (found.status, found.code) == (client_status, code)
    assert found.type != "insufficient_quota"
    if client_status in (429, 503):
        assert found.retry_after_ms == 2_000


def test_a_rejection_in_the_apis_shape_keeps_its_bytes() -> None:
    body = b'{ "error" : {"message":"bad","type":"invalid_request_error","param":"x","code":null}}'
    assert rejection_body(400, body) is body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The model's provider rejected the request (status 422)."),
        (b"<html><h1>Bad</h1></html>", "The model's provider rejected the request (status 422)."),
        (b"prompt too long", "prompt too long"),
        (b'{"error":{"message":"bad"}}', "bad"),
        (b'{"error":"bad"}', "bad"),
        (b'{"message":"bad","code":"c"}', "bad"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"[" * 100_000, None),
    ],
)
def test_other_rejections_are_put_into_the_apis_shape(body: bytes, message: str | None) -> None:
    found = json.loads(rejection_body(422, body))["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert message is None or found["message"] == message
    assert len(found["message"]) <= 500


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2_000),
        ({"retry-after": "0.5"}, 500),
        ({"retry-after-ms": "70", "retry-after": "9"}, 70),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "99999999"}, 3_600_000),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40_000),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
    ],
    ids=str,
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], expected: int | None) -> None:
    assert retry_after_ms(headers, now_seconds=60.0) == expected
