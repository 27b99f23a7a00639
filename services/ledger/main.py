"""The ledger's process."""

from __future__ import annotations

import os

from services.common import logs
from services.common.process import Listener, serve
from services.common.settings import read_settings
from services.ledger.app import open_apps
from services.ledger.settings import LedgerSettings

LOG = logs.get("ledger.main")


async def main() -> None:
    """Serve until SIGTERM. Raises SettingsError, DatabaseUnavailable, NotMigrated."""
    settings = read_settings(LedgerSettings, os.environ)
    logs.set_up("ledger", settings.log_level)
    async with open_apps(settings) as apps:
        listeners = [
            Listener(app=apps.internal, host=settings.host, port=settings.port),
            Listener(app=apps.console, host=settings.console_host, port=settings.console_port),
        ]

        async def on_ready() -> None:
            LOG.info("ledger serves", internal_port=settings.port, console_port=settings.console_port)

        await serve(listeners, on_ready=on_ready, drain_seconds=settings.drain_seconds)
