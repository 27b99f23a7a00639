"""The emulator for benchmarks (`--fast`): the same answers from bytes made before, nothing else.

One asyncio protocol, no task per request, no log rows: only totals. Of a directive it obeys `tokens` and
`delay_ms`; of the request `stream`, `max_tokens`, `max_completion_tokens`, `model` and
`stream_options.include_usage`. Prompt tokens are a quarter of the body's bytes.
"""

import asyncio
import re
from functools import lru_cache
from typing import Any, Final, cast

import orjson

from services.emulator.answer import Answer, plan
from services.emulator.ask import Ask
from services.emulator.chunks import events
from services.emulator.plain import MODELS, completion_body, model_body
from services.emulator.script import Script
from services.emulator.sse import DONE, encoder

_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)
_CLOSE: Final = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
_STREAM: Final = re.compile(rb'"stream":\s*true')
_INCLUDE: Final = re.compile(rb'"include_usage":\s*true')
_MODEL: Final = re.compile(rb'"model":\s*"([^"\\]{1,200})"')
_LIMIT: Final = re.compile(rb'"max_(?:completion_)?tokens":\s*(\d{1,8})')
_TOKENS: Final = re.compile(rb"\[\[emulate [^\]]*?\btokens=(\d{1,6})")
_DELAY: Final = re.compile(rb"\[\[emulate [^\]]*?\bdelay_ms=(\d{1,6})")
_HEAD_BYTES_MAX: Final = 64 * 1024
_BODY_BYTES_MAX: Final = 64 * 1024 * 1024
_PROMPT: Final = 1_234_567
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)


def _planned(model: str, tokens: int, limit: int | None, stream: bool, include_usage: bool) -> Answer:
    ask = Ask(
        kind="chat", model=model, stream=stream, include_usage=include_usage, choices=1, candidates=1,
        limit_tokens=limit, prompt_tokens=_PROMPT, messages_count=1, last_text="", logprobs=False,
        tool_name="", body={},
    )  # fmt: skip
    return plan(ask, Script(tokens=tokens), response_id="chatcmpl-emulatorfast000001", created=1_767_225_600)


