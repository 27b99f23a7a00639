"""Reads chunks and replies whose fields have other types than they should: content as a list of parts,
arguments as an object, counts as strings, a surrogate pair torn in two. Slow, seldom needed."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from services.edge.dialects.openai_shapes import (
    CHOICES_SEEN_MAX,
    NO_RAW,
    Audio,
    Choice,
    Chunk,
    Delta,
    Function,
    Groq,
    ToolCall,
)


def read_loosely(data: bytes) -> Chunk | None:
    """A chunk of odd types, as far as it can be understood; None: not a JSON object."""
    try:
        chunk = json.loads(data)
        return _loose_chunk(chunk) if isinstance(chunk, dict) else None
    except (ValueError, RecursionError):
        return None


def _loose_chunk(chunk: dict[str, Any]) -> Chunk:
    choices = chunk.get("choices")
    groq = chunk.get("x_groq")
    return Chunk(
        choices=[
            _loose_choice(choice, position)
            for position, choice in enumerate(choices if isinstance(choices, list) else ())
            if isinstance(choice, dict)
        ],
        usage=_raw(chunk.get("usage")),
        error=_raw(chunk.get("error")),
        x_groq=Groq(_raw(groq.get("usage"))) if isinstance(groq, dict) else None,
    )


def _loose_choice(choice: dict[str, Any], position: int) -> Choice:
    index = choice.get("index")
    delta = choice.get("delta", choice.get("message"))
    finish = choice.get("finish_reason")
    return Choice(
        index=index if isinstance(index, int) and 0 <= index < CHOICES_SEEN_MAX else position,
        delta=_loose_delta(delta) if isinstance(delta, dict) else None,
        text=_all_text(choice.get("text")),
        finish_reason=str(finish) if finish is not None else None,
        usage=_raw(choice.get("usage")),
    )


def _loose_delta(delta: dict[str, Any]) -> Delta:
    calls = delta.get("tool_calls")
    audio = delta.get("audio")
    return Delta(
        content=_all_text(delta.get("content")),
        reasoning_content=_all_text(delta.get("reasoning_content")),
        reasoning=_all_text(delta.get("reasoning")),
        refusal=_all_text(delta.get("refusal")),
        tool_calls=[
            ToolCall(position, _loose_function(call.get("function")), _loose_function(call.get("custom")))
            for position, call in enumerate(calls)
            if isinstance(call, dict)
        ]
        if isinstance(calls, list)
        else None,
        function_call=_loose_function(delta.get("function_call")),
        audio=Audio(_all_text(audio.get("transcript"))) if isinstance(audio, dict) else None,
    )


def _loose_function(function: object) -> Function | None:
    if not isinstance(function, dict):
        return None
    return Function(*(_all_text(function.get(name)) for name in ("name", "arguments", "input")))


def _all_text(value: object) -> str:
    """Every string of output inside `value`: content may be a list of parts, arguments an object."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_all_text(item) for item in value)
    if isinstance(value, dict):
        return "".join(_all_text(item) for key, item in value.items() if key != "type")
    return ""


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode()) if value is not None else NO_RAW
