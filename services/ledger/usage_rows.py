"""Usage rows, in the order of `COLUMNS`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from services.common.money import TOKEN_CLASSES
from services.ledger.postings import Charge, clean_text

COLUMNS: Final[tuple[str, ...]] = (
    "session_id", "account_id", "key_id", "edge_id", "endpoint", "model", "price_version", "ratio_ppm",
    "epoch",
    *(f"{token_class}_tokens" for token_class in TOKEN_CLASSES),
    "cost_nanos", "loan_nanos", "available_nanos", "overrun_nanos", "held_nanos", "stream", "outcome",
    "usage_source", "channel_id", "upstream_model", "request_id", "started_at_ms", "first_byte_ms",
    "duration_ms", "usage_json", "flags",
)  # fmt: skip


def usage_rows(charges: Sequence[Charge]) -> Iterator[tuple[object, ...]]:
    for charge in charges:
        record, tokens = charge.entry.record, charge.entry.record.tokens
        yield (
            record.session_id,
            record.account_id,
            clean_text(record.key_id),
            clean_text(record.edge_id),
            clean_text(record.endpoint),
            clean_text(record.model),
            record.price_version,
            record.ratio_ppm,
            charge.entry.epoch,
            tokens.input,
            tokens.cached_input,
            tokens.cache_write,
            tokens.audio_input,
            tokens.output,
            tokens.reasoning,
            tokens.audio_output,
            record.cost_nanos,
            charge.loan_nanos,
            charge.available_nanos,
            charge.overrun_nanos,
            record.held_nanos,
            record.stream,
            clean_text(record.outcome),
            clean_text(record.usage_source),
            clean_text(record.channel_id),
            clean_text(record.upstream_model),
            clean_text(record.request_id),
            record.started_at_ms,
            record.first_byte_ms,
            record.duration_ms,
            clean_text(record.usage_json),
            [clean_text(flag) for flag in record.flags],
        )
