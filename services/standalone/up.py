"""`meterway up`: the whole product on one machine.

Data directory -> stores -> migration -> services -> demo -> ready; then every child is kept alive
until SIGTERM or Ctrl-C, which ends edges first and stores last.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from services.commands.console_client import CONSOLE_URL_FILE, ConsoleError, Target
from services.standalone.children import Child, ChildError, ServiceChild, keep_alive
from services.standalone.data_directory import DataDirectory, DataDirectoryError, replace_file
from services.standalone.demo import Demo, find_or_make_demo
from services.standalone.embedded_postgres import EmbeddedPostgres
from services.standalone.embedded_redis import EmbeddedRedis
from services.standalone.plan import Plan, PortBook, choose_ports, choose_upstream, make_plan
from services.standalone.ports import LOOPBACK, is_port_free
from services.standalone.ready_file import write_ready_file
from services.standalone.store_place import StoreError
from services.standalone.stores import DATABASE_NAME, StoreChild
from services.standalone.welcome import welcome

# Together under the 10 s within which SIGTERM must end everything.
_STOP_EDGES_SECONDS, _STOP_OTHERS_SECONDS, _STOP_STORES_SECONDS = 4.0, 1.5, 2.5


class UpError(Exception):
    """It can't start; the message says what to do."""


def run_up(arguments: argparse.Namespace) -> int:
    """Returns the exit code: 0 after a stop, 2 when it could not start."""
    try:
        with DataDirectory.open(arguments.data_dir) as directory:
            asyncio.run(_Up(arguments, directory).run())
    except (UpError, ChildError, StoreError, DataDirectoryError, ConsoleError) as error:
        print(f"meterway: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


@dataclass
class _Up:
    """One run. `stores` and `services` hold what has been started, in that order."""

    arguments: argparse.Namespace
    directory: DataDirectory
    stores: list[StoreChild] = field(default_factory=list)
    services: list[ServiceChild] = field(default_factory=list)
    database_url: str = ""
    redis_url: str = ""
    admin_redis_url: str = ""
    plan: Plan | None = None
    demo: Demo | None = None
    port_holder: socket.socket | None = None
    started_at: float = field(default_factory=time.monotonic)

    async def run(self) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, stop.set)
        starting = asyncio.ensure_future(self._start())
        stopping = asyncio.ensure_future(stop.wait())
        keepers: list[asyncio.Task[None]] = []
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                keepers = [
                    asyncio.create_task(keep_alive(child, on_change=self._announce, progress=_progress))
                    for child in self._children()
                ]
                await stopping
        finally:
            for task in (starting, stopping, *keepers):
                task.cancel()
            await asyncio.gather(starting, stopping, *keepers, return_exceptions=True)
            _progress("stopping ...")
            await self._stop()

    async def _start(self) -> None:
        self._claim_ports()
        await self._start_stores()
        self.plan = plan = self._make_plan()
        _progress("migrating the database")
        await self._migrate(plan)
        _progress("starting " + ", ".join(service.name for service in plan.services))
        for service in plan.services:
            service.spawn()
            self.services.append(service)
        await asyncio.gather(*(service.become_ready() for service in plan.services))
        target = Target(plan.ports.console_url, self.directory.secrets.operator_token)
        replace_file(self.directory.path / CONSOLE_URL_FILE, f"{plan.ports.console_url}\n", mode=0o600)
        self.demo = await find_or_make_demo(target, self.directory.path / "demo.json")
        await self._announce()
        print(welcome(plan, self.demo, self.directory, time.monotonic() - self.started_at), flush=True)

    def _claim_ports(self) -> None:
        """Hold the edges' shared port, so that nobody takes it while an edge starts again."""
        for option, port in (("edge", self.arguments.edge_port), ("console", self.arguments.console_port)):
            if port and not is_port_free(port):
                raise UpError(f"Port {port} is in use: choose another with --{option}-port (0: any).")
        # Never listens, so no connection ever goes to it.
        self.port_holder = holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((LOOPBACK, self.arguments.edge_port))

    async def _start_stores(self) -> None:
        self.database_url = os.environ.get("DATABASE_URL", "")
        self.redis_url = self.admin_redis_url = os.environ.get("REDIS_URL", "")
        starts = []
        if not self.database_url:
            postgres = EmbeddedPostgres(self.directory.postgres_home, progress=_progress)
            self.stores.append(StoreChild("postgres", postgres))
            starts.append(self._start_postgres(postgres))
        if not self.redis_url:
            redis = EmbeddedRedis(self.directory.redis_home, progress=_progress)
            self.stores.append(StoreChild("redis", redis))
            starts.append(self._start_redis(redis))
        await asyncio.gather(*starts)

    async def _start_postgres(self, postgres: EmbeddedPostgres) -> None:
        _progress("starting Postgres")
        await postgres.start()
        self.database_url = await postgres.create_database(DATABASE_NAME)

    async def _start_redis(self, redis: EmbeddedRedis) -> None:
        _progress("starting Redis (Valkey)")
        await redis.start()
        self.redis_url, self.admin_redis_url = redis.meter_url, redis.admin_url

    def _make_plan(self) -> Plan:
        assert self.port_holder is not None
        ports = choose_ports(
            PortBook(_folder(self.directory.path / "ports")),
            edge=self.port_holder.getsockname()[1],
            console=self.arguments.console_port,
            edges=self.arguments.edges,
            meters=self.arguments.meters,
        )
        upstream = choose_upstream(
            self.arguments.upstream, self.arguments.upstream_key, os.environ, emulator_port=ports.emulator
        )
        return make_plan(
            ports=ports,
            upstream=upstream,
            secrets=self.directory.secrets,
            database_url=self.database_url,
            redis_url=self.redis_url,
            logs_folder=_folder(self.directory.path / "logs"),
            edge_log_folder=_folder(self.directory.path / "edge-log"),
        )

    async def _migrate(self, plan: Plan) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli", "migrate"),
            env=dict(plan.ledger.environment),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        if process.returncode != 0:
            raise UpError(f"The database can't be migrated:\n{output.decode(errors='replace').strip()}")

    async def _announce(self) -> None:
        """Write the ready file: when all serves, and after each restart of a child."""
        file: Path | None = self.arguments.ready_file
        if file is None or self.plan is None or self.demo is None:
            return
        write_ready_file(
            file,
            plan=self.plan,
            demo=self.demo,
            admin_password=self.directory.secrets.admin_password,
            database_url=self.database_url,
            redis_url=self.admin_redis_url,
            children=self._children(),
        )

    def _children(self) -> list[Child]:
        return [*self.stores, *self.services]

    async def _stop(self) -> None:
        edges = [child for child in self.services if child.name.startswith("edge")]
        others = [child for child in self.services if child not in edges]
        await asyncio.gather(*(child.stop(_STOP_EDGES_SECONDS) for child in edges))
        # Meters before the ledger: what they still have to post goes there.
        for prefix in ("meter", "ledger", "emulator"):
            group = [child for child in others if child.name.startswith(prefix)]
            await asyncio.gather(*(child.stop(_STOP_OTHERS_SECONDS) for child in group))
        await asyncio.gather(*(child.stop(_STOP_STORES_SECONDS) for child in self.stores))
        if self.port_holder is not None:
            self.port_holder.close()


def _folder(path: Path) -> Path:
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _progress(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(f"meterway: {line}", flush=True)
