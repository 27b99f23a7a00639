"""`meterway edge|meter|ledger|migrate`: one service in this process."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from services.common import logs, process
from services.common.settings import SettingsError

_PR_SET_PDEATHSIG = 1


def run_service(name: str) -> int:
    """Run until SIGTERM. Returns 2 when the settings are not valid."""
    logs.set_up(name, os.environ.get("METERWAY_LOG_LEVEL", "INFO"))
    _end_with_parent()
    try:
        process.run(_main_of(name))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _main_of(name: str) -> process.Main:
    match name:
        case "edge":
            from services.edge.main import main  # noqa: PLC0415
        case "meter":
            from services.meter.main import main  # noqa: PLC0415
        case "ledger":
            from services.ledger.main import main  # noqa: PLC0415
        case _:
            from services.ledger.migrate import main  # noqa: PLC0415
    return main


def _end_with_parent() -> None:
    """Under `meterway up`, which sets METERWAY_PARENT_PID: drain and end when it is gone, however it went."""
    parent_pid = os.environ.get("METERWAY_PARENT_PID")
    if not parent_pid or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent_pid):
        sys.exit("the process that started this one is gone")
