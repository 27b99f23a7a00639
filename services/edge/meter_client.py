"""Calls to the meters: one multiplexed WebSocket per meter, naturally batched.

Calls that are made in one loop turn leave as one frame. The end of a session, which nobody waits for,
lingers up to LINGER_S, so that it leaves with the next open. A bucket has its meter by rendezvous
hash over the connected ones. Meters keep no session state, so the unanswered calls of a broken
link (or of a meter that is silent for too long) are sent again, unchanged, to another meter.

When no meter answers: a call waits until its timeout, then fails with MeterUnavailable. The
caller decides what that means: a new request gets 503, an ended session is kept and tried again.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Iterable

import aiohttp
import msgspec

from services.common import logs
from services.common.contracts.charging import Call, Reply
from services.common.contracts.frames import FRAME_BYTES_MAX, decode_replies, encode_frame
from services.common.discovery import Instances
from services.common.ids import BUCKETS
from services.common.internal_http import bearer
from services.common.settings import Secret

LOG = logs.get("edge.meter_client")
ATTEMPT_TIMEOUT_S = 5.0
"""A call unanswered for this long on a link that looks alive is sent to another meter."""
SWEEP_INTERVAL_S = 0.1
RECONNECT_FIRST_S, RECONNECT_MAX_S = 0.05, 1.0
CONNECT_TIMEOUT_S = 2.0
HEARTBEAT_S = 4.0
LINGER_S = 0.005
FRAME_BODY_BYTES = 8 * 1024 * 1024
"""Bodies in one frame; a frame with more than one call never gets near FRAME_BYTES_MAX."""


class MeterUnavailable(Exception):
    """No meter answered in time. Whether one executed the call is not known."""


class _Pending:
    __slots__ = ("bucket", "call", "call_id", "deadline", "future", "link", "sent_at")

    def __init__(
        self, call_id: int, call: Call, bucket: int, deadline: float, future: asyncio.Future[Reply]
    ) -> None:
        self.call_id = call_id
        self.call = call
        self.bucket = bucket
        self.deadline = deadline
        self.future = future
        self.link: _Link | None = None
        self.sent_at = 0.0


class _Link:
    """A connected meter: what waits to be written, and the writer that takes all of it at once."""

    def __init__(self, url: str, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.url = url
        self.socket = socket
        self._waiting: list[tuple[int, Call]] = []
        self._wake: asyncio.Future[None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._is_urgent = False

    def put(self, call_id: int, call: Call, *, may_linger: bool) -> None:
        self._waiting.append((call_id, call))
        if not may_linger:
            self._wake_writer()
        elif self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self._end_linger)

    def _wake_writer(self) -> None:
        self._is_urgent = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _end_linger(self) -> None:
        self._linger = None
        if self._waiting:
            self._wake_writer()

    async def write(self) -> None:
        """Runs until the socket breaks or it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._is_urgent:
                self._wake = loop.create_future()
                await self._wake
                self._wake = None
            self._is_urgent = False
            batch, self._waiting = self._waiting, []
            for part in split_batch(batch):
                await self.socket.send_bytes(encode_frame(part))


def split_batch(batch: list[tuple[int, Call]]) -> Iterable[list[tuple[int, Call]]]:
    """`batch` in parts whose bodies stay under FRAME_BODY_BYTES each (a larger one goes alone)."""
    part: list[tuple[int, Call]] = []
    part_bytes = 0
    for entry in batch:
        body_bytes = len(getattr(entry[1], "body", None) or b"")
        if part and part_bytes + body_bytes > FRAME_BODY_BYTES:
            yield part
            part, part_bytes = [], 0
        part.append(entry)
        part_bytes += body_bytes
    if part:
        yield part


