"""The few fields of OpenAI-style chunks and replies that the gateway reads."""

from __future__ import annotations

from typing import Final

import msgspec

NO_RAW: Final = msgspec.Raw()
"""An absent field: compare by identity."""
CHOICES_SEEN_MAX: Final = 16_384


class Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None
    input: str | None = None


class ToolCall(msgspec.Struct, gc=False):
    index: int | None = None
    function: Function | None = None
    custom: Function | None = None


class Audio(msgspec.Struct, gc=False):
    transcript: str | None = None


class Delta(msgspec.Struct, gc=False):
    """A chunk's `delta` or a plain reply's `message`."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None
    audio: Audio | None = None


class Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    usage: msgspec.Raw = NO_RAW


class Groq(msgspec.Struct, gc=False):
    usage: msgspec.Raw = NO_RAW


class Chunk(msgspec.Struct, gc=False):
    choices: list[Choice] | None = None
    usage: msgspec.Raw = NO_RAW
    error: msgspec.Raw = NO_RAW
    x_groq: Groq | None = None


class Head(msgspec.Struct, gc=False):
    """What a chunk of our own repeats of the stream's first one."""

    id: str | None = None
    created: int | None = None
    model: str | None = None
