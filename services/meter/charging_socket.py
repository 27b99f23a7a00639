"""One edge's charging calls over one WebSocket: frames in, frames out, replies in any order.

Replies that are ready in the same turn of the loop leave as one frame, and so does what becomes
ready while a frame is being written. A bounded number of calls is worked on at once: past it the
socket is not read, and the edge waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import WSMsgType, web

from services.common import logs
from services.common.contracts.charging import (
    Call,
    Counted,
    CountInput,
    CountText,
    Extend,
    Failed,
    Open,
    Release,
    Reply,
    Resolve,
    Settle,
)
from services.common.contracts.frames import FRAME_BYTES_MAX, decode_calls, encode_frame
from services.common.errors import MeterwayError
from services.meter import refusals
from services.meter.parts import METER, Meter

LOG = logs.get("meter.charging_socket")
HEARTBEAT_S = 4.0
ENDING_S = 2.0
SOCKETS = web.AppKey("sockets", list[web.WebSocketResponse])

Handler = Callable[[Any], Awaitable[Reply]]


async def charging(request: web.Request) -> web.WebSocketResponse:
    meter = request.app[METER]
    socket = web.WebSocketResponse(max_msg_size=FRAME_BYTES_MAX, compress=False, heartbeat=HEARTBEAT_S)
    await socket.prepare(request)
    open_sockets = request.app[SOCKETS]
    open_sockets.append(socket)
    meter.metrics.edges += 1
    LOG.info("an edge connected", edges=meter.metrics.edges)
    try:
        await ChargingConnection(meter, socket).serve()
    finally:
        meter.metrics.edges -= 1
        open_sockets.remove(socket)
        LOG.info("an edge left", edges=meter.metrics.edges)
    return socket


class ChargingConnection:
    def __init__(self, meter: Meter, socket: web.WebSocketResponse) -> None:
        self._meter = meter
        self._socket = socket
        self._handlers: dict[type[Call], Handler] = {
            Resolve: meter.admission.resolve,
            Open: meter.admission.open,
            Extend: meter.running.extend,
            Settle: meter.running.settle,
            Release: meter.running.release,
            CountInput: self._count_input,
            CountText: self._count_text,
        }
        self._calls_max = meter.settings.calls_per_edge_max
        self._tasks: set[asyncio.Task[None]] = set()
        self._replies: list[tuple[int, Reply]] = []
        self._has_replies = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def serve(self) -> None:
        """Until the edge goes away. Calls that run then run to their end, for a while waited for."""
        writer = asyncio.create_task(self._write())
        try:
            async for message in self._socket:
                if message.type is not WSMsgType.BINARY:
                    break
                try:
                    calls = decode_calls(message.data)
                except msgspec.DecodeError:
                    LOG.error("an edge sent a frame that can't be read")
                    await self._socket.close(code=1007)
                    break
                self._meter.metrics.frame_calls.observe(len(calls))
                for call_id, call in calls:
                    self._start(call_id, call)
                await self._has_room.wait()
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=ENDING_S)

    def _start(self, call_id: int, call: Call) -> None:
        task = asyncio.create_task(self._answer(call_id, call))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        if len(self._tasks) >= self._calls_max:
            self._has_room.clear()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._has_room.is_set() and len(self._tasks) < self._calls_max:
            self._has_room.set()

    async def _answer(self, call_id: int, call: Call) -> None:
        try:
            reply = await self._handlers[type(call)](call)
        except MeterwayError as error:
            reply = refusals.refused(error)
        except Exception:
            LOG.exception("a charging call failed", call=type(call).__name__)
            reply = Failed("The meter failed. Its log says why.")
        self._replies.append((call_id, reply))
        self._has_replies.set()

    async def _write(self) -> None:
        while True:
            await self._has_replies.wait()
            self._has_replies.clear()
            replies, self._replies = self._replies, []
            self._meter.metrics.frame_replies.observe(len(replies))
            try:
                await self._socket.send_bytes(encode_frame(replies))
            except ConnectionError:
                return

    async def _count_input(self, call: CountInput) -> Reply:
        meter = self._meter
        count = await meter.counting.count_input(
            call.endpoint, call.model, meter.catalogue.find(call.model), call.body
        )
        return Counted(tokens=(count.tokens,), exact=count.exact)

    async def _count_text(self, call: CountText) -> Reply:
        return await self._meter.counting.count_texts(call)
