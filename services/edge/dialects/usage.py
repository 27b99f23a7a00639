"""Upstreams' usage reports, as they really come, turned into disjoint token classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import orjson

from services.common.money import TokenCounts, nanos_to_usd
from services.edge.dialects.endpoint import UsageFacts

USAGE_JSON_BYTES_MAX: Final = 4_096
TOKENS_MAX: Final = 1_000_000_000
_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])
_NUMBER_CHARS_MAX: Final = 20


def read_usage(raw: bytes) -> UsageFacts | None:
    """None when `raw` (JSON) is no usage report: null, no object, or no count in it."""
    try:
        report = _OBJECT.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    counts = _Counts()
    prompt = counts.first(report, "prompt_tokens", "input_tokens")
    completion = counts.first(report, "completion_tokens", "output_tokens")
    total = counts.first(report, "total_tokens")
    if prompt is None and completion is None and total is None:
        return None
    if prompt is None:
        counts.faults.add("incomplete")
        prompt = max(0, (total or 0) - (completion or 0))
    tokens = _disjoint(report, counts, prompt, completion or 0, total)
    text = raw.decode("utf-8", "replace") if len(raw) <= USAGE_JSON_BYTES_MAX else ""
    return UsageFacts(tokens, text, tuple(sorted(counts.faults)))


def _disjoint(
    report: Mapping[str, Any], counts: _Counts, prompt: int, completion: int, total: int | None
) -> TokenCounts:
    of_input = _details(report, "prompt_tokens_details", "input_tokens_details")
    of_output = _details(report, "completion_tokens_details", "output_tokens_details")
    cached = (
        counts.first(of_input, "cached_tokens")
        or counts.first(report, "prompt_cache_hit_tokens", "cache_read_input_tokens", "cached_tokens")
        or 0
    )
    written = (
        counts.first(of_input, "cache_write_tokens", "cache_creation_tokens", "cached_creation_tokens")
        or counts.first(report, "cache_creation_input_tokens")
        or 0
    )
    reasoning = counts.first(of_output, "reasoning_tokens") or counts.first(report, "reasoning_tokens") or 0
    # Some report the reasoning beside the completion (xAI), or only inside the total (Gemini).
    beside = (total or 0) - prompt - completion
    if beside > 0:
        if reasoning in (0, beside):
            counts.faults.add("reasoning_beside_output" if reasoning else "total_exceeds_parts")
            reasoning = beside
            completion += beside
        else:
            counts.faults.add("total_exceeds_parts")
    cached = counts.within(cached, prompt)
    written = counts.within(written, prompt - cached)
    audio_input = counts.within(counts.first(of_input, "audio_tokens") or 0, prompt - cached - written)
    reasoning = counts.within(reasoning, completion)
    audio_output = counts.within(counts.first(of_output, "audio_tokens") or 0, completion - reasoning)
    return TokenCounts(
        input=prompt - cached - written - audio_input,
        cached_input=cached,
        cache_write=written,
        audio_input=audio_input,
        output=completion - reasoning - audio_output,
        reasoning=reasoning,
        audio_output=audio_output,
    )


def _details(report: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in names:
        details = report.get(name)
        if isinstance(details, dict):
            return details
    return {}


class _Counts:
    """Reads counts leniently and remembers what was wrong with them."""

    __slots__ = ("faults",)

    def __init__(self) -> None:
        self.faults: set[str] = set()

    def first(self, report: Mapping[str, Any], *names: str) -> int | None:
        """The first of these fields that holds a count."""
        for name in names:
            value = report.get(name)
            if value is not None:
                count = self._count(value)
                if count is not None:
                    return count
        return None

    def within(self, subset: int, whole: int) -> int:
        """A subset can't exceed its whole."""
        if subset <= whole:
            return subset
        # Cached audio is in both subsets: an overlap of real reports, seldom a fault worth a review.
        self.faults.add("subset_too_large")
        return max(0, whole)

    def _count(self, value: object) -> int | None:
        number = _whole_number(value)
        if number is None:
            self.faults.add("not_a_number")
            return None
        if number < 0:
            self.faults.add("negative")
            return 0
        if number > TOKENS_MAX:
            self.faults.add("absurd_count")
            return TOKENS_MAX
        return number


def _whole_number(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and abs(value) <= 2 * TOKENS_MAX else None
    if isinstance(value, str) and len(value) <= _NUMBER_CHARS_MAX and value.lstrip("-").isascii():
        return int(value) if value.lstrip("-").isdigit() and value.count("-") < 2 else None
    return None


def usage_json(tokens: TokenCounts, cost_nanos: int) -> bytes:
    """An OpenAI usage object from our own counts, with the cost."""
    report = orjson.dumps(
        {
            "prompt_tokens": tokens.input_total,
            "completion_tokens": tokens.output_total,
            "total_tokens": tokens.input_total + tokens.output_total,
            "prompt_tokens_details": {
                "cached_tokens": tokens.cached_input,
                "audio_tokens": tokens.audio_input,
            },
            "completion_tokens_details": {
                "reasoning_tokens": tokens.reasoning,
                "audio_tokens": tokens.audio_output,
            },
        }
    )
    return report[:-1] + b',"cost_usd":' + cost_number(cost_nanos) + b"}"


def cost_number(cost_nanos: int) -> bytes:
    """USD as a JSON number, exact: `0.0012`."""
    return nanos_to_usd(cost_nanos).encode()
