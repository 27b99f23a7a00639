"""Token counting: exact where the tokenizer is known, never below the truth where something is held.

Hold `input_tokens_bound` (facts alone) or `InputCount.hold_tokens` (counted); charge by
`InputCount.tokens` only where the upstream reported no usage. Texts are never kept, images never
fetched, rank files never downloaded. docs/token-counts.md compares the counts with billed ones.
"""

from __future__ import annotations

from services.meter.counting.bounds import SizeFacts, input_tokens_bound, whole_context_tokens
from services.meter.counting.chat import count_chat_input
from services.meter.counting.encodings import preload
from services.meter.counting.models import counting_for
from services.meter.counting.prompts import count_embedding_input, count_prompt_input
from services.meter.counting.tally import InputCount, text_bytes
from services.meter.counting.text import count_growing, count_tokens
from services.meter.counting.worker import Counter, CountingOverloaded

__all__ = [
    "Counter",
    "CountingOverloaded",
    "InputCount",
    "SizeFacts",
    "count_chat_input",
    "count_embedding_input",
    "count_prefix",
    "count_prompt_input",
    "count_text",
    "input_tokens_bound",
    "preload",
    "text_tokens_bound",
    "whole_context_tokens",
]


def count_text(model: str, text: str) -> int:
    """Tokens of a text; an estimate where the model's tokenizer isn't known."""
    return count_tokens(counting_for(model).encoding, text)


def count_prefix(model: str, text: str, *, final: bool) -> tuple[int, int]:
    """(tokens, consumed characters) of a growing text's prefix that nothing appended can change.

    The caller drops what was consumed and appends what comes next; the sum over all calls, the last
    one `final`, is `count_text` of the whole text.
    """
    return count_growing(counting_for(model).encoding, text, final=final)


def text_tokens_bound(model: str, text: str) -> int:
    """At least the text's tokens: its count where the tokenizer is known, else its UTF-8 bytes."""
    counting = counting_for(model)
    return count_tokens(counting.encoding, text) if counting.known_tokenizer else text_bytes(text)
