"""What OpenAI's endpoints have in common; each endpoint's module adds how its request is read."""

from __future__ import annotations

import abc
import re
from typing import ClassVar, Final

import msgspec

from services.common.errors import MeterwayError
from services.common.money import TokenCounts
from services.edge.dialects.endpoint import ChunkReader, PlainFacts, Request
from services.edge.dialects.json_object import read_object, with_fields
from services.edge.dialects.openai_chunks import OpenAIChunkReader
from services.edge.dialects.openai_endings import (
    DONE_EVENT,
    error_event,
    length_events,
    usage_event,
    with_cost,
)
from services.edge.dialects.openai_plain import read_plain
from services.edge.dialects.usage import usage_json

STREAM_FIELDS: Final = frozenset({"model", "stream", "stream_options"})
_NULL: Final = b"null"
_INCLUDE_USAGE: Final = b'{"include_usage":true}'
_NEW_LIMIT_FIELD: Final = re.compile(r"(.*/)?(o\d|gpt-[5-9])")


class OpenAIEndpoint(abc.ABC):
    """Implements `Endpoint` for the OpenAI dialect."""

    name: ClassVar[str]
    path: ClassVar[str]
    kind: ClassVar[str]
    has_output: ClassVar[bool] = True
    chunk_object: ClassVar[str] = "chat.completion.chunk"
    limit_fields: ClassVar[tuple[str, ...]] = ("max_tokens",)
    """Fields that limit the output; the first is written when the client set none."""

    @abc.abstractmethod
    def read_request(self, body: bytes) -> Request: ...

    def upstream_body(
        self,
        body: bytes,
        *,
        model_rename: str | None = None,
        output_tokens_max: int | None = None,
        include_usage: bool = False,
    ) -> bytes:
        if model_rename is None and output_tokens_max is None and not include_usage:
            return body
        fields = read_object(body)
        changes: dict[str, bytes] = {}
        if model_rename is not None:
            changes["model"] = msgspec.json.encode(model_rename)
        if output_tokens_max is not None and self.has_output:
            name = model_rename or msgspec.json.decode(fields.get("model", b'""'), type=str)
            for limit_field in self._limit_fields_to_write(frozenset(fields), name):
                changes[limit_field] = b"%d" % output_tokens_max
        if include_usage:
            options = bytes(fields.get("stream_options", _NULL))
            changes["stream_options"] = (
                _INCLUDE_USAGE if options == _NULL else with_fields(options, {"include_usage": b"true"})
            )
        return with_fields(body, changes, fields)

    def _limit_fields_to_write(self, present: frozenset[str], model: str) -> list[str]:
        already = [name for name in self.limit_fields if name in present]
        if already:
            return already
        # OpenAI's reasoning models refuse `max_tokens`; most others know nothing else.
        wants_new = "max_completion_tokens" in self.limit_fields and _NEW_LIMIT_FIELD.match(model)
        return ["max_completion_tokens" if wants_new else self.limit_fields[0]]

    def chunk_reader(self) -> OpenAIChunkReader:
        return OpenAIChunkReader()

    def read_plain(self, body: bytes) -> PlainFacts:
        return read_plain(body)

    def end_of_stream(
        self, reader: ChunkReader, error: MeterwayError | None, *, usage_json: bytes | None = None
    ) -> bytes:
        assert isinstance(reader, OpenAIChunkReader)
        return b"".join(
            (
                length_events(self.chunk_object, reader.head, reader.unfinished_choices),
                usage_event(self.chunk_object, reader.head, usage_json) if usage_json else b"",
                error_event(error) if error is not None else DONE_EVENT,
            )
        )

    def error_event(self, error: MeterwayError) -> bytes:
        return error_event(error)

    def usage_chunk(self, reader: ChunkReader, usage_json: bytes) -> bytes:
        assert isinstance(reader, OpenAIChunkReader)
        return usage_event(self.chunk_object, reader.head, usage_json)

    def usage_json_of(self, tokens: TokenCounts, cost_nanos: int) -> bytes:
        return usage_json(tokens, cost_nanos)

    def with_cost(self, data: bytes, cost_nanos: int) -> bytes:
        return with_cost(data, cost_nanos)
