"""docs/settings.md and docs/metrics.md from the code. `python -m tests.rules.reference` writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from services.common.metrics import new_registry
from services.common.settings import Secret
from services.edge import metrics as edge_metrics
from services.edge.settings import EdgeSettings
from services.ledger.metrics import LedgerMetrics
from services.ledger.settings import LedgerSettings
from services.meter.metrics import MeterMetrics
from services.meter.settings import MeterSettings

DOCS = Path(__file__).resolve().parents[2] / "docs"
SETTINGS = {"edge": EdgeSettings, "meter": MeterSettings, "ledger": LedgerSettings}


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "From the environment, read once at start; all faults are reported together. `NAME_FILE=/path` reads"
        " a value from a file. `meterway up` sets what the services need and passes on every `METERWAY_`"
        " variable that you set. Written by `python -m tests.rules.reference`.",
    ]
    for service, settings in SETTINGS.items():
        lines += ["", f"## {service}", "", "| setting | default | meaning |", "|---|---|---|"]
        for field in dataclasses.fields(settings):
            lines.append(f"| `{field.metadata['name']}` | {_default(field)} | {field.metadata['help']} |")
    return "\n".join(lines) + "\n"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default in ("", (), None) or isinstance(field.default, Secret):
        return ""
    value = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def metrics_page() -> str:
    lines = [
        "# Metrics",
        "",
        "Prometheus text at `/metrics` of each service's internal port. Labels are bounded: never a session,"
        " key, account or free text. Every service also has the process's own figures (`process_*`,"
        " `python_*`). Written by `python -m tests.rules.reference`.",
    ]
    for service, registry in _registries().items():
        lines += ["", f"## {service}", "", "| metric | type | labels | meaning |", "|---|---|---|---|"]
        for name, kind, labels, text in sorted(_families(registry)):
            lines.append(f"| `{name}` | {kind} | {', '.join(labels)} | {text} |")
    return "\n".join(lines) + "\n"


def _registries() -> dict[str, CollectorRegistry]:
    edge, ledger = new_registry(), new_registry()
    edge_metrics.register(edge)
    LedgerMetrics(ledger)
    return {"edge": edge, "meter": MeterMetrics().registry, "ledger": ledger}


def _families(registry: CollectorRegistry) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    for collector in list(registry._collector_to_names):
        for family in collector.collect():
            if family.name.startswith("meterway_"):
                labels = getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", ())
                name = family.name + ("_total" if family.type == "counter" else "")
                yield name, family.type, tuple(labels), family.documentation


if __name__ == "__main__":
    (DOCS / "settings.md").write_text(settings_page(), encoding="utf-8")
    (DOCS / "metrics.md").write_text(metrics_page(), encoding="utf-8")