def _frame(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _with_prompt(data: bytes, completion_tokens: int, prompt_tokens: int) -> bytes:
    data = data.replace(b'"prompt_tokens":%d' % _PROMPT, b'"prompt_tokens":%d' % prompt_tokens)
    before, after = (b'"total_tokens":%d' % (part + completion_tokens) for part in (_PROMPT, prompt_tokens))
    return data.replace(before, after)


@lru_cache(maxsize=128)
def _plain_answer(model: str, tokens: int, limit: int | None, prompt_tokens: int) -> tuple[bytes, int]:
    answer = _planned(model, tokens, limit, False, True)
    body = _with_prompt(completion_body(answer)[0], answer.tokens, prompt_tokens)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    return head + body, answer.tokens


@lru_cache(maxsize=128)
def _stream_frames(
    model: str, tokens: int, limit: int | None, include_usage: bool, prompt_tokens: int
) -> tuple[list[bytes], int]:
    answer = _planned(model, tokens, limit, True, include_usage)
    encode = encoder(answer.script)
    parts: dict[str, list[bytes]] = {"lead": [], "content": [], "tail": []}
    for event in events(answer):
        payload = event.payload
        if event.usage is not None:
            payload = _with_prompt(payload, answer.tokens, prompt_tokens)
        parts[event.part].append(_frame(encode(payload)))
    frames = parts["content"] or [b""]
    # The role leaves with the first token, and the finish, the usage and the end with the last.
    frames[0] = _STREAM_HEAD + b"".join(parts["lead"]) + frames[0]
    frames[-1] += b"".join(parts["tail"]) + _frame(encode(DONE)) + b"0\r\n\r\n"
    return frames, answer.tokens


class FastProtocol(asyncio.Protocol):
    """One connection; requests are answered one after the other."""

    def __init__(self, totals: dict[str, int]) -> None:
        self._totals = totals
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._frames: list[bytes] = []
        self._place = 0
        self._close = False
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports only look like asyncio's, so an isinstance would fail.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._totals["client_disconnects"] += 1
            self._totals["open"] -= 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._timer is None and self._transport is not None:
            request = self._take_request()
            if request is None:
                return
            self._answer(*request)

    def _take_request(self) -> tuple[bytes, bytes] | None:
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(buffer) > _HEAD_BYTES_MAX:
                self._refuse()
            return None
        head = bytes(buffer[: end + 2])
        start = end + 4
        if _CHUNKED.search(head):
            # Only whole bodies count, so the last chunk's mark is enough to wait for.
            finish = buffer.find(b"0\r\n\r\n", start)
            if finish < 0:
                return None
            body, stop = _unchunk(bytes(buffer[start:finish])), finish + 5
        else:
            found = _LENGTH.search(head)
            stop = start + (int(found[1]) if found else 0)
            if stop > _BODY_BYTES_MAX:
                self._refuse()
                return None
            if len(buffer) < stop:
                return None
            body = bytes(buffer[start:stop])
        del buffer[:stop]
        self._close = _CLOSE.search(head) is not None
        return head, body

    def _refuse(self) -> None:
        assert self._transport is not None
        self._transport.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        self._transport.close()

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)
        if self._close:
            self._transport.close()

    def _answer(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"POST /v1/chat/completions"):
            self._write(_other_answer(head, self._totals))
            return
        model_found, limit_found, tokens_found = (
            _MODEL.search(body),
            _LIMIT.search(body),
            _TOKENS.search(body),
        )
        model = model_found[1].decode(errors="replace") if model_found else "gpt-4o"
        limit = max(1, int(limit_found[1])) if limit_found else None
        tokens = max(1, int(tokens_found[1])) if tokens_found else 64
        prompt_tokens = (len(body) + 3) // 4
        totals = self._totals
        totals["requests"] += 1
        totals["prompt_tokens"] += prompt_tokens
        if not _STREAM.search(body):
            answer, sent = _plain_answer(model, tokens, limit, prompt_tokens)
            totals["completion_tokens"] += sent
            totals["tokens_sent"] += sent
            self._write(answer)
            return
        include_usage = _INCLUDE.search(body) is not None
        frames, sent = _stream_frames(model, tokens, limit, include_usage, prompt_tokens)
        totals["completion_tokens"] += sent
        delay_found = _DELAY.search(body)
        if delay_found is None or int(delay_found[1]) == 0:
            totals["tokens_sent"] += sent
            self._write(b"".join(frames))
            return
        totals["open"] += 1
        self._frames, self._place = frames, 0
        self._next_frame(int(delay_found[1]) / 1000)

    def _next_frame(self, delay_seconds: float) -> None:
        frames, place = self._frames, self._place
        assert self._transport is not None
        self._transport.write(frames[place])
        self._place = place + 1
        self._totals["tokens_sent"] += 1
        if self._place < len(frames):
            self._timer = self._loop.call_later(delay_seconds, self._next_frame, delay_seconds)
            return
        self._timer = None
        self._totals["open"] -= 1
        if self._close:
            self._transport.close()
        elif self._buffer:
            self.data_received(b"")


def _unchunk(data: bytes) -> bytes:
    parts, place = [], 0
    while place < len(data):
        end = data.find(b"\r\n", place)
        if end < 0:
            break
        size = int(data[place:end].split(b";")[0] or b"0", 16)
        parts.append(data[end + 2 : end + 2 + size])
        place = end + 2 + size + 2
    return b"".join(parts)


def _other_answer(head: bytes, totals: dict[str, int]) -> bytes:
    document: Any = {"error": {"message": "Not served with --fast.", "type": "invalid_request_error"}}
    status = b"404 Not Found"
    for path, found in (
        (b"GET /healthz", {"status": "ok"}),
        (b"GET /emulator/totals", totals),
        (b"GET /v1/models ", {"object": "list", "data": [model_body(model) for model in MODELS]}),
    ):
        if head.startswith(path):
            document, status = found, b"200 OK"
    body = orjson.dumps(document)
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status, len(body), body,
    )  # fmt: skip


def new_totals() -> dict[str, int]:
    return dict.fromkeys(
        ("requests", "prompt_tokens", "completion_tokens", "tokens_sent", "client_disconnects", "open"), 0
    )
