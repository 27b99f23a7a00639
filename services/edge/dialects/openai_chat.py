"""POST /chat/completions"""

from __future__ import annotations

from typing import ClassVar, Final

from services.common.contracts.charging import InputFacts
from services.edge.dialects.endpoint import Request
from services.edge.dialects.input_parts import read_messages
from services.edge.dialects.openai_api import STREAM_FIELDS, OpenAIEndpoint
from services.edge.dialects.request_fields import (
    CHOICES_MAX,
    OUTPUT_TOKENS_MAX,
    has_tools,
    read_fields,
    read_model,
)

_KNOWN: Final = STREAM_FIELDS | {
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "tools",
    "functions",
    "response_format",
}


class ChatCompletions(OpenAIEndpoint):
    name: ClassVar[str] = "chat.completions"
    path: ClassVar[str] = "/chat/completions"
    kind: ClassVar[str] = "chat"
    limit_fields: ClassVar[tuple[str, ...]] = ("max_tokens", "max_completion_tokens")

    def read_request(self, body: bytes) -> Request:
        fields = read_fields(body, _KNOWN)
        messages, media = read_messages(fields)
        limits = [
            limit
            for name in self.limit_fields
            if (limit := fields.number(name, minimum=1, maximum=OUTPUT_TOKENS_MAX)) is not None
        ]
        return Request(
            model=read_model(fields),
            stream=fields.flag("stream"),
            wants_usage=fields.include_usage(),
            # Upstreams differ in which of the two they obey.
            output_tokens_max=max(limits, default=None),
            choices=fields.number("n", minimum=1, maximum=CHOICES_MAX) or 1,
            facts=InputFacts(
                body_bytes=len(body),
                message_count=messages,
                image_count=media.image_count,
                has_tools=has_tools(fields),
                file_count=media.file_count,
                image_bytes=media.image_bytes,
            ),
        )


CHAT_COMPLETIONS: Final = ChatCompletions()
