"""POST /completions (legacy)"""

from __future__ import annotations

from typing import ClassVar, Final

from services.common.contracts.charging import InputFacts
from services.common.errors import BadRequest
from services.edge.dialects.endpoint import Request
from services.edge.dialects.input_parts import read_inputs
from services.edge.dialects.openai_api import STREAM_FIELDS, OpenAIEndpoint
from services.edge.dialects.request_fields import (
    CHOICES_MAX,
    OUTPUT_TOKENS_MAX,
    read_fields,
    read_model,
)

PROMPTS_MAX: Final = 2_048
_KNOWN: Final = STREAM_FIELDS | {"prompt", "max_tokens", "n", "best_of"}


class Completions(OpenAIEndpoint):
    name: ClassVar[str] = "completions"
    path: ClassVar[str] = "/completions"
    kind: ClassVar[str] = "completion"
    chunk_object: ClassVar[str] = "text_completion"

    def read_request(self, body: bytes) -> Request:
        fields = read_fields(body, _KNOWN)
        # Without a prompt the model starts from nothing, which is allowed.
        prompts = read_inputs(fields, "prompt")[0] if fields.raw("prompt") is not None else 1
        if prompts > PROMPTS_MAX:
            raise BadRequest(f"`prompt` must hold at most {PROMPTS_MAX} prompts.", param="prompt")
        limit = fields.number("max_tokens", minimum=0, maximum=OUTPUT_TOKENS_MAX)
        answers = fields.number("n", minimum=1, maximum=CHOICES_MAX) or 1
        tried = fields.number("best_of", minimum=1, maximum=CHOICES_MAX) or 1
        return Request(
            model=read_model(fields),
            stream=fields.flag("stream"),
            wants_usage=fields.include_usage(),
            # 0 is asked for to score a prompt; some upstreams take it for "no limit" and give one token.
            output_tokens_max=None if limit is None else max(1, limit),
            choices=prompts * max(answers, tried),
            facts=InputFacts(body_bytes=len(body), message_count=prompts),
        )


COMPLETIONS: Final = Completions()
