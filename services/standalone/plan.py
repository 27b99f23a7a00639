"""What `meterway up` starts: each service's address and environment. No I/O but for free ports."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.standalone.children import ServiceChild
from services.standalone.data_directory import StandaloneSecrets
from services.standalone.ports import LOOPBACK, remembered_port

DEMO_UPSTREAM_KEY = "emulator"
OPENAI_BASE_URL = "https://api.openai.com/v1"
ADMIN_EMAIL = "admin@meterway.local"
# SIGTERM must end everything within 10 s.
DRAIN_SECONDS = 3


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """Where completions come from. `is_emulator`: we run it ourselves."""

    base_url: str
    api_key: str
    is_emulator: bool


def choose_upstream(
    url: str | None, key: str | None, environ: Mapping[str, str], *, emulator_port: int
) -> Upstream:
    """The command line's upstream, else the environment's, else the emulator."""
    api_key = key or environ.get("OPENAI_API_KEY", "")
    base_url = url or environ.get("OPENAI_BASE_URL", "")
    if not base_url and not api_key:
        return Upstream(base_url=f"{_url(emulator_port)}/v1", api_key=DEMO_UPSTREAM_KEY, is_emulator=True)
    return Upstream(base_url=(base_url or OPENAI_BASE_URL).rstrip("/"), api_key=api_key, is_emulator=False)


class PortBook:
    """The same port for the same process on every start of a data directory, while it is free."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = folder

    def port(self, name: str) -> int:
        return remembered_port(self._folder / name)


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Every port of a stack; all on 127.0.0.1. `edge` and `console` are the public ones."""

    edge: int
    console: int
    emulator: int
    ledger: int
    meters: tuple[int, ...]
    edges: tuple[int, ...]

    @property
    def edge_url(self) -> str:
        return _url(self.edge)

    @property
    def console_url(self) -> str:
        return _url(self.console)

    @property
    def metrics_urls(self) -> tuple[str, ...]:
        return tuple(f"{_url(port)}/metrics" for port in (self.ledger, *self.meters, *self.edges))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is fixed before the first process starts."""

    ports: Ports
    upstream: Upstream
    emulator: ServiceChild | None
    ledger: ServiceChild
    meters: tuple[ServiceChild, ...]
    edges: tuple[ServiceChild, ...]

    @property
    def services(self) -> tuple[ServiceChild, ...]:
        emulator = (self.emulator,) if self.emulator else ()
        return (*emulator, self.ledger, *self.meters, *self.edges)


def choose_ports(book: PortBook, *, edge: int, console: int, edges: int, meters: int) -> Ports:
    """`edge` is taken already; `console` 0 takes a free one."""
    return Ports(
        edge=edge,
        console=console or book.port("console"),
        emulator=book.port("emulator"),
        ledger=book.port("ledger"),
        meters=tuple(book.port(f"meter-{number}") for number in range(meters)),
        edges=tuple(book.port(f"edge-{number}") for number in range(edges)),
    )


def make_plan(
    *,
    ports: Ports,
    upstream: Upstream,
    secrets: StandaloneSecrets,
    database_url: str,
    redis_url: str,
    logs_folder: Path,
    edge_log_folder: Path,
) -> Plan:
    """All children with their environments; their logs go to `logs_folder`, edges' sessions to the other."""
    common = {
        **_inherited(),
        "METERWAY_INTERNAL_CREDENTIAL": secrets.internal_credential,
        "METERWAY_LEDGER_URLS": _url(ports.ledger),
        "METERWAY_METER_URLS": ",".join(_url(port) for port in ports.meters),
        "METERWAY_DRAIN_SECONDS": str(DRAIN_SECONDS),
    }

    def child(name: str, port: int, environment: Mapping[str, str]) -> ServiceChild:
        return ServiceChild(
            name=name,
            module="services.cli",
            arguments=(name.partition("-")[0],),
            environment={**common, **environment},
            ready_url=f"{_url(port)}/readyz",
            log_file=logs_folder / f"{name}.log",
        )

    return Plan(
        ports=ports,
        upstream=upstream,
        emulator=_emulator(ports.emulator, logs_folder) if upstream.is_emulator else None,
        ledger=child("ledger", ports.ledger, _ledger_environment(ports, upstream, secrets, database_url)),
        meters=tuple(
            child(f"meter-{number}", port, {"REDIS_URL": redis_url, "METERWAY_METER_PORT": str(port)})
            for number, port in enumerate(ports.meters)
        ),
        edges=tuple(
            child(f"edge-{number}", port, _edge_environment(f"edge-{number}", ports, port, edge_log_folder))
            for number, port in enumerate(ports.edges)
        ),
    )


def _ledger_environment(
    ports: Ports, upstream: Upstream, secrets: StandaloneSecrets, database_url: str
) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "METERWAY_LEDGER_PORT": str(ports.ledger),
        "METERWAY_CONSOLE_PORT": str(ports.console),
        "METERWAY_OPERATOR_TOKEN": secrets.operator_token,
        "METERWAY_ENCRYPTION_KEY": secrets.encryption_key,
        "METERWAY_ADMIN_EMAIL": ADMIN_EMAIL,
        "METERWAY_ADMIN_PASSWORD": secrets.admin_password,
        "METERWAY_UPSTREAM_BASE_URL": upstream.base_url,
        "METERWAY_UPSTREAM_API_KEY": upstream.api_key,
        "METERWAY_PUBLIC_BASE_URLS": f"{ports.edge_url}/v1",
    }


def _edge_environment(name: str, ports: Ports, internal_port: int, log_folder: Path) -> dict[str, str]:
    return {
        "METERWAY_EDGE_ID": name,
        "METERWAY_EDGE_PORT": str(ports.edge),
        "METERWAY_EDGE_REUSE_PORT": "true",
        "METERWAY_EDGE_INTERNAL_PORT": str(internal_port),
        "METERWAY_EDGE_LOG_DIR": str(log_folder),
    }


def _url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"


def _emulator(port: int, folder: Path) -> ServiceChild:
    return ServiceChild(
        name="emulator",
        module="services.emulator",
        arguments=("--port", str(port), "--api-key", DEMO_UPSTREAM_KEY, "--delay-ms", "15"),
        environment=_inherited(),
        ready_url=f"http://{LOOPBACK}:{port}/healthz",
        log_file=folder / "emulator.log",
    )


def _inherited() -> dict[str, str]:
    """What a child needs of our environment, and any METERWAY_ setting that the operator made."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if name in kept or name.startswith("METERWAY_")}
