"""What an input can cost at most, from its size alone: no tokenizer, no parsed body.

Every tokenizer here works on bytes or falls back to bytes, so a text never has more tokens than UTF-8
bytes, and its JSON spelling in the body is never shorter than that. What is added to the texts is
bounded per message, per image and per request below. The worst ratio of a function's namespace to
its JSON is an enum of one-digit numbers: three tokens (` |`, ` `, `1`) for two bytes (`1,`); the
other half of the body's size covers it.

The base64 data of an image is no text: `images.worst_tokens` bounds the image, whatever its size. Files,
videos and earlier audio have no bound but the model's context window, which is held whole; of a model whose
window isn't known, CONTEXT_TOKENS_UNKNOWN.
"""

from __future__ import annotations

from typing import Final, Protocol

from services.meter.counting.models import counting_for

CONTEXT_TOKENS_UNKNOWN: Final = 1_048_576
"""The largest context window that is in common use."""
_MESSAGE_TOKENS = 4
_REQUEST_TOKENS = 64
_DEFINITIONS_TOKENS = 128


class SizeFacts(Protocol):
    """`services.common.contracts.charging.InputFacts`."""

    @property
    def body_bytes(self) -> int: ...

    @property
    def message_count(self) -> int: ...

    @property
    def image_count(self) -> int: ...

    @property
    def has_tools(self) -> bool: ...

    @property
    def file_count(self) -> int: ...

    @property
    def image_bytes(self) -> int: ...


def whole_context_tokens(context_tokens: int | None) -> int:
    """What is held for an input that can't be seen from here. `context_tokens`: the model's window."""
    return CONTEXT_TOKENS_UNKNOWN if context_tokens is None else context_tokens


def input_tokens_bound(model: str, facts: SizeFacts, *, context_tokens: int | None = None) -> int:
    """At least `hold_tokens` of the same request, and so at least its true input tokens. `context_tokens`:
    the model's window, None: unknown."""
    rules = counting_for(model)
    text_bytes = max(0, facts.body_bytes - facts.image_bytes)
    tokens = text_bytes + _REQUEST_TOKENS + rules.template_margin_tokens
    tokens += facts.message_count * (_MESSAGE_TOKENS + rules.message_margin_tokens)
    tokens += facts.image_count * rules.images.worst_tokens
    if facts.has_tools:
        tokens += text_bytes // 2 + _DEFINITIONS_TOKENS + rules.tools_margin_tokens
    if facts.file_count:
        tokens = max(tokens, whole_context_tokens(context_tokens))
    return tokens
