"""Size facts of a request, as an edge reports them."""

from __future__ import annotations

from typing import Any

from services.common.contracts.charging import InputFacts
from services.meter.counting.content_parts import is_image_part, is_out_of_sight


def facts_of(request: Any, body: bytes) -> InputFacts:
    request = request if isinstance(request, dict) else {}
    messages = request.get("messages")
    messages = messages if isinstance(messages, list) else []
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    if isinstance(request.get("input"), list):
        parts += request["input"]
    return InputFacts(
        body_bytes=len(body),
        message_count=len(messages),
        image_count=sum(map(is_image_part, parts)),
        has_tools=bool(request.get("tools") or request.get("functions")),
        file_count=sum(map(_is_file_part, parts))
        + sum(isinstance(message, dict) and isinstance(message.get("audio"), dict) for message in messages),
    )


def _is_file_part(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and "image" not in kind and kind != "input_audio" and is_out_of_sight(kind)
