"""Run one edge process: the API's listener, the internal one, and the drain at the end."""

from __future__ import annotations

import os

from services.common import logs
from services.common.process import Listener, serve
from services.common.settings import read_settings
from services.edge.app import drain, make_app, make_internal_app
from services.edge.parts import PARTS
from services.edge.settings import EdgeSettings

LOG = logs.get("edge.main")
HEADER_BYTES_MAX = 64 * 1024
"""Browsers and SDKs send long headers; an API key that long is still refused as a key."""


async def main() -> None:
    """Reads the settings from the environment and serves until SIGTERM. Raises SettingsError."""
    settings = read_settings(EdgeSettings, os.environ)
    logs.set_up("edge", settings.log_level)
    app = make_app(settings)

    async def on_ready() -> None:
        LOG.info("edge serves", host=settings.host, port=settings.port, edge_id=settings.edge_id)

    await serve(
        [
            Listener(
                app=app,
                host=settings.host,
                port=settings.port,
                reuse_port=settings.reuse_port,
                handler_cancellation=True,
                max_line_bytes=HEADER_BYTES_MAX,
                max_field_bytes=HEADER_BYTES_MAX,
                backlog=4096,
                closes_on_drain=True,
            ),
            Listener(app=make_internal_app(app), host=settings.internal_host, port=settings.internal_port),
        ],
        on_ready=on_ready,
        drain=lambda: drain(app[PARTS]),
        drain_seconds=settings.drain_seconds,
    )
