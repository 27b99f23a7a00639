"""The edge's settings, read once from the environment."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from services.common.settings import Secret, setting

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class EdgeSettings:
    internal_credential: Secret = setting(
        "METERWAY_INTERNAL_CREDENTIAL", "The secret that the services show each other."
    )
    meter_urls: tuple[str, ...] = setting(
        "METERWAY_METER_URLS", "Where the meters are: every address behind each name."
    )
    ledger_urls: tuple[str, ...] = setting(
        "METERWAY_LEDGER_URLS", "Where the ledgers' internal API is: every address behind each name."
    )
    log_dir: Path = setting(
        "METERWAY_EDGE_LOG_DIR",
        "Directory, on a volume that outlives the process, of the log from which sessions are charged after a"
        " crash; edges of one host may share it.",
    )
    log_bytes_max: int = setting(
        "METERWAY_EDGE_LOG_BYTES_MAX",
        "Size of the log; when it is full, new requests get 503.",
        default=1024 * MIB,
        minimum=MIB,
    )
    log_segment_bytes: int = setting(
        "METERWAY_EDGE_LOG_SEGMENT_BYTES",
        "Size of one file of the log; three of them must fit.",
        default=16 * MIB,
        minimum=64 * 1024,
    )
    log_sync_ms: int = setting(
        "METERWAY_EDGE_LOG_SYNC_MS",
        "How often the log is synced to the disk: what a power loss may lose.",
        default=100,
        minimum=1,
    )
    host: str = setting("METERWAY_EDGE_HOST", "Address the API listens on.", default="127.0.0.1")
    port: int = setting(
        "METERWAY_EDGE_PORT", "Port the API listens on.", default=8080, minimum=0, maximum=65_535
    )
    reuse_port: bool = setting(
        "METERWAY_EDGE_REUSE_PORT", "Share the API's port with other edge processes.", default=False
    )
    internal_host: str = setting(
        "METERWAY_EDGE_INTERNAL_HOST", "Address of /metrics, /healthz and /readyz.", default="127.0.0.1"
    )
    internal_port: int = setting(
        "METERWAY_EDGE_INTERNAL_PORT",
        "Port of /metrics, /healthz and /readyz.",
        default=8090,
        minimum=0,
        maximum=65_535,
    )
    configured_internal_url: str = setting(
        "METERWAY_EDGE_INTERNAL_URL",
        "How the ledger reaches the internal listener; empty: from its host and port.",
        default="",
    )
    configured_edge_id: str = setting(
        "METERWAY_EDGE_ID", "This edge's name, stable over restarts; empty: the host's name.", default=""
    )
    trusted_proxies: tuple[str, ...] = setting(
        "METERWAY_TRUSTED_PROXIES",
        "CIDR networks whose X-Forwarded-For is believed.",
        default=(),
    )
    cors_origins: tuple[str, ...] = setting(
        "METERWAY_CORS_ORIGINS",
        "Origins whose browser pages may call the API: `*` for any, `none`, or a list of scheme://host[:port].",
        default=("*",),
    )
    log_level: str = setting("METERWAY_LOG_LEVEL", "Least level that is logged.", default="INFO")
    drain_seconds: int = setting(
        "METERWAY_DRAIN_SECONDS", "How long running requests may go on after SIGTERM.", default=30, minimum=0
    )
    body_bytes_max: int = setting(
        "METERWAY_EDGE_BODY_BYTES_MAX", "Largest request body, decompressed.", default=32 * MIB, minimum=1024
    )
    body_timeout_ms: int = setting(
        "METERWAY_EDGE_BODY_TIMEOUT_MS",
        "How long a client may take to send its body.",
        default=60_000,
        minimum=100,
    )
    reply_bytes_max: int = setting(
        "METERWAY_EDGE_REPLY_BYTES_MAX", "Largest plain reply of an upstream.", default=64 * MIB, minimum=1024
    )
    sessions_max: int = setting(
        "METERWAY_EDGE_SESSIONS_MAX", "Requests served at once; one more gets 503.", default=10_000, minimum=1
    )
    settles_waiting_max: int = setting(
        "METERWAY_EDGE_SETTLES_WAITING_MAX",
        "Ended sessions that wait for a meter; above it new requests get 503.",
        default=100_000,
        minimum=1,
    )
    open_timeout_ms: int = setting(
        "METERWAY_EDGE_OPEN_TIMEOUT_MS",
        "How long a request waits for a meter before 503.",
        default=2_000,
        minimum=100,
    )
    keep_alive_ms: int = setting(
        "METERWAY_EDGE_KEEP_ALIVE_MS",
        "Silence on a stream before a keep-alive comment.",
        default=15_000,
        minimum=50,
    )
    stall_timeout_ms: int = setting(
        "METERWAY_EDGE_STALL_TIMEOUT_MS",
        "How long a client may take no byte of a stream before it counts as gone.",
        default=300_000,
        minimum=1_000,
    )
    audit_ppm: int = setting(
        "METERWAY_EDGE_AUDIT_PPM",
        "How many of a million requests are counted beside the upstream's usage; suspicious ones always are.",
        default=10_000,
        minimum=0,
        maximum=1_000_000,
    )
    key_hints_max: int = setting(
        "METERWAY_EDGE_KEY_HINTS_MAX", "API keys whose bucket is remembered.", default=100_000, minimum=1
    )
    key_hint_ttl_ms: int = setting(
        "METERWAY_EDGE_KEY_HINT_TTL_MS",
        "How long an API key's bucket is remembered.",
        default=60_000,
        minimum=100,
    )

    @property
    def edge_id(self) -> str:
        return self.configured_edge_id or socket.gethostname()

    @property
    def internal_url(self) -> str:
        return self.configured_internal_url or f"http://{self.internal_host}:{self.internal_port}"
