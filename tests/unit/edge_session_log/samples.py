"""Sessions to put into a log."""

from __future__ import annotations

import random
import uuid
from functools import lru_cache
from pathlib import Path

import msgspec

from services.common.contracts.charging import SessionRef, Settle, UsageRecord
from services.common.ids import AccountId, EdgeId, KeyId, SessionId
from services.common.money import PriceVector, TokenCounts, cost_nanos
from services.edge.session_log import Held, SessionLog

EDGE = EdgeId("edge-a")
PRICE = PriceVector(input=2_500_000, output=10_000_000)
RATIO_PPM = 1_000_000
USAGE_JSON = '{"prompt_tokens":900,"completion_tokens":200,"total_tokens":1100}'


@lru_cache(maxsize=100_000)
def session_id(seed: int) -> SessionId:
    value = random.Random(seed).getrandbits(128)
    return SessionId(str(uuid.UUID(int=(value & ~(0xF << 76)) | (0x7 << 76))))


def held(
    seed: int = 1,
    *,
    stream: bool = True,
    epoch: int = 3,
    held_nanos: int = 1_000_000_000,
    input_tokens: int = 900,
    input_exact: bool = True,
    price: PriceVector = PRICE,
    ratio_ppm: int = RATIO_PPM,
    model: str = "gpt-4o-mini",
) -> Held:
    return Held(
        ref=SessionRef(session_id(seed), AccountId("acct_1"), KeyId("key_1"), 7, epoch),
        seq=1,
        edge_id=EDGE,
        held_nanos=held_nanos,
        granted_tokens=2_048,
        price_version=17,
        price=price,
        ratio_ppm=ratio_ppm,
        endpoint="chat_completions",
        model=model,
        stream=stream,
        input_tokens=input_tokens,
        input_exact=input_exact,
        started_at_ms=1_790_000_000_000,
    )


def settle(of: Held, *, output: int = 200, seq: int = 2, usage_json: str = USAGE_JSON) -> Settle:
    tokens = TokenCounts(input=of.input_tokens, output=output)
    record = UsageRecord(
        session_id=of.ref.session_id,
        account_id=of.ref.account_id,
        key_id=of.ref.key_id,
        edge_id=of.edge_id,
        endpoint=of.endpoint,
        model=of.model,
        price_version=of.price_version,
        ratio_ppm=of.ratio_ppm,
        tokens=tokens,
        cost_nanos=cost_nanos(tokens, of.price, of.ratio_ppm),
        held_nanos=of.held_nanos,
        stream=of.stream,
        outcome="complete",
        usage_source="upstream",
        channel_id="chan_1",
        upstream_model=of.model,
        request_id=of.ref.session_id,
        started_at_ms=of.started_at_ms,
        usage_json=usage_json,
    )
    return Settle(ref=of.ref, seq=seq, record=record)


def with_usage(call: Settle, usage_json: str) -> Settle:
    return msgspec.structs.replace(call, record=msgspec.structs.replace(call.record, usage_json=usage_json))


def open_log(
    root: Path,
    *,
    segment_bytes: int = 64 * 1024,
    bytes_max: int = 16 * 1024 * 1024,
    sync_interval_ms: int = 20,
    slots_per_file: int = 64,
) -> SessionLog:
    return SessionLog.open(
        root,
        EDGE,
        segment_bytes=segment_bytes,
        bytes_max=bytes_max,
        sync_interval_ms=sync_interval_ms,
        slots_per_file=slots_per_file,
    )
