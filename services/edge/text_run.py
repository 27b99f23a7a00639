"""Read a run of alike events at once: those that differ in nothing but their text. Pure.

Most of a stream is one event again and again with another piece of text in it. Once such an event
was read in full, the bytes around its text are known; events that have the same bytes around a JSON
string mean the same with that text. Whatever doesn't match is left to be read event by event.

OpenAI's chunks end with a random `obfuscation` string: there the bytes around both strings are known.
"""

from __future__ import annotations

from typing import Final

import msgspec

from services.edge.streams.texts import TextKey

_MEMBERS: Final = ((b'"delta":{"content":"', "content"), (b'"text":"', "text"))
_FILLER: Final = b'"obfuscation":"'
_START: Final = b"data: "
_END: Final = b"\n\n"
_TEXT: Final = msgspec.json.Decoder(str)
LEARN_TRIES_MAX: Final = 16


class TextRun:
    """`learn` from events that were read in full; then `take` runs off the front of reads."""

    __slots__ = ("_end", "_middle", "_start", "_tries", "key")

    def __init__(self, *, choices: int) -> None:
        self._start = b""
        self._middle = b""
        self._end = b""
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
                self._middle, self._end = _around_filler(data[end:])
                self.key = TextKey(0, field)
                return

    def may_begin(self, chunk: bytes) -> bool:
        return chunk.startswith(self._start)

    def take(self, chunk: bytes) -> tuple[int, str]:
        """(how many of the first bytes of `chunk` are a run, the text in it); (0, "") if there is none."""
        if not chunk.startswith(self._start):
            return 0, ""
        # The last piece is torn, or empty.
        events = chunk.split(_END)[:-1]
        texts = self._texts_with_filler(events) if self._middle else self._texts(events, chunk)
        texts, text = _decoded(texts)
        return sum(map(len, events[: len(texts)])) + len(_END) * len(texts), text

    def _texts(self, events: list[bytes], chunk: bytes) -> list[bytes]:
        """What stands between the known bytes, of as many events as have them."""
        start, end = self._start, self._end
        begin, stop = len(start), -len(end)
        texts = [event[begin:stop] for event in events]
        # Putting it together again is much faster than looking at each event.
        whole = start + (end + _END + start).join(texts) + end + _END
        if chunk.startswith(whole) or not texts:
            return texts
        shortest = begin - stop
        for place, event in enumerate(events):
            if len(event) < shortest or not event.startswith(start) or not event.endswith(end):
                return texts[:place]
        return texts

    def _texts_with_filler(self, events: list[bytes]) -> list[bytes]:
        start, middle, end = self._start, self._middle, self._end
        begin, stop = len(start), -len(end)
        texts: list[bytes] = []
        for event in events:
            text, is_alike, filler = event[begin:stop].partition(middle)
            if (
                not is_alike
                or not (filler.isalnum() or not filler)
                or not event.startswith(start)
                or not event.endswith(end)
            ):
                break
            texts.append(text)
        return texts


def _around_filler(rest: bytes) -> tuple[bytes, bytes]:
    """(from the text's closing quote to the filler, from the filler on) of an event's rest behind its text;
    without a filler the former is empty."""
    before, found, behind = rest.partition(_FILLER)
    filler, quote, end = behind.partition(b'"')
    if not found or not quote or _FILLER in end or not (filler.isalnum() or not filler):
        return b"", rest
    return before + found, quote + end


def _decoded(texts: list[bytes]) -> tuple[list[bytes], str]:
    """As many of `texts`, from the first, as surely end at their closing quote; and all of it as text."""
    joined = b"".join(texts)
    if b"\\" in joined:
        # Behind a backslash the quote might be no closing one.
        texts = texts[: next((place for place, text in enumerate(texts) if text[-1:] == b"\\"), len(texts))]
        joined = b"".join(texts)
    text = _decoded_string(joined)
    if text is None:
        texts = texts[: next((place for place, text in enumerate(texts) if not _is_plain(text)), len(texts))]
        text = _decoded_string(b"".join(texts))
    return ([], "") if text is None else (texts, text)


def _decoded_string(inside: bytes) -> str | None:
    try:
        return _TEXT.decode(b'"' + inside + b'"')
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _is_plain(text: bytes) -> bool:
    return b'"' not in text and b"\\" not in text
