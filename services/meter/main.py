"""`meterway meter`: one meter process, settings from the environment."""

from __future__ import annotations

import os

from services.common import logs
from services.common.process import Listener, serve
from services.common.settings import read_settings
from services.meter.app import make_app
from services.meter.redis_address import RedisAddress
from services.meter.settings import MeterSettings


async def main() -> None:
    """Serve until SIGTERM. Raises SettingsError, or ValueError for a REDIS_URL that is none."""
    settings = read_settings(MeterSettings, os.environ)
    RedisAddress.parse(settings.redis_url.value)
    logs.set_up("meter", settings.log_level)
    await serve(
        [Listener(app=make_app(settings), host=settings.host, port=settings.port)],
        drain_seconds=settings.drain_seconds,
    )
