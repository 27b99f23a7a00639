"""Reads OpenAI-style chunks: `chat.completion.chunk` and streamed `text_completion`.

A chunk is parsed once, into tiny structs that name only what is read; the rest is skipped in C. Measured
(`tests/bench/stream_parsing.py`), that costs less than twice a search for the word `usage` in the bytes,
so nothing is put off. What does not fit the structs is read the slow way, leniently.
"""

from __future__ import annotations

import json
import re
from typing import Final

import msgspec

from services.edge.dialects.endpoint import ChunkFacts, UpstreamError, UsageFacts
from services.edge.dialects.openai_loose import read_loosely
from services.edge.dialects.openai_shapes import (
    CHOICES_SEEN_MAX,
    NO_RAW,
    Choice,
    Chunk,
    Delta,
    Function,
    Head,
)
from services.edge.dialects.usage import read_usage
from services.edge.streams.texts import TextKey, TextTally

SMALL_TEXTS: Final = tuple(ChunkFacts(size_bytes) for size_bytes in range(64))
"""Facts of the usual chunk, made once."""
DONE: Final = ChunkFacts(is_done=True)
GARBAGE: Final = ChunkFacts(is_garbage=True)
MESSAGE_CHARS_MAX: Final = 1_000
_NO_ERROR: Final = (b"", b"null", b"{}", b'""', b"false")
_OBJECT_ERROR: Final = re.compile(rb'"object"\s*:\s*"error"')
_NULL_BYTES: Final = 4
_CONTENT_OF_FIRST: Final = TextKey(0, "content")
_CHUNK: Final = msgspec.json.Decoder(Chunk, strict=False)
_HEAD: Final = msgspec.json.Decoder(Head, strict=False)
_FAULTS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class OpenAIChunkReader:
    """One streamed reply of chat completions or completions. Implements `ChunkReader`."""

    __slots__ = ("_finished", "_texts", "_usage_raw", "head")

    def __init__(self) -> None:
        self._texts = TextTally()
        self.head: Head | None = None
        self._finished: dict[int, bool] = {}
        self._usage_raw: bytes | None = None

    @property
    def texts(self) -> TextTally:
        return self._texts

    @property
    def usage(self) -> UsageFacts | None:
        """The last report: an upstream that sends several means the last."""
        return read_usage(self._usage_raw) if self._usage_raw is not None else None

    @property
    def is_finished(self) -> bool:
        return bool(self._finished) and all(self._finished.values())

    @property
    def unfinished_choices(self) -> list[int]:
        """Choices without a finish reason, and choice 0 when none was seen."""
        return sorted(index for index, finished in self._finished.items() if not finished) or (
            [] if self._finished else [0]
        )

    def accept(self, data: bytes, name: bytes | None = None) -> ChunkFacts:
        """See `ChunkReader`. `name`: the event's; `error` makes any data an error."""
        try:
            chunk = _CHUNK.decode(data)
        except _FAULTS:
            if data.strip() == b"[DONE]":
                return DONE
            loose = read_loosely(data)
            if loose is None:
                return _error_facts(data) if name == b"error" else GARBAGE
            chunk = loose
        if (name == b"error" or chunk.error is not NO_RAW or chunk.choices is None) and (
            name == b"error" or says_error(chunk, data)
        ):
            return _error_facts(data)
        if self.head is None:
            self._keep_head(data)
        size_bytes = 0
        says_more = False
        may_have_usage = len(chunk.usage) > _NULL_BYTES or chunk.x_groq is not None
        for choice in chunk.choices or ():
            size, more = self._read_choice(choice)
            size_bytes += size
            says_more = says_more or more
            may_have_usage = may_have_usage or choice.usage is not NO_RAW
        usage = usage_of(chunk) if may_have_usage else None
        if usage is None:
            return SMALL_TEXTS[size_bytes] if size_bytes < len(SMALL_TEXTS) else ChunkFacts(size_bytes)
        self._usage_raw = usage
        return ChunkFacts(size_bytes, has_usage=True, is_usage_only=not (size_bytes or says_more))

    def _read_choice(self, choice: Choice) -> tuple[int, bool]:
        """UTF-8 bytes of text, and whether it brings anything else worth forwarding."""
        index = choice.index
        finished = self._finished.get(index)
        says_more = finished is None or choice.finish_reason is not None
        if not finished and (finished is not None or len(self._finished) < CHOICES_SEEN_MAX):
            self._finished[index] = choice.finish_reason is not None
        size_bytes = self._texts.add(TextKey(index, "text"), choice.text) if choice.text else 0
        delta = choice.delta
        if delta is None:
            return size_bytes, says_more
        if delta.content:
            key = TextKey(index, "content") if index else _CONTENT_OF_FIRST
            size_bytes += self._texts.add(key, delta.content)
        if has_other_texts(delta):
            for field, text in other_texts(delta):
                size_bytes += self._texts.add(TextKey(index, field), text)
            says_more = says_more or bool(delta.tool_calls)
        return size_bytes, says_more

    def _keep_head(self, data: bytes) -> None:
        try:
            self.head = _HEAD.decode(data)
        except _FAULTS:
            self.head = Head()


