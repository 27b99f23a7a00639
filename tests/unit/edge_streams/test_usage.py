"""Usage reports as they really come."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.money import TokenCounts
from services.edge.dialects.usage import TOKENS_MAX, cost_number, read_usage, usage_json


def tokens_of(report: dict[str, Any]) -> TokenCounts:
    usage = read_usage(json.dumps(report).encode())
    assert usage is not None
    assert json.loads(usage.json) == report
    return usage.tokens


def faults_of(report: dict[str, Any]) -> tuple[str, ...]:
    usage = read_usage(json.dumps(report).encode())
    assert usage is not None
    return usage.faults


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}, TokenCounts(input=9, output=4)),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "total_tokens": 150,
                "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 10},
                "completion_tokens_details": {
                    "reasoning_tokens": 30,
                    "audio_tokens": 5,
                    "accepted_prediction_tokens": 3,
                    "rejected_prediction_tokens": 7,
                },
            },
            TokenCounts(input=30, cached_input=60, audio_input=10, output=15, reasoning=30, audio_output=5),
        ),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 1,
                "prompt_cache_hit_tokens": 64,
                "prompt_cache_miss_tokens": 36,
            },
            TokenCounts(input=36, cached_input=64, output=1),
        ),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 1,
                "prompt_tokens_details": {"cache_write_tokens": 40},
            },
            TokenCounts(input=60, cache_write=40, output=1),
        ),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 1,
                "cache_read_input_tokens": 20,
                "cache_creation_input_tokens": 30,
            },
            TokenCounts(input=50, cached_input=20, cache_write=30, output=1),
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 1, "cached_tokens": 4},
            TokenCounts(input=6, cached_input=4, output=1),
        ),
        ({"prompt_tokens": 8, "total_tokens": 8}, TokenCounts(input=8)),
        ({"input_tokens": 8, "output_tokens": 2}, TokenCounts(input=8, output=2)),
        ({"prompt_tokens": "8", "completion_tokens": 2.0}, TokenCounts(input=8, output=2)),
        (
            {"prompt_tokens": 8, "completion_tokens": 2, "prompt_tokens_details": None},
            TokenCounts(input=8, output=2),
        ),
        ({"prompt_tokens": 8, "completion_tokens": 2, "total_tokens": 1}, TokenCounts(input=8, output=2)),
    ],
    ids=range(11),
)
def test_token_classes_are_disjoint(report: dict[str, Any], expected: TokenCounts) -> None:
    assert tokens_of(report) == expected
    assert faults_of(report) == ()


@pytest.mark.parametrize(
    ("report", "expected", "faults"),
    [
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 115,
                "completion_tokens_details": {"reasoning_tokens": 100},
            },
            TokenCounts(input=10, output=5, reasoning=100),
            ("reasoning_beside_output",),
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 45},
            TokenCounts(input=10, output=5, reasoning=30),
            ("total_exceeds_parts",),
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 99}},
            TokenCounts(cached_input=10, output=5),
            ("subset_too_large",),
        ),
        ({"prompt_tokens": -10, "completion_tokens": 5}, TokenCounts(output=5), ("negative",)),
        (
            {"prompt_tokens": "many", "completion_tokens": 5},
            TokenCounts(output=5),
            ("incomplete", "not_a_number"),
        ),
        (
            {"prompt_tokens": True, "completion_tokens": 5},
            TokenCounts(output=5),
            ("incomplete", "not_a_number"),
        ),
        (
            {"prompt_tokens": 10**30, "completion_tokens": 5},
            TokenCounts(input=TOKENS_MAX, output=5),
            ("absurd_count",),
        ),
        ({"completion_tokens": 5, "total_tokens": 12}, TokenCounts(input=7, output=5), ("incomplete",)),
    ],
    ids=range(8),
)
def test_nonsense_is_corrected_and_flagged(
    report: dict[str, Any], expected: TokenCounts, faults: tuple[str, ...]
) -> None:
    assert (tokens_of(report), faults_of(report)) == (expected, faults)


@pytest.mark.parametrize(
    "raw", [b"null", b"{}", b"[]", b"5", b"{", b'{"prompt_tokens":null}', b'{"x":NaN}', b"[" * 100_000]
)
def test_what_reports_nothing_is_none(raw: bytes) -> None:
    assert read_usage(raw) is None


def test_a_report_too_large_to_keep_is_read_all_the_same() -> None:
    usage = read_usage(json.dumps({"prompt_tokens": 1, "completion_tokens": 2, "x": "y" * 5_000}).encode())
    assert usage is not None
    assert (usage.json, usage.tokens) == ("", TokenCounts(input=1, output=2))


COUNT = st.none() | st.integers(-5, 50) | st.floats() | st.text(max_size=3) | st.booleans() | st.just(10**20)
DETAILS = st.none() | st.dictionaries(
    st.sampled_from(["cached_tokens", "audio_tokens", "reasoning_tokens", "cache_write_tokens"]), COUNT
)


@settings(max_examples=150, deadline=None)
@given(
    counts=st.dictionaries(
        st.sampled_from(
            [
                "prompt_tokens",
                "completion_tokens",
                "total_tokens",
                "prompt_cache_hit_tokens",
                "reasoning_tokens",
            ]
        ),
        COUNT,
    ),
    of_input=DETAILS,
    of_output=DETAILS,
)
def test_no_report_gives_negative_or_unbounded_counts(
    counts: dict[str, Any], of_input: dict[str, Any] | None, of_output: dict[str, Any] | None
) -> None:
    report = {**counts, "prompt_tokens_details": of_input, "completion_tokens_details": of_output}
    usage = read_usage(json.dumps(report).encode())
    if usage is not None:
        classes = [getattr(usage.tokens, name) for name in TokenCounts.__struct_fields__]
        assert all(isinstance(count, int) and 0 <= count <= 2 * TOKENS_MAX for count in classes)
        prompt = counts.get("prompt_tokens")
        if type(prompt) is int and 0 <= prompt <= TOKENS_MAX:
            assert usage.tokens.input_total == prompt


def test_our_own_report_reads_back_and_has_the_cost() -> None:
    tokens = TokenCounts(input=30, cached_input=60, audio_input=10, output=15, reasoning=30, audio_output=5)
    raw = usage_json(tokens, 1_234_000)
    usage = read_usage(raw)
    assert usage is not None
    assert (usage.tokens, usage.faults) == (tokens, ())
    assert b'"cost_usd":0.001234}' in raw
    assert (cost_number(0), cost_number(12_000_000_000), cost_number(1)) == (
        b"0.00",
        b"12.00",
        b"0.000000001",
    )
