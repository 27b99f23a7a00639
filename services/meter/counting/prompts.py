"""Counting what completions and embeddings take: a text, texts, token ids, or lists of token ids."""

from __future__ import annotations

from typing import Any

from services.meter.counting.content_parts import count_part
from services.meter.counting.models import counting_for
from services.meter.counting.tally import InputCount, Tally, TextCounter
from services.meter.counting.text import count_tokens

# Tokenizers that aren't known frame each text with special tokens (e.g. [CLS] and [SEP]).
_FRAME_TOKENS = 3
# Fill-in-the-middle prompts are framed too.
_SUFFIX_TOKENS = 4


def count_prompt_input(model: str, request: Any, *, count: TextCounter = count_tokens) -> InputCount:
    """Input tokens of a completion request (the parsed JSON body, whatever it is)."""
    tally = Tally(counting_for(model), count)
    prompt = request.get("prompt") if isinstance(request, dict) else None
    if prompt is None:
        # Without a prompt the model starts from one end-of-text token.
        tally.add(1)
    else:
        _count_texts_or_ids(tally, prompt)
    suffix = request.get("suffix") if isinstance(request, dict) else None
    if isinstance(suffix, str):
        tally.estimated()
        tally.text(suffix)
        tally.add(0, _SUFFIX_TOKENS)
    return tally.result()


def count_embedding_input(model: str, request: Any, *, count: TextCounter = count_tokens) -> InputCount:
    """Input tokens of an embedding (or moderation) request (the parsed JSON body, whatever it is)."""
    tally = Tally(counting_for(model), count)
    _count_texts_or_ids(tally, request.get("input") if isinstance(request, dict) else None)
    return tally.result()


def _count_texts_or_ids(tally: Tally, value: Any) -> None:
    items = value if isinstance(value, list) else [value]
    token_ids = 0
    for item in items:
        if isinstance(item, str):
            tally.text(item)
            if not tally.rules.known_tokenizer:
                tally.add(0, _FRAME_TOKENS)
        elif isinstance(item, list):
            token_ids += len(item)
        elif isinstance(item, int):
            token_ids += 1
        elif isinstance(item, dict):
            _count_input_part(tally, item)
    tally.add(token_ids)


def _count_input_part(tally: Tally, part: dict[str, Any]) -> None:
    """Multimodal moderation and embedding inputs: `{"type": "text"|"image_url", ...}`."""
    tally.estimated()
    kind = part.get("type")
    if not isinstance(kind, str) or "image" not in kind:
        count_part(tally, part)
        return
    text = part.get("text")
    if isinstance(text, str):
        tally.text(text)
    worst = tally.rules.images.worst_tokens
    tally.add(worst, worst)
