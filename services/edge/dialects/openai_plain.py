"""Reads plain (not streamed) OpenAI-style replies."""

from __future__ import annotations

from typing import Final

import msgspec

from services.edge.dialects.endpoint import PlainFacts
from services.edge.dialects.openai_chunks import other_texts, read_error, says_error, usage_of
from services.edge.dialects.openai_loose import read_loosely
from services.edge.dialects.openai_shapes import Choice, Chunk, Delta
from services.edge.dialects.usage import read_usage
from services.edge.streams.texts import TextKey


class _PlainChoice(Choice, gc=False):
    message: Delta | None = None


class _PlainReply(Chunk, gc=False):
    choices: list[_PlainChoice] | None = None  # type: ignore[assignment]  # the stream's choice has a delta


_REPLY: Final = msgspec.json.Decoder(_PlainReply, strict=False)
_FAULTS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_plain(body: bytes) -> PlainFacts:
    """Usage, output texts and errors of a chat completion or completion. Never raises."""
    reply: Chunk | None
    try:
        reply = _REPLY.decode(body)
    except _FAULTS:
        reply = read_loosely(body)
    if reply is None:
        return PlainFacts(None, {}, is_garbage=True)
    if says_error(reply, body):
        return PlainFacts(None, {}, error=read_error(body))
    usage = usage_of(reply)
    return PlainFacts(read_usage(usage) if usage else None, _texts(reply))


def _texts(reply: Chunk) -> dict[TextKey, str]:
    texts: dict[TextKey, str] = {}
    for choice in reply.choices or ():
        message: Delta | None = choice.message if isinstance(choice, _PlainChoice) else choice.delta
        if choice.text:
            texts[TextKey(choice.index, "text")] = choice.text
        if message is None:
            continue
        if message.content:
            texts[TextKey(choice.index, "content")] = message.content
        for field, text in other_texts(message):
            texts[TextKey(choice.index, field)] = text
    return texts
