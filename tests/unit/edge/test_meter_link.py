"""What waits for a meter leaves in as few frames as may be, and never late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.common.contracts.charging import Call, Release, Resolve
from services.common.contracts.frames import decode_calls
from services.common.ids import KeyHash, SessionId
from services.edge.meter_client import LINGER_S, _Link

END: Call = Release(SessionId("session"), 7, 2, "client_gone")
OPEN: Call = Resolve(KeyHash("hash"))


class Socket:
    """Keeps what it is given; takes `seconds` for each frame."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.frames: list[list[int]] = []
        self._seconds = seconds

    async def send_bytes(self, frame: bytes) -> None:
        self.frames.append([call_id for call_id, _call in decode_calls(frame)])
        await asyncio.sleep(self._seconds)


@asynccontextmanager
async def writing(socket: Socket) -> AsyncIterator[_Link]:
    link = _Link("http://meter", socket)  # type: ignore[arg-type]
    writer = asyncio.create_task(link.write())
    await asyncio.sleep(0)
    yield link
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)


async def test_the_end_of_a_session_leaves_with_the_next_open() -> None:
    socket = Socket()
    async with writing(socket) as link:
        link.put(1, END, may_linger=True)
        link.put(2, END, may_linger=True)
        await asyncio.sleep(0)
        assert socket.frames == []
        link.put(3, OPEN, may_linger=False)
        await asyncio.sleep(LINGER_S / 5)
        assert socket.frames == [[1, 2, 3]]


async def test_the_end_of_a_session_does_not_linger_for_long() -> None:
    socket = Socket()
    async with writing(socket) as link:
        for call_id in range(3):
            link.put(call_id, END, may_linger=True)
            await asyncio.sleep(LINGER_S * 4)
            assert socket.frames[call_id] == [call_id]


async def test_an_open_made_while_a_frame_is_written_leaves_right_after_it() -> None:
    socket = Socket(seconds=0.02)
    async with writing(socket) as link:
        link.put(1, OPEN, may_linger=False)
        await asyncio.sleep(0.005)
        link.put(2, OPEN, may_linger=False)
        link.put(3, END, may_linger=True)
        await asyncio.sleep(0.04)
        assert socket.frames == [[1], [2, 3]]
