"""The embedded stores as children of `meterway up`."""

from __future__ import annotations

from dataclasses import dataclass

from services.standalone.embedded_postgres import EmbeddedPostgres
from services.standalone.embedded_redis import EmbeddedRedis

DATABASE_NAME = "meterway"


@dataclass
class StoreChild:
    """Postgres or Redis: started anew on its own data and port."""

    name: str
    store: EmbeddedPostgres | EmbeddedRedis

    @property
    def pid(self) -> int:
        return self.store.pid

    async def start(self) -> None:
        await self.store.start()

    async def wait(self) -> int:
        return await self.store.wait()

    async def stop(self, seconds_max: float) -> None:
        await self.store.stop("fast" if seconds_max >= 1 else "immediate")

    def kill(self) -> None:
        self.store.kill()
