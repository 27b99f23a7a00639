"""POST /embeddings"""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec

from services.common.contracts.charging import InputFacts
from services.common.errors import BadRequest
from services.edge.dialects.endpoint import PlainFacts, Request
from services.edge.dialects.input_parts import read_inputs
from services.edge.dialects.openai_api import OpenAIEndpoint
from services.edge.dialects.openai_chunks import read_error, says_error
from services.edge.dialects.openai_shapes import NO_RAW, Chunk
from services.edge.dialects.request_fields import Fields, read_fields, read_model
from services.edge.dialects.usage import read_usage

INPUT_FIELDS: Final = frozenset({"model", "input", "stream"})


class _Reply(msgspec.Struct, gc=False):
    """Vectors are skipped in C: a reply of 2,048 of them has 30 MB."""

    usage: msgspec.Raw = NO_RAW
    error: msgspec.Raw = NO_RAW


_REPLY: Final = msgspec.json.Decoder(_Reply)


class Embeddings(OpenAIEndpoint):
    name: ClassVar[str] = "embeddings"
    path: ClassVar[str] = "/embeddings"
    kind: ClassVar[str] = "embedding"
    has_output: ClassVar[bool] = False

    def read_request(self, body: bytes) -> Request:
        fields = read_fields(body, INPUT_FIELDS)
        return read_input_request(fields, body, read_model(fields))

    def read_plain(self, body: bytes) -> PlainFacts:
        return read_input_reply(body)


def read_input_request(fields: Fields, body: bytes, model: str) -> Request:
    """A request that is all `input` and brings no output tokens."""
    if fields.flag("stream"):
        raise BadRequest("This endpoint does not stream. Please leave `stream` out.", param="stream")
    inputs, media = read_inputs(fields, "input")
    return Request(
        model=model,
        stream=False,
        wants_usage=False,
        output_tokens_max=0,
        choices=1,
        facts=InputFacts(
            body_bytes=len(body),
            message_count=inputs,
            image_count=media.image_count,
            file_count=media.file_count,
            image_bytes=media.image_bytes,
        ),
    )


def read_input_reply(body: bytes) -> PlainFacts:
    """Usage or error of a reply without output tokens. Never raises."""
    try:
        reply = _REPLY.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return PlainFacts(None, {}, is_garbage=True)
    if says_error(Chunk(choices=[], error=reply.error), b""):
        return PlainFacts(None, {}, error=read_error(body))
    return PlainFacts(read_usage(bytes(reply.usage)) if reply.usage is not NO_RAW else None, {})


EMBEDDINGS: Final = Embeddings()
