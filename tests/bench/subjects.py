"""What is measured, and what it is measured with: mock upstream, bare proxy, nginx and us, as processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import procfs
from tests.bench.load import Job
from tests.e2e.stack import ROOT, Customer, Emulator, Stack, wait_until

_NGINX_CONF = """
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_rlimit_nofile 20000;
events {{ worker_connections 10000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 10000000;
    client_max_body_size 32m;
    client_body_buffer_size 2m;
    upstream mock {{ server 127.0.0.1:{mock_port}; keepalive 4096; keepalive_requests 10000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://mock;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


def _start(arguments: Sequence[str], log_file: Path) -> subprocess.Popen[bytes]:
    with log_file.open("ab") as log:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "PYTHONPATH": str(ROOT),
        }
        return subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


class MockUpstream(Emulator):
    """The emulator with `--fast`: answers made beforehand, and totals of what it emitted."""

    def start(self) -> None:
        ready = self.folder / "mock-port"
        self.process = _start(
            [sys.executable, "-m", "services.emulator", "--fast", "--port", "0", "--ready-file", str(ready)],
            self.folder / "mock.log",
        )
        wait_until(ready.exists, "the mock upstream serves")
        self.port = int(ready.read_text())

    def totals(self) -> dict[str, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/emulator/totals", timeout=10) as answer:
            totals: dict[str, int] = json.load(answer)
            return totals


@dataclass
class Subject:
    """Something that answers chat requests. `names`: its processes' pids -> the service they count under."""

    name: str
    port: int
    api_key: str
    names: dict[int, str]

    @property
    def pids(self) -> list[int]:
        return list(self.names)


@dataclass
class Bare:
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self, mock: MockUpstream) -> Subject:
        ready = self.folder / "bare-port"
        upstream = f"http://127.0.0.1:{mock.port}"
        self.process = _start(
            [sys.executable, "-m", "tests.bench.bare", "--upstream", upstream, "--ready-file", str(ready)],
            self.folder / "bare.log",
        )
        wait_until(ready.exists, "the bare proxy serves")
        return Subject("bare", int(ready.read_text()), "none", {self.process.pid: "bare"})

    def stop(self) -> None:
        if self.process is not None:
            _stop(self.process)


def find_nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@dataclass
class Nginx:
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self, mock: MockUpstream) -> Subject:
        program = find_nginx()
        assert program is not None
        folder = self.folder / "nginx"
        folder.mkdir()
        # Its worker is another user when we are root.
        folder.chmod(0o755)
        port = _free_port()
        configuration = folder / "nginx.conf"
        configuration.write_text(_NGINX_CONF.format(folder=folder, mock_port=mock.port, port=port))
        self.process = _start(
            [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(configuration)],
            folder / "nginx.log",
        )
        wait_until((folder / "nginx.pid").exists, "nginx serves", 10)
        return Subject("nginx", port, "none", {self.process.pid: "nginx"})

    def stop(self) -> None:
        if self.process is not None:
            _stop(self.process)


def _free_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        return port


@dataclass
class Us:
    """`meterway up`, with an account that can't run dry."""

    folder: Path
    model: str
    credit_usd: str
    input_usd_per_million: str
    output_usd_per_million: str
    options: tuple[str, ...] = ()
    stack: Stack = field(init=False)
    customer: Customer = field(init=False)

    def start(self, mock: MockUpstream) -> Subject:
        folder = self.folder / "stack"
        folder.mkdir()
        self.stack = Stack(folder, options=self.options, emulator=mock)
        self.stack.start()
        self.stack.cli(
            *("price", "set", self.model, "--input", self.input_usd_per_million),
            *("--output", self.output_usd_per_million),
        )
        self.customer = self.stack.new_customer(self.credit_usd)
        return Subject("meterway", self._port(), self.customer.api_key, self._names())

    def _port(self) -> int:
        return int(self.stack.ready["edge_url"].rpartition(":")[2])

    def _names(self) -> dict[int, str]:
        assert self.stack.process is not None
        pids: dict[str, int] = self.stack.read_ready()["pids"]
        return {self.stack.process.pid: "up"} | {pid: name.partition("-")[0] for name, pid in pids.items()}

    def stop(self) -> None:
        if hasattr(self, "stack") and self.stack.process is not None and self.stack.process.poll() is None:
            self.stack.stop()


@dataclass
class Loader:
    """The load generator's process."""

    process: subprocess.Popen[str] = field(init=False)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def run(self, job: Job) -> dict[str, Any]:
        """A run's result: the fields of `load.Result`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(vars(job)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the load generator has ended")
        result: dict[str, Any] = json.loads(line)
        return result

    def stop(self) -> None:
        if hasattr(self, "process"):
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(10)


def idle_cpu_seconds(subject: Subject, seconds: float) -> float:
    """CPU seconds per second that the subject spends on nothing."""
    before = sum(procfs.cpu_seconds_by_name(subject.pids).values())
    time.sleep(seconds)
    return (sum(procfs.cpu_seconds_by_name(subject.pids).values()) - before) / seconds
