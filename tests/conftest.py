"""Fixtures of all tests. The stores are real: see tests/stores.py."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from services.standalone.embedded_redis import EmbeddedRedis
from tests.stores import (
    REDIS_SERVER,
    REQUIRE_TOOLS,
    LoopThread,
    TestPostgres,
    TestRedis,
    make_redis,
    stores_folder,
)

# Settings of the shell that would change what a test sees, or send it to a real service.
_LEAKING_PREFIXES = ("METERWAY_", "OPENAI_", "ANTHROPIC_", "REDIS_", "PG")
_LEAKING_NAMES = {"DATABASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY", "NO_PROXY"}


def _forget_settings_of_the_shell() -> None:
    for name in list(os.environ):
        is_leaking = name.startswith(_LEAKING_PREFIXES) or name.upper() in _LEAKING_NAMES
        if is_leaking and name not in (REQUIRE_TOOLS, REDIS_SERVER):
            del os.environ[name]


_forget_settings_of_the_shell()


@pytest.fixture(scope="session")
def store_loop() -> Iterator[LoopThread]:
    loop = LoopThread()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def session_stores_folder() -> Iterator[Path]:
    with stores_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def postgres_server(store_loop: LoopThread, session_stores_folder: Path) -> Iterator[TestPostgres]:
    """One Postgres for all tests; it may not be stopped by any."""
    server = TestPostgres(session_stores_folder / "postgres", store_loop)
    yield server
    server.close()


@pytest.fixture(scope="session")
def redis_server(store_loop: LoopThread, session_stores_folder: Path) -> Iterator[TestRedis]:
    """One Redis-compatible server for all tests; it may not be stopped by any."""
    server = TestRedis(session_stores_folder / "redis", store_loop)
    yield server
    server.close()


@pytest.fixture
def postgres_database_url(postgres_server: TestPostgres) -> Iterator[str]:
    """The URL of an empty database of this test's own."""
    name = postgres_server.make_database()
    yield postgres_server.server.database_url(name)
    postgres_server.drop_database(name)


@pytest.fixture
def migrated_database_url(postgres_server: TestPostgres) -> Iterator[str]:
    """The URL of a database of this test's own that has the ledger's schema."""
    name = postgres_server.make_migrated_database()
    yield postgres_server.server.database_url(name)
    postgres_server.drop_database(name)


@pytest.fixture
def redis_url(redis_server: TestRedis) -> str:
    """The URL of an empty server, as the user `meter`."""
    redis_server.empty()
    return redis_server.server.meter_url


@pytest.fixture
def redis_admin_url(redis_server: TestRedis, redis_url: str) -> str:
    """The URL of the same server as `redis_url`, as a user who may do everything."""
    return redis_server.server.admin_url


@pytest.fixture
def store_folder() -> Iterator[Path]:
    """A folder of this test's own for stores or a data directory; it is removed afterwards."""
    with stores_folder() as folder:
        yield folder


@pytest.fixture
async def fresh_redis(store_folder: Path) -> AsyncIterator[Callable[..., Awaitable[EmbeddedRedis]]]:
    """`await fresh_redis(append_only=True)`: a started server that this test may kill and start again."""
    servers: list[EmbeddedRedis] = []

    async def start(*, append_only: bool = True) -> EmbeddedRedis:
        server = make_redis(store_folder / f"redis-{len(servers)}", append_only=append_only)
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        await server.stop("immediate")
