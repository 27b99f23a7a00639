"""The meter's settings."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.settings import Secret, setting


@dataclass(frozen=True, kw_only=True)
class MeterSettings:
    internal_credential: Secret = setting(
        "METERWAY_INTERNAL_CREDENTIAL", "What the services show each other; the same for all."
    )
    redis_url: Secret = setting(
        "REDIS_URL", "The meters' Redis, as redis://user:password@host:port/0; rediss:// for TLS."
    )
    ledger_urls: tuple[str, ...] = setting(
        "METERWAY_LEDGER_URLS",
        "Where the ledgers are, separated by commas; a DNS name stands for all behind it.",
        default=("http://127.0.0.1:7002",),
    )
    host: str = setting("METERWAY_METER_HOST", "The internal API's address.", default="127.0.0.1")
    port: int = setting(
        "METERWAY_METER_PORT", "The internal API's port.", default=7001, minimum=0, maximum=65535
    )
    lease_ms: int = setting(
        "METERWAY_LEASE_MS", "How long a grant lasts without being renewed.", default=60_000, minimum=100
    )
    orphan_grace_ms: int = setting(
        "METERWAY_ORPHAN_GRACE_MS",
        "How long a session whose lease is over keeps its hold, before its last checkpoint is charged:"
        " its edge's log, read at the edge's next start, knows better.",
        default=3_600_000,
        minimum=0,
    )
    sweep_interval_ms: int = setting(
        "METERWAY_SWEEP_INTERVAL_MS", "How often leases are looked through.", default=1_000, minimum=20
    )
    redis_timeout_ms: int = setting(
        "METERWAY_REDIS_TIMEOUT_MS", "How long Redis may take to answer one call.", default=1_500, minimum=10
    )
    ledger_timeout_ms: int = setting(
        "METERWAY_LEDGER_TIMEOUT_MS",
        "How long the ledger may take to answer while a caller waits.",
        default=1_500,
        minimum=10,
    )
    open_timeout_ms: int = setting(
        "METERWAY_OPEN_TIMEOUT_MS",
        "How long an admission may wait for Redis and the ledger in all, before it is refused.",
        default=1_900,
        minimum=10,
    )
    stream_slice_tokens: int = setting(
        "METERWAY_STREAM_SLICE_TOKENS",
        "Output tokens that a stream holds at a time when its whole bound is too much.",
        default=2_048,
        minimum=16,
    )
    output_tokens_unknown: int = setting(
        "METERWAY_OUTPUT_TOKENS_UNKNOWN",
        "The output bound of a model whose maximum is not in the price list.",
        default=16_384,
        minimum=1_024,
    )
    catalogue_usable_ms: int = setting(
        "METERWAY_CATALOGUE_USABLE_MS",
        "How long the price list may be used without hearing from the ledger.",
        default=900_000,
        minimum=1,
    )
    calls_per_edge_max: int = setting(
        "METERWAY_CALLS_PER_EDGE_MAX",
        "Calls of one edge that are worked on at once; more wait in the edge.",
        default=4_096,
        minimum=1,
    )
    log_level: str = setting("METERWAY_LOG_LEVEL", "DEBUG, INFO, WARNING or ERROR.", default="INFO")
    drain_seconds: int = setting(
        "METERWAY_DRAIN_SECONDS", "How long running work may take after SIGTERM.", default=30, minimum=0
    )
