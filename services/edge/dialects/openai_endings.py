"""How a stream ends when the gateway ends it, and errors and costs inside OpenAI-style replies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import orjson

from services.common.errors import MeterwayError
from services.edge.dialects.json_object import DuplicateKey, NotAnObject, read_object, with_fields
from services.edge.dialects.openai_shapes import Head
from services.edge.dialects.usage import cost_number

DONE_EVENT: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"


def error_object(error: MeterwayError) -> dict[str, Any]:
    """The API's error body: all four keys are always there."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_event(error: MeterwayError) -> bytes:
    # SDKs raise for an `error` key in the data; they ignore `event: error` without one.
    return b"data: " + orjson.dumps(error_object(error)) + b"\n\n" + DONE_EVENT


def length_events(object_name: str, head: Head | None, choices: Iterable[int]) -> bytes:
    """For each choice a chunk that says it ended for its length."""
    return b"".join(
        _event(object_name, head, [_length_choice(object_name, index)], usage=None) for index in choices
    )


def usage_event(object_name: str, head: Head | None, usage_json: bytes) -> bytes:
    return _event(object_name, head, [], usage=orjson.Fragment(usage_json))


def with_cost(data: bytes, cost_nanos: int) -> bytes:
    """`data` with `cost_usd` spliced into its `usage` object; the same object when it has none."""
    try:
        usage = bytes(read_object(data).get("usage", b""))
        if usage[:1] != b"{":
            return data
        priced = with_fields(usage, {"cost_usd": cost_number(cost_nanos)})
        # Line ends in JSON are white space; in an event's data they would need a `data:` each.
        return with_fields(data, {"usage": priced}).replace(b"\n", b" ")
    except (NotAnObject, DuplicateKey):
        return data


def _length_choice(object_name: str, index: int) -> dict[str, Any]:
    if object_name == "text_completion":
        return {"index": index, "text": "", "logprobs": None, "finish_reason": "length"}
    return {"index": index, "delta": {}, "logprobs": None, "finish_reason": "length"}


def _event(
    object_name: str, head: Head | None, choices: list[dict[str, Any]], *, usage: orjson.Fragment | None
) -> bytes:
    chunk: dict[str, Any] = {
        "id": (head and head.id) or "chatcmpl-0",
        "object": object_name,
        "created": (head and head.created) or 0,
        "model": (head and head.model) or "",
        "choices": choices,
    }
    if usage is not None:
        chunk["usage"] = usage
    return b"data: " + orjson.dumps(chunk) + b"\n\n"
