"""One input's running count: the estimate beside what must be held."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from services.meter.counting.encodings import EncodingName
from services.meter.counting.models import ModelCounting

TextCounter = Callable[[EncodingName, str], int]


class InputCount(msgspec.Struct, frozen=True):
    """What an input counts.

    `tokens`: the best estimate, to charge by where the upstream reports no usage. `hold_tokens`: at
    least the truth, to hold. `exact`: nothing was estimated and both are the truth. `whole_context`:
    the input names something that can't be seen from here (a file, a video, earlier audio): hold the
    model's whole context window.
    """

    tokens: int
    exact: bool
    hold_tokens: int
    whole_context: bool = False


class Tally:
    def __init__(self, rules: ModelCounting, count: TextCounter) -> None:
        self.rules = rules
        self.count = count
        self._tokens = 0
        self._hold_tokens = 0
        self._exact = rules.known_tokenizer
        self._whole_context = False

    def text(self, text: str) -> None:
        """Text that the model is shown."""
        tokens = self.count(self.rules.encoding, text)
        self.add(tokens, self.text_tokens_max(text, tokens))

    def text_tokens_max(self, text: str, tokens: int | None = None) -> int:
        """At least the text's tokens. `tokens`: its count, when known already."""
        if self.rules.known_tokenizer:
            return self.count(self.rules.encoding, text) if tokens is None else tokens
        return text_bytes(text)

    def add(self, tokens: int, hold_tokens: int | None = None) -> None:
        """`hold_tokens`: None when `tokens` are sure."""
        self._tokens += tokens
        self._hold_tokens += tokens if hold_tokens is None else hold_tokens

    def estimated(self) -> None:
        self._exact = False

    def out_of_sight(self) -> None:
        self._exact = False
        self._whole_context = True

    def result(self) -> InputCount:
        tokens = max(0, self._tokens)
        return InputCount(tokens, self._exact, max(tokens, self._hold_tokens), self._whole_context)


def text_bytes(text: str) -> int:
    """UTF-8 bytes; a lone surrogate counts as the replacement character that it becomes."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
