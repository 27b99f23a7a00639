"""A whole stack for end-to-end tests: `meterway up` and an upstream emulator, as processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS_MAX = 60.0


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONPATH": str(ROOT)}


@dataclass
class Emulator:
    """The upstream."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    port: int = 0

    def start(self) -> None:
        ready = self.folder / "emulator-port"
        with (self.folder / "emulator.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.emulator", "--port", "0", "--ready-file", str(ready)],
                stdout=log,
                stderr=log,
                env=_environment(),
            )
        wait_until(ready.exists, "the emulator serves")
        self.port = int(ready.read_text())

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def rows(self, session: aiohttp.ClientSession) -> list[dict[str, Any]]:
        """What it received and sent, oldest first."""
        async with session.get(f"http://127.0.0.1:{self.port}/emulator/log") as answer:
            rows: list[dict[str, Any]] = await answer.json()
            return rows

    async def forget(self, session: aiohttp.ClientSession) -> None:
        async with session.delete(f"http://127.0.0.1:{self.port}/emulator/log"):
            pass

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)


@dataclass
class Stack:
    """`meterway up` on a data directory of its own, and its upstream."""

    folder: Path
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    emulator: Emulator | None = None
    process: subprocess.Popen[bytes] | None = None
    ready: dict[str, Any] = field(default_factory=dict)

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def ready_file(self) -> Path:
        return self.folder / "ready.json"

    @property
    def output(self) -> str:
        return (self.folder / "up.log").read_text()

    def start(self) -> None:
        self.ready_file.unlink(missing_ok=True)
        upstream = ("--upstream", self.emulator.base_url) if self.emulator else ()
        with (self.folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "services.cli", "up", "--data-dir", str(self.data_dir)),
                    *("--edge-port", "0", "--console-port", "0", "--ready-file", str(self.ready_file)),
                    *(*upstream, *self.options),
                ],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=_environment() | self.environment,
            )
        process = self.process
        wait_until(lambda: self.ready_file.exists() or process.poll() is not None, "the stack is ready")
        assert process.poll() is None, self.output
        self.read_ready()

    def read_ready(self) -> dict[str, Any]:
        self.ready = json.loads(self.ready_file.read_text())
        return self.ready

    def stop(self) -> float:
        """SIGTERM. Returns the seconds it took."""
        assert self.process is not None
        started_at = time.monotonic()
        self.process.terminate()
        self.process.wait(30)
        return time.monotonic() - started_at

    def kill_everything(self) -> None:
        """SIGKILL to all processes at once."""
        assert self.process is not None
        for pid in (self.process.pid, *self.read_ready()["pids"].values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "services.cli", *arguments, "--data-dir", str(self.data_dir), "--json"],
            capture_output=True,
            text=True,
            env=_environment(),
            timeout=60,
            check=False,
        )

    def cli(self, *arguments: str) -> dict[str, Any]:
        """A command's JSON document; it must succeed."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout} {done.stderr}"
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def new_customer(self, usd: str, *key_options: str) -> Customer:
        """A fresh account with `usd` and a key."""
        account_id = self.cli("account", "create")["account_id"]
        if usd != "0":
            self.cli("credit", account_id, usd, "--reason", "test")
        key = self.cli("key", "create", "--account", account_id, *key_options)
        return Customer(self, account_id, key["api_key"], key["key_id"])


@dataclass(frozen=True)
class Customer:
    """An account with a key, and what it may ask."""

    stack: Stack
    account_id: str
    api_key: str
    key_id: str

    def balance(self) -> dict[str, int]:
        return self.stack.cli("balance", self.account_id)

    def usage(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.stack.cli("usage", self.account_id)["rows"]
        return rows

    async def settled(self, sessions: int | None = None) -> dict[str, int]:
        """The balance once nothing is held and all is posted (with `sessions` usage rows)."""
        for _ in range(100):
            balance = await asyncio.to_thread(self.balance)
            rows = await asyncio.to_thread(self.usage)
            if balance["held_nanos"] == 0 and (sessions is None or len(rows) == sessions):
                return balance
            await asyncio.sleep(0.1)
        raise AssertionError(f"never settled: {balance}, {len(rows)} usage rows")

    def post(self, session: aiohttp.ClientSession, body: Any, path: str = "/v1/chat/completions") -> Any:
        """`async with customer.post(...) as answer`. `body`: bytes go as they are."""
        data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}
        return session.post(f"{self.stack.ready['edge_url']}{path}", data=data, headers=headers)

    async def stream(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> Streamed:
        async with self.post(session, body | {"stream": True}) as answer:
            raw = await answer.read()
            return Streamed(answer.status, dict(answer.headers), raw)


@dataclass(frozen=True)
class Streamed:
    """A whole streamed answer."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def events(self) -> list[Any]:
        data = [line[5:].strip() for line in self.raw.split(b"\n") if line.startswith(b"data:")]
        return ["[DONE]" if item == b"[DONE]" else json.loads(item) for item in data]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [event for event in self.events if isinstance(event, dict) and "choices" in event]

    @property
    def text(self) -> str:
        return "".join(
            choice["delta"].get("content") or "" for chunk in self.chunks for choice in chunk["choices"]
        )

    @property
    def finish_reasons(self) -> list[str]:
        reasons = [choice.get("finish_reason") for chunk in self.chunks for choice in chunk["choices"]]
        return [reason for reason in reasons if reason]

    @property
    def errors(self) -> list[dict[str, Any]]:
        return [event["error"] for event in self.events if isinstance(event, dict) and "error" in event]


def chat(content: str = "Hello!", **fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}], **fields}


def wait_until(condition: Callable[[], bool], what: str, seconds_max: float = READY_SECONDS_MAX) -> None:
    give_up_at = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < give_up_at, f"waited {seconds_max:g} s in vain until {what}"
        time.sleep(0.05)


@contextlib.asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=60), read_bufsize=2**20
    ) as session:
        yield session
