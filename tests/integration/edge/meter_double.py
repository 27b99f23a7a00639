"""A meter for the edge's tests: real frames, real token counts, holds kept in memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from aiohttp import WSMsgType, web

from services.common.contracts.charging import (
    Admitted,
    Call,
    Counted,
    CountInput,
    CountText,
    CountWanted,
    Ended,
    Extend,
    Extended,
    Failed,
    KeyHint,
    Open,
    Refused,
    Release,
    Reply,
    Resolve,
    SessionRef,
    Settle,
    UsageRecord,
)
from services.common.contracts.frames import decode_calls, encode_frame
from services.common.ids import bucket_of, hash_api_key
from services.common.money import PriceVector, TokenCounts, cost_nanos
from services.meter.counting.text import count_growing

PRICE = PriceVector(input=2_500_000, cached_input=1_250_000, output=10_000_000, reasoning=10_000_000)
BOUND_WITHOUT_LIMIT = 16_384


@dataclass
class Account:
    """What is left, and who holds how much of it."""

    balance_nanos: int
    held: dict[str, int] = field(default_factory=dict)

    @property
    def available_nanos(self) -> int:
        return self.balance_nanos - sum(self.held.values())


@dataclass
class Books:
    """Shared by several meters, as Redis is."""

    account: Account
    hints: dict[str, KeyHint] = field(default_factory=dict)
    answers: dict[tuple[str, int], Reply] = field(default_factory=dict)
    granted: dict[str, int] = field(default_factory=dict)
    bounds: dict[str, int] = field(default_factory=dict)
    input_tokens: dict[str, int] = field(default_factory=dict)
    settled: dict[str, UsageRecord] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)
    calls: list[Call] = field(default_factory=list)

    def add_key(self, api_key: str, **fields: object) -> None:
        account_id = "acct_test"
        self.hints[hash_api_key(api_key)] = KeyHint(
            key_id="key_test", account_id=account_id, bucket=bucket_of(account_id), **fields
        )


class MeterDouble:
    """`slice_tokens`: how much of a stream's bound is granted at first and by each extend. `price`: of every
    model."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.slice_tokens = 2_048
        self.price = PRICE
        self.lease_ms = 60_000
        self.input_exact = True
        self.count_wanted = False
        self.silent_for: tuple[type, ...] = ()
        self.ended = ""
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._sockets: set[web.WebSocketResponse] = set()

    async def start(self, port: int = 0) -> None:
        app = web.Application()
        app.router.add_get("/internal/v1/charging", self._charging)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Cut every link at once, as a kill does."""
        if self._runner is None:
            return
        for socket in tuple(self._sockets):
            transport = socket._req.transport if socket._req is not None else None
            if transport is not None:
                transport.abort()
        await self._runner.cleanup()
        self._runner = None

    async def _charging(self, request: web.Request) -> web.WebSocketResponse:
        assert request.headers["Authorization"] == "Bearer internal"
        socket = web.WebSocketResponse(max_msg_size=0, compress=False)
        await socket.prepare(request)
        self._sockets.add(socket)
        try:
            async for message in socket:
                if message.type is not WSMsgType.BINARY:
                    break
                calls = decode_calls(message.data)
                answers = [(call_id, self.answer(call)) for call_id, call in calls]
                replies = [(call_id, reply) for call_id, reply in answers if reply is not None]
                if replies:
                    await socket.send_bytes(encode_frame(replies))
        except (ConnectionResetError, asyncio.CancelledError):
            pass
        finally:
            self._sockets.discard(socket)
        return socket

    def answer(self, call: Call) -> Reply | None:
        books = self.books
        books.calls.append(call)
        if isinstance(call, Open | Extend | Settle | Release):
            session_id = call.ref.session_id if isinstance(call, Extend | Settle) else call.session_id
            stored = books.answers.get((session_id, call.seq))
            reply = stored if stored is not None else self._execute(call)
            books.answers[session_id, call.seq] = reply
        else:
            reply = self._execute(call)
        return None if isinstance(call, self.silent_for) else reply

    def _execute(self, call: Call) -> Reply:
        match call:
            case Resolve():
                hint = self.books.hints.get(call.key_hash)
                return hint or Refused("InvalidApiKey", "invalid_api_key", "Incorrect API key provided.")
            case Open():
                return self._open(call)
            case Extend():
                return self._extend(call)
            case Settle():
                return self._settle(call)
            case Release():
                self.books.account.held.pop(call.session_id, None)
                self.books.released.add(call.session_id)
                return Ended(call.seq, "released")
            case CountInput():
                return Counted((len(call.body) // 4,))
            case CountText():
                counts = [count_growing("o200k_base", text, final=call.final) for text in call.texts]
                return Counted(tuple(tokens for tokens, _ in counts), tuple(chars for _, chars in counts))
        return Failed("unknown call")

    def _price(self, input_tokens: int, output_tokens: int) -> int:
        return cost_nanos(TokenCounts(input=input_tokens, output=output_tokens), self.price, 1_000_000)

    def _affordable(self, input_tokens: int, already_held: int = 0) -> int:
        left = self.books.account.available_nanos + already_held - self._price(input_tokens, 0)
        return max(0, left * 1000 // max(1, self.price.output))

    def _open(self, call: Open) -> Reply:
        if call.session_id in self.books.released:
            return Refused("Unavailable", "service_unavailable", "released before it was opened")
        if self.count_wanted and call.body is None:
            return CountWanted(call.seq)
        input_tokens = call.facts.body_bytes // 4 if self.input_exact else call.facts.body_bytes
        limit = BOUND_WITHOUT_LIMIT if call.output_tokens_max is None else call.output_tokens_max
        bound = limit * call.choices
        grant = bound
        if call.stream and self._price(input_tokens, bound) * 4 > self.books.account.available_nanos:
            grant = min(bound, self.slice_tokens)
        affordable = self._affordable(input_tokens)
        if affordable < (min(grant, 16) if call.stream else grant):
            return Refused("InsufficientQuota", "insufficient_quota", "The balance does not cover this.")
        grant = min(grant, affordable)
        held = self._price(input_tokens, grant)
        books = self.books
        available = books.account.available_nanos
        books.account.held[call.session_id] = held
        books.granted[call.session_id] = grant
        books.bounds[call.session_id] = bound
        books.input_tokens[call.session_id] = input_tokens
        hint = books.hints[call.key_hash]
        return Admitted(
            ref=SessionRef(call.session_id, hint.account_id, hint.key_id, hint.bucket, 1),
            seq=call.seq,
            held_nanos=held,
            granted_output_tokens=grant,
            output_tokens_bound=bound,
            final=grant in (affordable, bound),
            lease_ms=self.lease_ms,
            input_tokens=input_tokens,
            input_exact=self.input_exact,
            price=self.price,
            price_version=7,
            ratio_ppm=1_000_000,
            available_nanos=available,
        )

    def _extend(self, call: Extend) -> Reply:
        books, session_id = self.books, call.ref.session_id
        granted, input_tokens = books.granted[session_id], books.input_tokens[session_id]
        held = books.account.held.get(session_id, 0)
        if self.ended:
            return Extended(call.seq, held, granted, True, self.lease_ms, self.ended)
        affordable = self._affordable(input_tokens, held)
        granted = max(granted, min(call.want_output_tokens, books.bounds[session_id], affordable))
        books.granted[session_id] = granted
        books.account.held[session_id] = self._price(input_tokens, granted)
        final = granted >= min(affordable, books.bounds[session_id])
        return Extended(call.seq, books.account.held[session_id], granted, final, self.lease_ms)

    def _settle(self, call: Settle) -> Reply:
        books, session_id = self.books, call.ref.session_id
        if session_id not in books.settled:
            books.settled[session_id] = call.record
            books.account.balance_nanos -= call.record.cost_nanos
            books.account.held.pop(session_id, None)
        return Ended(call.seq, "settled")
