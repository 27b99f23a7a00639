"""The pool of Postgres connections: transactions with bounded retries, driver errors translated once.

When Postgres is away every call raises `Unavailable` (503, nothing happened or, when the
connection broke during COMMIT, the outcome is unknown: callers repeat with the same ids).
`jsonb` values go in and come out as Python objects.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any, Protocol, TypeAlias, TypeVar

import asyncpg
import msgspec

from services.common import logs
from services.common.errors import Unavailable

LOG = logs.get("ledger.database")
T = TypeVar("T")
Row: TypeAlias = Mapping[str, Any]
TRANSACTION_ATTEMPTS = 6


class Connection(Protocol):
    """What a transaction's work may do with its connection (asyncpg's own is one)."""

    async def fetch(self, query: str, *args: object) -> Sequence[Row]: ...
    async def fetchrow(self, query: str, *args: object) -> Row | None: ...
    async def fetchval(self, query: str, *args: object) -> Any: ...
    async def execute(self, query: str, *args: object) -> str: ...
    async def copy_records_to_table(
        self, table_name: str, *, records: Iterable[tuple[object, ...]], columns: Sequence[str]
    ) -> str: ...


_RETRIED = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
)
_CONNECTION_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    # What asyncpg raises for a statement sent just as the server ends the connection.
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


class DatabaseUnavailable(Unavailable):
    """The database can't answer right now. Please try again shortly."""


@asynccontextmanager
async def translated_errors() -> AsyncIterator[None]:
    """A lost connection, a conflict that outlived its retries or a timeout becomes DatabaseUnavailable."""
    try:
        yield
    except (*_RETRIED, *_CONNECTION_LOST, asyncpg.QueryCanceledError) as error:
        LOG.warning("database unavailable", error=type(error).__name__)
        raise DatabaseUnavailable(retry_after_ms=1_000) from error


async def _prepare_connection(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: msgspec.json.encode(value).decode(),
        decoder=msgspec.json.decode,
    )


class Database:
    """One pool. Simple statements through `fetch`, `fetchrow`, `fetchval`, `execute`; several
    together through `transaction`."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        *,
        observe_seconds: Callable[[float], None] | None = None,
        observe_retry: Callable[[str], None] | None = None,
    ) -> None:
        self._pool = pool
        self._observe_seconds = observe_seconds or (lambda _seconds: None)
        self._observe_retry = observe_retry or (lambda _cause: None)

    @classmethod
    async def open(
        cls,
        database_url: str,
        *,
        connections_max: int = 10,
        command_timeout_ms: int = 30_000,
        observe_seconds: Callable[[float], None] | None = None,
        observe_retry: Callable[[str], None] | None = None,
    ) -> Database:
        """Raises DatabaseUnavailable when Postgres can't be reached."""
        async with translated_errors():
            pool = await asyncpg.create_pool(
                database_url,
                min_size=1,
                max_size=connections_max,
                command_timeout=command_timeout_ms / 1000,
                timeout=5,
                init=_prepare_connection,
                server_settings={
                    "application_name": "meterway-ledger",
                    "lock_timeout": "10s",
                    "idle_in_transaction_session_timeout": "60s",
                    "timezone": "UTC",
                },
            )
        return cls(pool, observe_seconds=observe_seconds, observe_retry=observe_retry)

    async def close(self) -> None:
        try:
            await asyncio.wait_for(self._pool.close(), 5)
        except TimeoutError:
            self._pool.terminate()

    async def fetch(self, sql: str, *values: object) -> Sequence[Row]:
        return await self._once(lambda connection: connection.fetch(sql, *values))

    async def fetchrow(self, sql: str, *values: object) -> Row | None:
        return await self._once(lambda connection: connection.fetchrow(sql, *values))

    async def fetchval(self, sql: str, *values: object) -> Any:
        return await self._once(lambda connection: connection.fetchval(sql, *values))

    async def execute(self, sql: str, *values: object) -> str:
        return await self._once(lambda connection: connection.execute(sql, *values))

    async def transaction(
        self, work: Callable[[Connection], Awaitable[T]], *, isolation: str | None = None
    ) -> T:
        """Run `work(connection)` in one transaction and commit it.

        Deadlocks, serialization failures, lock timeouts and connections lost before COMMIT are
        tried again, `TRANSACTION_ATTEMPTS` times with back-off, so `work` may run more than once:
        it must not change anything but the database.
        """
        async with translated_errors():
            for attempt in range(1, TRANSACTION_ATTEMPTS + 1):
                progress = _Progress()
                try:
                    return await self._attempt(work, isolation, progress)
                except (*_RETRIED, *_CONNECTION_LOST) as error:
                    if progress.committing and not isinstance(error, _RETRIED):
                        raise
                    if attempt == TRANSACTION_ATTEMPTS:
                        raise
                    self._observe_retry(type(error).__name__)
                    await asyncio.sleep(random.uniform(0.5, 1.0) * 0.01 * 2**attempt)  # noqa: S311
        raise AssertionError("unreachable")

    async def _attempt(
        self, work: Callable[[Connection], Awaitable[T]], isolation: str | None, progress: _Progress
    ) -> T:
        started = perf_counter()
        async with self._pool.acquire(timeout=10) as connection:
            transaction = connection.transaction(isolation=isolation)
            await transaction.start()
            try:
                result = await work(connection)
            except BaseException:
                await _roll_back(connection, transaction)
                raise
            progress.committing = True
            await transaction.commit()
        self._observe_seconds(perf_counter() - started)
        return result

    async def _once(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        started = perf_counter()
        async with translated_errors(), self._pool.acquire(timeout=10) as connection:
            result = await work(connection)
        self._observe_seconds(perf_counter() - started)
        return result


async def _roll_back(connection: Any, transaction: Any) -> None:
    """A connection that can't even roll back is thrown away; the server rolls back by itself."""
    try:
        if not connection.is_closed():
            await transaction.rollback()
    except (*_CONNECTION_LOST, asyncpg.PostgresError):
        connection.terminate()


class _Progress:
    committing = False
