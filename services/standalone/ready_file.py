"""The ready file: one JSON document that tells other programs where everything is.

Contract: `edge_url`, `console_url`, `api_key`, `account_id`, `admin_email`, `admin_password`,
`database_url`, `redis_url`, `pids` (by name: edge-0, meter-0, ledger, postgres, redis, emulator),
`metrics_urls`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from services.standalone.children import Child
from services.standalone.data_directory import replace_file
from services.standalone.demo import Demo
from services.standalone.plan import ADMIN_EMAIL, Plan


def write_ready_file(
    file: Path,
    *,
    plan: Plan,
    demo: Demo,
    admin_password: str,
    database_url: str,
    redis_url: str,
    children: Iterable[Child],
) -> None:
    """Written whole, by rename. `redis_url` may do everything."""
    document = {
        "edge_url": plan.ports.edge_url,
        "console_url": plan.ports.console_url,
        "api_key": demo.api_key,
        "account_id": demo.account_id,
        "admin_email": ADMIN_EMAIL,
        "admin_password": admin_password,
        "database_url": database_url,
        "redis_url": redis_url,
        "pids": {child.name: child.pid for child in children},
        "metrics_urls": list(plan.ports.metrics_urls),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file.absolute(), json.dumps(document, indent=2) + "\n", mode=0o600)
