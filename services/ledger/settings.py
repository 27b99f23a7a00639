"""The ledger's settings."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.settings import Secret, setting


@dataclass(frozen=True, kw_only=True)
class LedgerSettings:
    internal_credential: Secret = setting(
        "METERWAY_INTERNAL_CREDENTIAL", "What the services show each other; the same for all."
    )
    database_url: Secret = setting(
        "DATABASE_URL", "The ledger's Postgres, as postgresql://user:password@host/name."
    )
    operator_token: Secret = setting("METERWAY_OPERATOR_TOKEN", "The bearer token of the operators' API.")
    encryption_key: Secret = setting(
        "METERWAY_ENCRYPTION_KEY",
        "32 random bytes in URL-safe base64; channel credentials are kept under it.",
    )
    meter_urls: tuple[str, ...] = setting(
        "METERWAY_METER_URLS",
        "Where the meters are, separated by commas; a DNS name stands for all behind it.",
        default=("http://127.0.0.1:7001",),
    )
    host: str = setting("METERWAY_LEDGER_HOST", "The internal API's address.", default="127.0.0.1")
    port: int = setting(
        "METERWAY_LEDGER_PORT", "The internal API's port.", default=7002, minimum=0, maximum=65535
    )
    console_host: str = setting(
        "METERWAY_CONSOLE_HOST", "The address of the console and its API.", default="127.0.0.1"
    )
    console_port: int = setting(
        "METERWAY_CONSOLE_PORT",
        "The port of the console and its API.",
        default=8081,
        minimum=0,
        maximum=65535,
    )
    upstream_base_url: str = setting(
        "METERWAY_UPSTREAM_BASE_URL",
        "An upstream, ending in /v1, for every priced model that no channel in the database serves.",
        default="",
    )
    upstream_api_key: Secret = setting(
        "METERWAY_UPSTREAM_API_KEY", "That upstream's API key.", default=Secret("")
    )
    edge_grace_ms: int = setting(
        "METERWAY_EDGE_GRACE_MS",
        "How long an edge may be silent before a roll-call goes on without its promise.",
        default=60_000,
        minimum=1,
    )
    orphan_grace_ms: int = setting(
        "METERWAY_ORPHAN_GRACE_MS",
        "How long an edge may be silent before its sessions end at their last checkpoints.",
        default=3_600_000,
        minimum=1,
    )
    meter_timeout_ms: int = setting(
        "METERWAY_METER_TIMEOUT_MS",
        "How long one meter may take to confirm a change.",
        default=5_000,
        minimum=10,
    )
    connections_max: int = setting(
        "METERWAY_DATABASE_CONNECTIONS_MAX",
        "Connections to Postgres per ledger.",
        default=10,
        minimum=3,
        maximum=200,
    )
    encryption_keys_old: Secret = setting(
        "METERWAY_ENCRYPTION_KEYS_OLD",
        "Former encryption keys, separated by commas; what they closed is encrypted anew at start.",
        default=Secret(""),
    )
    public_base_urls: tuple[str, ...] = setting(
        "METERWAY_PUBLIC_BASE_URLS",
        "The base URLs that clients use, ending in /v1, separated by commas; shown wherever a URL is shown.",
        default=(),
    )
    admin_email: str = setting(
        "METERWAY_ADMIN_EMAIL",
        "An operator to create at start, if there is none with this address.",
        default="",
    )
    admin_password: Secret = setting(
        "METERWAY_ADMIN_PASSWORD",
        "That operator's first password, 12 characters or more.",
        default=Secret(""),
    )
    log_level: str = setting("METERWAY_LOG_LEVEL", "DEBUG, INFO, WARNING or ERROR.", default="INFO")
    drain_seconds: int = setting(
        "METERWAY_DRAIN_SECONDS", "How long running work may take after SIGTERM.", default=30, minimum=0
    )
