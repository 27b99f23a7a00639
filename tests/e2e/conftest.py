"""One running stack for all tests that don't stop or break it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.stack import Emulator, Stack, client
from tests.stores import stores_folder


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    with stores_folder() as folder:
        emulator = Emulator(folder)
        emulator.start()
        yield emulator
        emulator.stop()


@pytest.fixture(scope="session")
def stack(emulator: Emulator) -> Iterator[Stack]:
    """Two edges, two meters."""
    with stores_folder() as folder:
        stack = Stack(
            folder,
            options=("--edges", "2", "--meters", "2"),
            environment={"METERWAY_TRUSTED_PROXIES": "127.0.0.0/8"},
            emulator=emulator,
        )
        stack.start()
        yield stack
        seconds = stack.stop()
        assert seconds < 10, f"SIGTERM took {seconds:.1f} s"


@pytest.fixture
def own_folder() -> Iterator[Path]:
    with stores_folder() as folder:
        yield folder


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with client() as session:
        yield session