def usage_of(chunk: Chunk) -> bytes | None:
    """The raw usage object, wherever it stands."""
    if chunk.usage is not NO_RAW and bytes(chunk.usage)[:1] == b"{":
        return bytes(chunk.usage)
    # Moonshot reports inside a choice, Groq in a field of its own.
    for choice in chunk.choices or ():
        if choice.usage is not NO_RAW and bytes(choice.usage)[:1] == b"{":
            return bytes(choice.usage)
    if chunk.x_groq is not None and bytes(chunk.x_groq.usage)[:1] == b"{":
        return bytes(chunk.x_groq.usage)
    return None


def says_error(chunk: Chunk, data: bytes) -> bool:
    if chunk.error is not NO_RAW:
        return bytes(chunk.error) not in _NO_ERROR
    # vLLM: {"object":"error","message":...}, without an `error` key.
    return chunk.choices is None and _OBJECT_ERROR.search(data) is not None


def has_other_texts(delta: Delta) -> bool:
    return bool(
        delta.reasoning_content
        or delta.reasoning
        or delta.refusal
        or delta.tool_calls
        or delta.function_call
        or delta.audio
    )


def other_texts(delta: Delta) -> list[tuple[str, str]]:
    """Output of a delta or message beside its content, as (field, text), empty ones left out."""
    found: list[tuple[str, str]] = []
    # Some send the same reasoning under both names.
    reasoning = delta.reasoning_content or delta.reasoning
    if reasoning:
        found.append(("reasoning", reasoning))
    if delta.refusal:
        found.append(("refusal", delta.refusal))
    for position, call in enumerate(delta.tool_calls or ()):
        slot = position if call.index is None else call.index
        for function in (call.function, call.custom):
            if function is not None:
                found.append((f"tool:{slot}", _function_text(function)))
    if delta.function_call is not None:
        found.append(("function_call", _function_text(delta.function_call)))
    if delta.audio is not None and delta.audio.transcript:
        found.append(("transcript", delta.audio.transcript))
    return [(field, text) for field, text in found if text]


def _function_text(function: Function) -> str:
    return f"{function.name or ''}{function.arguments or ''}{function.input or ''}"


def read_error(raw: bytes) -> UpstreamError:
    """Whatever stands under `error`: an object, a string, anything."""
    try:
        error = json.loads(raw)
    except (ValueError, RecursionError):
        return UpstreamError(raw[:MESSAGE_CHARS_MAX].decode("utf-8", "replace"), "", "")
    if isinstance(error, dict) and "message" not in error and isinstance(error.get("error"), (dict, str)):
        error = error["error"]
    if not isinstance(error, dict):
        return UpstreamError(str(error)[:MESSAGE_CHARS_MAX], "", "")
    message = error.get("message") or error.get("msg") or "no message"
    code, kind = error.get("code"), error.get("type")
    return UpstreamError(
        str(message)[:MESSAGE_CHARS_MAX],
        str(code)[:100] if code is not None else "",
        str(kind)[:100] if kind is not None else "",
    )


def _error_facts(data: bytes) -> ChunkFacts:
    return ChunkFacts(error=read_error(data))
