"""What an input can cost at most, from its size alone: no tokenizer, no parsed body.

Every tokenizer here works on bytes or falls back to bytes, so a text never has more tokens than UTF-8
bytes, and its JSON spelling in the body is never shorter than that. What is added to the texts is
bounded per message, per image and per request below. The worst ratio of a function's namespace to
its JSON is an enum of one-digit numbers: three tokens (` |`, ` `, `1`) for two bytes (`1,`); the
other half of the body's size covers it.

Not seen from these facts: files, videos and earlier audio by id. `count_chat_input` reports them
as `whole_context`; whoever admits such a request holds the model's context window.
"""

from __future__ import annotations

from typing import Protocol

from services.meter.counting.models import counting_for

_MESSAGE_TOKENS = 4
_REQUEST_TOKENS = 64
_DEFINITIONS_TOKENS = 128


class SizeFacts(Protocol):
    """`services.common.contracts.charging.InputFacts`. `image_count`: parts whose type names an image."""

    @property
    def body_bytes(self) -> int: ...

    @property
    def message_count(self) -> int: ...

    @property
    def image_count(self) -> int: ...

    @property
    def has_tools(self) -> bool: ...


def input_tokens_bound(model: str, facts: SizeFacts) -> int:
    """At least `hold_tokens` of the same request, and so at least its true input tokens."""
    rules = counting_for(model)
    tokens = facts.body_bytes + _REQUEST_TOKENS + rules.template_margin_tokens
    tokens += facts.message_count * (_MESSAGE_TOKENS + rules.message_margin_tokens)
    tokens += facts.image_count * rules.images.worst_tokens
    if facts.has_tools:
        tokens += facts.body_bytes // 2 + _DEFINITIONS_TOKENS + rules.tools_margin_tokens
    return tokens
