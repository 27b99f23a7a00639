"""The output text of one reply that has not been counted exactly yet."""

from __future__ import annotations

from typing import Final, NamedTuple

JOIN_PIECES: Final = 32


class TextKey(NamedTuple):
    """`field`: `content`, `refusal`, `reasoning`, `tool:<index>`, `function_call`, `text`, `transcript`."""

    choice: int
    field: str


class TextTally:
    """Output text by choice and field, since the last exact count.

    `uncounted_bytes` (UTF-8) is an upper bound of the tokens in it. The caller counts and consumes
    before it grows large; nothing here is bounded but by that.
    """

    __slots__ = ("_joined", "_pieces", "uncounted_bytes")

    def __init__(self) -> None:
        self._pieces: dict[TextKey, list[str]] = {}
        self._joined: dict[TextKey, list[str]] = {}
        self.uncounted_bytes = 0

    def add(self, key: TextKey, text: str) -> int:
        """Append `text`; how many UTF-8 bytes it has."""
        pieces = self._pieces.get(key)
        if pieces is None:
            pieces = self._pieces[key] = []
        pieces.append(text)
        if len(pieces) >= JOIN_PIECES:
            # A small str costs 50 bytes beside its text: 1,000 idle streams feel that.
            self._joined.setdefault(key, []).append("".join(pieces))
            pieces.clear()
        size_bytes = utf8_bytes(text)
        self.uncounted_bytes += size_bytes
        return size_bytes

    def texts(self) -> dict[TextKey, str]:
        """What is not counted yet, in the order in which the fields began. Empty texts are left out."""
        joined = {key: "".join([*self._joined.get(key, ()), *pieces]) for key, pieces in self._pieces.items()}
        return {key: text for key, text in joined.items() if text}

    def consume(self, key: TextKey, chars: int) -> None:
        """The first `chars` characters of `key`'s text are counted: forget them."""
        if key not in self._pieces or chars <= 0:
            return
        text = "".join([*self._joined.pop(key, ()), *self._pieces[key]])
        self._pieces[key] = [text[chars:]] if len(text) > chars else []
        self.uncounted_bytes -= utf8_bytes(text[:chars])


def utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
