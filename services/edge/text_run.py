"""Read a run of alike events at once: those that differ in nothing but their text. Pure.

Most of a stream is one event again and again with another piece of text in it. Once such an event
was read in full, the bytes before and after its text are known; events that have the same bytes
around a JSON string without a quote in it mean the same with that text. Whatever doesn't match is
left to be read event by event.
"""

from __future__ import annotations

from typing import Final

import msgspec

from services.edge.streams.texts import TextKey

_MEMBERS: Final = ((b'"delta":{"content":"', "content"), (b'"text":"', "text"))
_START: Final = b"data: "
_END: Final = b"\n\n"
_TEXT: Final = msgspec.json.Decoder(str)
LEARN_TRIES_MAX: Final = 16


class TextRun:
    """`learn` from events that were read in full; then `take` runs off the front of reads."""

    __slots__ = ("_between", "_end", "_start", "_tries", "key")

    def __init__(self, *, choices: int) -> None:
        self._start = b""
        self._end = b""
        self._between = b""
        # With several choices their events take turns, and no run is longer than one.
        self._tries = LEARN_TRIES_MAX if choices == 1 else 0
        self.key = TextKey(0, "")

    @property
    def is_known(self) -> bool:
        return bool(self._start)

    @property
    def is_learning(self) -> bool:
        """An event that no run takes may show that the bytes around the text have changed."""
        return self._tries > 0

    def learn(self, raw: bytes, data: bytes, text_bytes: int) -> None:
        """`text_bytes`: all text that the reader found in the event."""
        self._tries -= 1
        if raw != _START + data + _END or data.count(b'"index":') != data.count(b'"index":0'):
            return
        for member, field in _MEMBERS:
            begin = data.find(member)
            if begin < 0 or data.count(member) != 1:
                continue
            begin += len(member)
            end = data.find(b'"', begin)
            if end - begin == text_bytes and b"\\" not in data[begin:end]:
                self._start = _START + data[:begin]
                self._end = data[end:] + _END
                self._between = self._end + self._start
                self.key = TextKey(0, field)
                return

    def may_begin(self, chunk: bytes) -> bool:
        return chunk.startswith(self._start)

    def take(self, chunk: bytes) -> tuple[int, str]:
        """(how many of the first bytes of `chunk` are a run, the text in it); (0, "") if there is none."""
        start, end = self._start, self._end
        if not chunk.startswith(start):
            return 0, ""
        texts = chunk[len(start) :].split(self._between)
        texts[-1], complete, _rest = texts[-1].partition(end)
        if not complete:
            texts.pop()
        joined = b"".join(texts)
        if b'"' in joined or b"\\" in joined:
            texts = texts[: _plain_texts(texts)]
            joined = b"".join(texts)
        try:
            text = _TEXT.decode(b'"' + joined + b'"')
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return 0, ""
        return len(texts) * (len(start) + len(end)) + len(joined), text


def _plain_texts(texts: list[bytes]) -> int:
    """How many of `texts`, from the first, surely end where their event's closing quote stands."""
    for place, text in enumerate(texts):
        if b'"' in text or text.endswith(b"\\"):
            return place
    return len(texts)
