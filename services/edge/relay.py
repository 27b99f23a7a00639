"""Pass one upstream's event stream on to the client, never past the grant."""

from __future__ import annotations

from enum import Enum

from services.edge.delivery import Delivery
from services.edge.dialects.endpoint import ChunkFacts, ChunkReader, Endpoint, UpstreamError
from services.edge.grant_keeper import GrantKeeper
from services.edge.parts import lease_clock_s
from services.edge.session import Session
from services.edge.streams.sse import Event, EventSplitter, read_event
from services.edge.streams.texts import TextKey, utf8_bytes
from services.edge.text_run import TextRun
from services.edge.upstreams.transport import UpstreamReply

UNREADABLE = TextKey(0, "unreadable")


class StreamEnd(Enum):
    DONE = "done"
    """The upstream said `[DONE]`; it is not forwarded yet, nor what `take_unwritten` returns."""
    CLOSED = "closed"
    """The upstream closed after every finish reason, without `[DONE]`."""
    BROKEN_OFF = "broken_off"
    ERROR_EVENT = "error_event"
    """The upstream reported an error. Its words may name the operator's account: nobody else reads them."""
    GRANT_USED_UP = "grant_used_up"
    LEASE_OVER = "lease_over"
    MUST_END = "must_end"


class Relay:
    __slots__ = (
        "_delivery",
        "_endpoint",
        "_keeper",
        "_out",
        "_reader",
        "_runs",
        "_session",
        "_splitter",
        "_wants_usage",
        "done_event",
        "error",
    )

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        reader: ChunkReader,
        session: Session,
        keeper: GrantKeeper,
        delivery: Delivery,
        wants_usage: bool,
        choices: int,
    ) -> None:
        self._endpoint = endpoint
        self._reader = reader
        self._session = session
        self._keeper = keeper
        self._delivery = delivery
        self._wants_usage = wants_usage
        self._splitter = EventSplitter()
        self._runs = TextRun(choices=choices)
        self._out: list[bytes] = []
        self.error: UpstreamError | None = None
        self.done_event = b""

    async def run(self, reply: UpstreamReply) -> StreamEnd:
        """Forward until the stream's end or the grant's; what ends it properly is for the caller to write.

        Raises TransportError and EventTooLarge when the upstream's stream can't be read on.
        """
        session, keeper = self._session, self._keeper
        async for chunk in reply.chunks():
            if session.lease_is_over(lease_clock_s()):
                return StreamEnd.LEASE_OVER
            rest = self._take_runs(chunk)
            if rest:
                end = await self._relay(rest)
                if end is not None:
                    return end
            else:
                await self._write()
            if session.needs_attention:
                keeper.look_ahead()
            if session.ended and keeper.must_end:
                return StreamEnd.MUST_END
        # The last event may lack its blank line; a torn one is not passed on.
        last = read_event(self._splitter.finish())
        if (
            last.data is not None
            and not self._endpoint.chunk_reader().accept(last.data, last.name).is_garbage
        ):
            end = await self._forward([last])
            if end is not StreamEnd.DONE:
                await self._write()
            if end is not None:
                return end
        return StreamEnd.CLOSED if self._reader.is_finished else StreamEnd.BROKEN_OFF

    async def _relay(self, chunk: bytes) -> StreamEnd | None:
        """Read what is no run; what may be delivered of one read leaves in one write."""
        end = None
        try:
            while chunk and end is None:
                part, chunk = self._next_part(chunk)
                end = await self._forward(self._splitter.feed(part))
                chunk = self._take_runs(chunk)
        finally:
            # Text that was taken is charged: it must reach the client also when what follows is unreadable.
            # Only before `[DONE]` may it wait, so that both leave in one write.
            if end is not StreamEnd.DONE:
                await self._write()
        return end

    def take_unwritten(self) -> bytes:
        """What came in the same read as `[DONE]`; it belongs in front of it."""
        self._session.note_delivery()
        unwritten = b"".join(self._out)
        self._out.clear()
        return unwritten

    def _next_part(self, chunk: bytes) -> tuple[bytes, bytes]:
        """What to read event by event, and the rest: one event where a run may begin behind it."""
        runs = self._runs
        if runs.is_known:
            one_event = self._splitter.pending_bytes > 0 or runs.may_begin(chunk)
        else:
            one_event = runs.is_learning
        if one_event:
            end = chunk.find(b"\n\n") + 2
            if end >= 2:
                return chunk[:end], chunk[end:]
        return chunk, b""

    def _take_runs(self, chunk: bytes) -> bytes:
        """What is left of `chunk` after a run of plain text, which goes out as it came."""
        runs, session = self._runs, self._session
        if not runs.is_known or not chunk or self._splitter.pending_bytes:
            return chunk
        taken_bytes, text = runs.take(chunk)
        if not taken_bytes or session.could_exceed_grant(utf8_bytes(text)):
            return chunk
        session.text_bytes += self._reader.texts.add(runs.key, text)
        if taken_bytes == len(chunk):
            self._out.append(chunk)
            return b""
        self._out.append(chunk[:taken_bytes])
        return chunk[taken_bytes:]

    async def _forward(self, events: list[Event]) -> StreamEnd | None:
        """Read each event once, and put what may be delivered to what will be written."""
        session, reader, out = self._session, self._reader, self._out
        end = None
        for event in events:
            data = event.data
            if data is None:
                out.append(event.raw)
                continue
            # Only near the end of the grant is it worth remembering what came before the event.
            before = reader.texts.texts() if session.could_exceed_grant(len(data)) else None
            facts = reader.accept(data, event.name)
            text_bytes = facts.text_bytes
            if facts.is_garbage and data[:1] != b":":
                # What can't be read might be output all the same: nobody gets it for nothing.
                text_bytes = reader.texts.add(UNREADABLE, data.decode("utf-8", "replace"))
            if text_bytes:
                session.text_bytes += text_bytes
                if before is not None and not session.is_within_grant:
                    await self._write(without_bytes=text_bytes)
                    if not await self._keeper.make_room(before):
                        return StreamEnd.MUST_END if self._keeper.must_end else StreamEnd.GRANT_USED_UP
                if self._runs.is_learning and not facts.has_usage:
                    self._runs.learn(event.raw, data, text_bytes)
            raw, end = self._read(event, facts)
            if raw:
                out.append(raw)
            if end is not None:
                break
        return end

    def _read(self, event: Event, facts: ChunkFacts) -> tuple[bytes, StreamEnd | None]:
        """(what to forward, how the stream ends if it does) of an event that fits."""
        if facts.error is not None:
            self.error = facts.error
            return b"", StreamEnd.ERROR_EVENT
        if facts.is_done:
            self.done_event = event.raw
            return b"", StreamEnd.DONE
        if facts.has_usage and not self._wants_usage and facts.is_usage_only:
            return b"", None
        if (
            facts.has_usage
            and self._wants_usage
            and self._reader.usage is not None
            and event.data is not None
        ):
            cost_nanos = self._session.cost_nanos(self._reader.usage.tokens)
            return b"data: " + self._endpoint.with_cost(event.data, cost_nanos) + b"\n\n", None
        return event.raw, None

    async def _write(self, *, without_bytes: int = 0) -> None:
        """`without_bytes`: text that was read and is not in it."""
        out = self._out
        if out:
            # Into the log first: what the client has is never more than what the log says.
            self._session.note_delivery(without_bytes=without_bytes)
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            await self._delivery.write(data)
