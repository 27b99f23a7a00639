"""What is known of each model family: its tokenizer, its chat template's constants, its image formula.

Ids come dated, prefixed and fine-tuned: `gpt-4o-2024-08-06`, `openai/gpt-4o`, `ft:gpt-4o:org::id`,
`gpt-4o:free`. Families without a published tokenizer (Claude, Gemini, ...) are counted with o200k
as an estimate; what is *held* for them is the texts' UTF-8 bytes: tokenizers that work on bytes or fall
back to bytes never make more tokens than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from services.meter.counting.encodings import EncodingName
from services.meter.counting.images import (
    ANY_IMAGES,
    CLAUDE_IMAGES,
    GEMINI_IMAGES,
    GPT_5_NEWER_IMAGES,
    GPT_5_NEWER_MINI_IMAGES,
    GPT_5_NEWER_NANO_IMAGES,
    ImageFormula,
    Patches,
    Tiles,
)

_GPT_4O_IMAGES = Tiles(base=85, tile=170)
_O_IMAGES = Tiles(base=75, tile=150)
_MINI_IMAGES = Patches(factor_percent=162)
_NANO_IMAGES = Patches(factor_percent=246)


@dataclass(frozen=True)
class ModelCounting:
    """`reply_tokens` prime the answer; `template_margin_tokens` is held per request, `message_margin_tokens`
    per message and `tools_margin_tokens` when there are tools, where the template isn't known."""

    encoding: EncodingName
    images: ImageFormula
    known_tokenizer: bool = True
    known_template: bool = True
    message_tokens: int = 3
    name_tokens: int = 1
    reply_tokens: int = 3
    message_margin_tokens: int = 0
    template_margin_tokens: int = 0
    tools_margin_tokens: int = 0


_CL100K = ModelCounting("cl100k_base", _GPT_4O_IMAGES)
_O200K = ModelCounting("o200k_base", _GPT_4O_IMAGES)
_OLD = ModelCounting("p50k_base", _GPT_4O_IMAGES, known_template=False, template_margin_tokens=16)
_OLDER = ModelCounting("r50k_base", _GPT_4O_IMAGES, known_template=False, template_margin_tokens=16)


def _reasoning(images: ImageFormula) -> ModelCounting:
    # Reasoning models report one token less per request than the GPT-4o family; held as if they did not.
    return ModelCounting(
        "o200k_base", images, known_template=False, reply_tokens=2, template_margin_tokens=16
    )


def _unknown(images: ImageFormula, tools_margin_tokens: int) -> ModelCounting:
    return ModelCounting(
        "o200k_base",
        images,
        known_tokenizer=False,
        known_template=False,
        message_margin_tokens=16,
        template_margin_tokens=128,
        tools_margin_tokens=tools_margin_tokens,
    )


_ANY = _unknown(ANY_IMAGES, 1024)

_BEHIND = ("", "-", "_", "@")

# The first prefix that fits wins; behind it the id ends or goes on with a separator.
_FAMILIES: tuple[tuple[str, ModelCounting], ...] = (
    ("gpt-3.5-turbo-0301", ModelCounting("cl100k_base", _GPT_4O_IMAGES, message_tokens=4, name_tokens=-1)),
    ("gpt-3.5", _CL100K),
    ("gpt-35", _CL100K),
    ("gpt-4o-mini", ModelCounting("o200k_base", Tiles(base=2833, tile=5667))),
    ("gpt-4o", _O200K),
    ("chatgpt-4o", _O200K),
    ("gpt-4.1-mini", ModelCounting("o200k_base", _MINI_IMAGES)),
    ("gpt-4.1-nano", ModelCounting("o200k_base", _NANO_IMAGES)),
    ("gpt-4.1", _O200K),
    ("gpt-4.5", _O200K),
    ("gpt-4", _CL100K),
    ("gpt-audio", _O200K),
    ("gpt-realtime", _O200K),
    ("gpt-5-mini", _reasoning(_MINI_IMAGES)),
    ("gpt-5-nano", _reasoning(_NANO_IMAGES)),
    ("gpt-5.", _reasoning(GPT_5_NEWER_IMAGES)),
    ("gpt-5", _reasoning(Tiles(base=70, tile=140))),
    ("gpt-oss", ModelCounting("o200k_base", ANY_IMAGES, known_template=False, template_margin_tokens=256)),
    ("o1", _reasoning(_O_IMAGES)),
    ("o3", _reasoning(_O_IMAGES)),
    ("o4", _reasoning(Patches(factor_percent=172))),
    ("codex-mini", _reasoning(Patches(factor_percent=172))),
    ("computer-use", _reasoning(Tiles(base=65, tile=129))),
    ("text-embedding-3", _CL100K),
    ("text-embedding-ada-002", _CL100K),
    ("davinci-002", _CL100K),
    ("babbage-002", _CL100K),
    ("text-davinci-003", _OLD),
    ("text-davinci-002", _OLD),
    ("text-davinci-edit", _OLD),
    ("code-davinci", _OLD),
    ("code-cushman", _OLD),
    ("text-davinci", _OLDER),
    ("text-curie", _OLDER),
    ("text-babbage", _OLDER),
    ("text-ada", _OLDER),
    ("text-similarity-", _OLDER),
    ("text-search-", _OLDER),
    ("code-search-", _OLDER),
    ("davinci", _OLDER),
    ("curie", _OLDER),
    ("babbage", _OLDER),
    ("ada", _OLDER),
    ("gpt2", _OLDER),
    ("gpt-2", _OLDER),
    ("claude", _unknown(CLAUDE_IMAGES, 1024)),
    ("gemini", _unknown(GEMINI_IMAGES, 512)),
)


def counting_for(model: str) -> ModelCounting:
    """How to count for this model id, dated, prefixed or fine-tuned; never fails."""
    # A longer id is no model's, and must not fill the cache.
    return _counting_for(model) if len(model) <= 256 else _ANY


@lru_cache(maxsize=4096)
def _counting_for(model: str) -> ModelCounting:
    base = _base_name(model)
    for prefix, counting in _FAMILIES:
        if base.startswith(prefix) and (prefix[-1] in "-." or base[len(prefix) : len(prefix) + 1] in _BEHIND):
            return _gpt_5_newer(base) if prefix == "gpt-5." else counting
    return _ANY


def _gpt_5_newer(base: str) -> ModelCounting:
    if "nano" in base:
        return _reasoning(GPT_5_NEWER_NANO_IMAGES)
    if "mini" in base:
        return _reasoning(GPT_5_NEWER_MINI_IMAGES)
    return _reasoning(GPT_5_NEWER_IMAGES)


def _base_name(model: str) -> str:
    name = model.strip().lower().rsplit("/", 1)[-1]
    return name.removeprefix("ft:").split(":", 1)[0]