class MeterClient:
    """`send` calls; `run` keeps the links up until it is cancelled."""

    def __init__(self, instances: Instances, credential: Secret) -> None:
        self._instances = instances
        self._credential = credential
        self._links: dict[str, _Link] = {}
        self._link_of_bucket: list[_Link | None] = [None] * BUCKETS
        self._pending: dict[int, _Pending] = {}
        self._homeless: dict[int, _Pending] = {}
        self._next_call_id = 0
        self._sweep_handle: asyncio.TimerHandle | None = None
        self.resent_calls = 0
        self.reconnects = 0

    @property
    def connected_meters(self) -> int:
        return len(self._links)

    @property
    def calls_outstanding(self) -> int:
        return len(self._pending)

    def send(
        self, call: Call, *, bucket: int, timeout_ms: int, may_linger: bool = False
    ) -> asyncio.Future[Reply]:
        """The reply's future; it raises MeterUnavailable after `timeout_ms`. `may_linger`: nobody waits."""
        loop = asyncio.get_running_loop()
        self._next_call_id += 1
        now = loop.time()
        pending = _Pending(
            self._next_call_id, call, bucket % BUCKETS, now + timeout_ms / 1000, loop.create_future()
        )
        self._pending[pending.call_id] = pending
        self._assign(pending, now, may_linger=may_linger)
        if self._sweep_handle is None:
            self._sweep_handle = loop.call_later(SWEEP_INTERVAL_S, self._sweep)
        return pending.future

    def _assign(
        self, pending: _Pending, now: float, *, avoid: _Link | None = None, may_linger: bool = False
    ) -> None:
        link = self._link_of_bucket[pending.bucket]
        if link is avoid and avoid is not None and len(self._links) > 1:
            link = pick_link([other for other in self._links.values() if other is not avoid], pending.bucket)
        pending.link = link
        pending.sent_at = now
        if link is None:
            self._homeless[pending.call_id] = pending
        else:
            link.put(pending.call_id, pending.call, may_linger=may_linger)

    def _sweep(self) -> None:
        """Give up on what is past its deadline; send again what a silent meter has not answered."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for pending in list(self._pending.values()):
            if pending.future.done():
                self._forget(pending.call_id)
            elif pending.deadline <= now:
                self._forget(pending.call_id)
                pending.future.set_exception(MeterUnavailable("no meter answered in time"))
            elif pending.link is not None and pending.sent_at + ATTEMPT_TIMEOUT_S <= now:
                self.resent_calls += 1
                self._assign(pending, now, avoid=pending.link)
        self._sweep_handle = loop.call_later(SWEEP_INTERVAL_S, self._sweep) if self._pending else None

    def _forget(self, call_id: int) -> _Pending | None:
        self._homeless.pop(call_id, None)
        return self._pending.pop(call_id, None)

    async def run(self) -> None:
        """Keep one link to every instance. Runs until cancelled."""
        tasks: dict[str, asyncio.Task[None]] = {}
        watch = asyncio.create_task(self._instances.watch())
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
        async with aiohttp.ClientSession(headers=bearer(self._credential), timeout=timeout) as session:
            try:
                await self._instances.refresh()
                while True:
                    wanted = set(self._instances.current)
                    for url in wanted - tasks.keys():
                        tasks[url] = asyncio.create_task(self._keep_link(session, url))
                    for url in tasks.keys() - wanted:
                        tasks.pop(url).cancel()
                    await asyncio.sleep(0.2)
            finally:
                running = [watch, *tasks.values()]
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _keep_link(self, session: aiohttp.ClientSession, url: str) -> None:
        backoff_s = RECONNECT_FIRST_S
        while True:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    socket = await session.ws_connect(
                        f"{url}/internal/v1/charging",
                        heartbeat=HEARTBEAT_S,
                        compress=0,
                        max_msg_size=FRAME_BYTES_MAX,
                    )
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                LOG.debug("meter not reached", meter=url, error=type(error).__name__)
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311
                backoff_s = min(backoff_s * 2, RECONNECT_MAX_S)
                continue
            backoff_s = RECONNECT_FIRST_S
            await self._use_link(_Link(url, socket))
            self.reconnects += 1
            await asyncio.sleep(backoff_s)

    async def _use_link(self, link: _Link) -> None:
        self._links[link.url] = link
        self._rehash()
        LOG.info("meter connected", meter=link.url, meters=len(self._links))
        now = asyncio.get_running_loop().time()
        homeless, self._homeless = self._homeless, {}
        for pending in homeless.values():
            self._assign(pending, now)
        writer = asyncio.create_task(link.write())
        try:
            await self._read(link)
        finally:
            writer.cancel()
            self._links.pop(link.url, None)
            self._rehash()
            self._resend_from(link)
            await asyncio.gather(writer, return_exceptions=True)
            await link.socket.close()
            LOG.warning("meter link ended", meter=link.url, meters=len(self._links))

    async def _read(self, link: _Link) -> None:
        while True:
            message = await link.socket.receive()
            if message.type is not aiohttp.WSMsgType.BINARY:
                return
            try:
                replies = decode_replies(message.data)
            except msgspec.DecodeError:
                LOG.error("meter sent a frame that can't be read", meter=link.url)
                return
            for call_id, reply in replies:
                pending = self._pending.pop(call_id, None)
                # No future waits for the second answer to a call that was sent twice.
                if pending is not None and not pending.future.done():
                    pending.future.set_result(reply)

    def _resend_from(self, link: _Link) -> None:
        now = asyncio.get_running_loop().time()
        for pending in list(self._pending.values()):
            if pending.link is link and not pending.future.done():
                self.resent_calls += 1
                self._assign(pending, now)

    def _rehash(self) -> None:
        links = list(self._links.values())
        self._link_of_bucket = [pick_link(links, bucket) for bucket in range(BUCKETS)]


def pick_link(links: list[_Link], bucket: int) -> _Link | None:
    """Rendezvous hash: when a meter comes or goes, only its own buckets move."""
    return max(links, key=lambda link: zlib.crc32(f"{bucket}|{link.url}".encode()), default=None)
