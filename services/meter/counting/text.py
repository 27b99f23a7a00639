"""Counting text, whole or as it grows.

A text is cut only where every encoding's pattern ends a pre-token whatever stands around, so that
the parts' counts add up to the whole's exactly. For o200k, cl100k, p50k and r50k these are

- before a space, tab or other blank that is not CR or LF, after anything that is not whitespace:
  no alternative of the patterns has a blank anywhere but in front or among whitespace;
- between a letter or digit and the punctuation in `_PUNCTUATION` or a line's end: only the
  contraction's apostrophe may follow a letter inside a pre-token, and no mark is in that list;
- between an ASCII letter and an ASCII digit: digits are pre-tokens of their own.

Nothing that a pattern looks at behind the cut (`\\s+(?!\\S)`, `$`, contractions) can reach over it,
and the patterns never look back. Where a text has no such place for `FORCED_CUT_CHARS` it is cut
anyway: each such cut adds `FORCED_CUT_TOKENS` to the count, more than a cut was ever seen to hide,
so that a count is never below the truth and, per 256 Ki characters of a text without words, at most
a few tokens above it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from services.meter.counting.encodings import EncodingName, encoding

# A piece is what one tiktoken call gets: while it runs, the GIL is free, and building its list of
# ids afterwards takes a fraction of a millisecond.
PIECE_CHARS = 16 * 1024
# tiktoken overflows its stack on about a million whitespace characters in a row, and is n log n before that.
FORCED_CUT_CHARS = 256 * 1024
FORCED_CUT_TOKENS = 8
# The most that `count_prefix` leaves uncounted, however odd the text.
TAIL_CHARS_MAX = 64 * 1024

_BLANKS = "\t\v\f \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_PUNCTUATION = (
    r"!-&(-/:-@\[-`{-~"  # ASCII but the apostrophe
    "\u00a1-\u00a9\u00ab-\u00b1\u00b4\u00b6-\u00b8\u00bb\u00bf"
    "\u2010-\u2027\u2030-\u205e"
    "\u3001-\u3004\u3008-\u3020\u3030"
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
_SAFE_CUT = re.compile(
    rf"\S(?=[{_BLANKS}])|[^\W_](?=[\r\n{_PUNCTUATION}])|[A-Za-z](?=[0-9])|[0-9](?=[A-Za-z])"
)


def count_tokens(name: EncodingName, text: str) -> int:
    """Tokens of the whole text; special tokens in it are ordinary text."""
    encode = encoding(name).encode_ordinary
    if len(text) <= PIECE_CHARS:
        return len(encode(text))
    total = 0
    for piece, extra in _pieces(text):
        total += extra + (len(encode(piece)) if len(piece) <= PIECE_CHARS else _count_unbroken(name, piece))
    return total


def count_growing(name: EncodingName, text: str, *, final: bool) -> tuple[int, int]:
    """Tokens of the longest prefix that nothing appended can change, and that prefix's characters.

    The caller keeps the rest and puts what comes next behind it; the counts add up to the count of
    the whole text, exactly, unless the text has no place to cut for `TAIL_CHARS_MAX` characters.
    """
    if final:
        return count_tokens(name, text), len(text)
    cut = last_safe_cut(text)
    if cut == 0 and len(text) > TAIL_CHARS_MAX:
        return count_tokens(name, text) + FORCED_CUT_TOKENS, len(text)
    return (count_tokens(name, text[:cut]), cut) if cut else (0, 0)


def last_safe_cut(text: str, end: int | None = None) -> int:
    """The last place up to `end` where the text may be cut, 0 if there is none.

    The character at the place must be known, so a text's end is never such a place.
    """
    end = len(text) if end is None else min(end + 1, len(text))
    window_chars = 64
    start = end
    while start > 0:
        start, stop = max(0, end - window_chars), start
        cut = 0
        # One character more than is new: a cut lies between two.
        for match in _SAFE_CUT.finditer(text, start, min(stop + 1, end)):
            cut = match.end()
        if cut:
            return cut
        window_chars *= 8
    return 0


def _pieces(text: str) -> Iterator[tuple[str, int]]:
    start = 0
    while len(text) - start > PIECE_CHARS:
        length = last_safe_cut(text[start : start + PIECE_CHARS + 1], PIECE_CHARS)
        extra = 0
        if length == 0:
            length = _first_safe_cut(text, start + PIECE_CHARS, start + FORCED_CUT_CHARS) - start
            forced = length == FORCED_CUT_CHARS and start + length < len(text)
            extra = FORCED_CUT_TOKENS if forced else 0
        yield text[start : start + length], extra
        start += length
    yield text[start:], 0


def _first_safe_cut(text: str, start: int, end: int) -> int:
    """The first place from `start` on where the text may be cut; at the latest its end, or `end`."""
    # In steps, because the search holds the GIL.
    while start < min(end, len(text)):
        match = _SAFE_CUT.search(text, start - 1, min(start + PIECE_CHARS, end))
        if match is not None:
            return match.end()
        start += PIECE_CHARS - 1
    return min(end, len(text))


def _count_unbroken(name: EncodingName, piece: str) -> int:
    """Like `encode_ordinary`, but into a buffer of 32-bit ids: a long list is built under the GIL."""
    encode = encoding(name)._core_bpe.encode_to_tiktoken_buffer
    try:
        ids = encode(piece, set())
    except UnicodeEncodeError:
        ids = encode(piece.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), set())
    return memoryview(ids).nbytes // 4
