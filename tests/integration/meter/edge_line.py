"""An edge's end of the charging WebSocket, for tests."""

from __future__ import annotations

import asyncio
from typing import Self

import aiohttp
import msgspec

from services.common.contracts.charging import (
    Admitted,
    Call,
    Extend,
    InputFacts,
    Open,
    Release,
    Reply,
    Settle,
    UsageRecord,
)
from services.common.contracts.frames import decode_replies, encode_frame
from services.common.contracts.lending import KeySnapshot
from services.common.ids import EdgeId, SessionId, new_session_id
from services.common.money import TokenCounts, cost_nanos

CREDENTIAL = "internal-credential-of-tests"


class EdgeLine:
    def __init__(self, url: str) -> None:
        self._url = url
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._next = 0

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(headers={"Authorization": f"Bearer {CREDENTIAL}"})
        self._socket = await self._http.ws_connect(f"{self._url}/internal/v1/charging", max_msg_size=0)
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.cancel()
        await self._socket.close()
        await self._http.close()

    async def _read(self) -> None:
        async for message in self._socket:
            for call_id, reply in decode_replies(message.data):
                waiting = self._waiting.pop(call_id)
                if not waiting.done():
                    waiting.set_result(reply)

    async def call(self, call: Call) -> Reply:
        return (await self.call_all([call]))[0]

    async def call_all(self, calls: list[Call]) -> list[Reply]:
        """In one frame."""
        loop = asyncio.get_running_loop()
        messages = []
        futures = []
        for call in calls:
            self._next += 1
            self._waiting[self._next] = future = loop.create_future()
            futures.append(future)
            messages.append((self._next, call))
        await self._socket.send_bytes(encode_frame(messages))
        return await asyncio.wait_for(asyncio.gather(*futures), 20)


def open_call(snapshot: KeySnapshot, **changes: object) -> Open:
    """A plain chat request: 40 bytes of input, at most 100 tokens of output."""
    call = Open(
        session_id=new_session_id(),
        seq=1,
        edge_id=EdgeId("edge-a"),
        key_hash=snapshot.key_hash,
        endpoint="chat.completions",
        model="gpt-4o",
        stream=False,
        facts=InputFacts(body_bytes=len(BODY), message_count=1),
        output_tokens_max=100,
    )
    return msgspec.structs.replace(call, **changes)


BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hello"}]}'


async def open_session(line: EdgeLine, call: Open) -> Reply:
    """Open, and count when the meter asks for it, as an edge does."""
    reply = await line.call(call)
    if type(reply).__name__ == "CountWanted":
        reply = await line.call(msgspec.structs.replace(call, seq=call.seq + 1, body=BODY))
    return reply


def settle_call(admitted: Admitted, *, output_tokens: int, seq: int = 0, input_tokens: int = 0) -> Settle:
    tokens = TokenCounts(input=input_tokens or admitted.input_tokens, output=output_tokens)
    ref = admitted.ref
    record = UsageRecord(
        session_id=ref.session_id,
        account_id=ref.account_id,
        key_id=ref.key_id,
        edge_id=EdgeId("edge-a"),
        endpoint="chat.completions",
        model="gpt-4o",
        price_version=admitted.price_version,
        ratio_ppm=admitted.ratio_ppm,
        tokens=tokens,
        cost_nanos=cost_nanos(tokens, admitted.price, admitted.ratio_ppm),
        held_nanos=admitted.held_nanos,
        stream=False,
        outcome="complete",
        usage_source="upstream",
    )
    return Settle(ref, seq or admitted.seq + 1, record)


def release_call(snapshot: KeySnapshot, session_id: SessionId, seq: int) -> Release:
    return Release(session_id, snapshot.bucket, seq, "test")


def extend_call(admitted: Admitted, *, want: int, seq: int = 0, used: int = 0, used_nanos: int = 0) -> Extend:
    return Extend(admitted.ref, seq or admitted.seq + 1, want, used, used_nanos)
