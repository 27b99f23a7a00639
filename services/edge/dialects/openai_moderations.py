"""POST /moderations: free, but metered like the rest."""

from __future__ import annotations

from typing import ClassVar, Final

from services.edge.dialects.endpoint import PlainFacts, Request
from services.edge.dialects.openai_api import OpenAIEndpoint
from services.edge.dialects.openai_embeddings import INPUT_FIELDS, read_input_reply, read_input_request
from services.edge.dialects.request_fields import read_fields, read_model

DEFAULT_MODEL: Final = "omni-moderation-latest"


class Moderations(OpenAIEndpoint):
    name: ClassVar[str] = "moderations"
    path: ClassVar[str] = "/moderations"
    kind: ClassVar[str] = "moderation"
    has_output: ClassVar[bool] = False

    def read_request(self, body: bytes) -> Request:
        fields = read_fields(body, INPUT_FIELDS)
        return read_input_request(fields, body, read_model(fields, default=DEFAULT_MODEL))

    def read_plain(self, body: bytes) -> PlainFacts:
        return read_input_reply(body)


MODERATIONS: Final = Moderations()
