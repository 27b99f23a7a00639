"""The top level of a JSON object as raw slices: read it, and change a few values, without touching the rest.

msgspec finds the values; they are located again by their lengths, so no value is scanned in Python.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Final

import msgspec

_DECODER: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRING: Final = msgspec.json.Decoder(str)
_OPEN: Final = re.compile(rb"[ \t\r\n]*\{[ \t\r\n]*")
_KEY: Final = re.compile(rb'("(?:[^"\\]|\\.)*")[ \t\r\n]*:[ \t\r\n]*')
_COMMA: Final = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*")
_CLOSE: Final = re.compile(rb"[ \t\r\n]*\}[ \t\r\n]*\Z")


class NotAnObject(ValueError):
    """The text is not one valid JSON object (or is nested deeper than about 1,000 levels)."""


class DuplicateKey(ValueError):
    """A top-level key occurs twice: which of them counts is anybody's guess."""


def read_object(text: bytes) -> dict[str, msgspec.Raw]:
    """Top-level values by key. Strings inside them are not checked for valid UTF-8. Raises NotAnObject."""
    try:
        return _DECODER.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NotAnObject(str(error)) from None


def value_spans(
    text: bytes, fields: Mapping[str, msgspec.Raw], wanted: Set[str] | None = None
) -> dict[str, tuple[int, int]]:
    """Where each top-level value begins and ends in `text`. `fields`: `read_object(text)`. With `wanted`, the
    walk stops when these are found.

    Raises DuplicateKey: then `fields` has fewer entries than `text`, and the walk goes astray.
    """
    spans: dict[str, tuple[int, int]] = {}
    missing = -1 if wanted is None else len(fields.keys() & wanted)
    match = _OPEN.match(text)
    position = match.end() if match else 0
    for key, raw in fields.items():
        if missing == 0:
            return spans
        if spans:
            match = _COMMA.match(text, position)
            position = match.end() if match else position
        match = _KEY.match(text, position)
        if match is None or (match[1][1:-1] != key.encode() and _STRING.decode(match[1]) != key):
            raise DuplicateKey(key)
        start = match.end()
        position = start + len(raw)
        if not text.startswith(bytes(raw), start):
            raise DuplicateKey(key)
        spans[key] = (start, position)
        missing -= wanted is not None and key in wanted
    if _CLOSE.match(text, position) is None:
        raise DuplicateKey
    return spans


def check_no_duplicates(text: bytes, fields: Mapping[str, msgspec.Raw]) -> None:
    """Raises DuplicateKey. `fields`: `read_object(text)`."""
    # Compact JSON with every key once has exactly this length; a key more makes it longer.
    compact_bytes = 1 + 4 * len(fields) + sum(map(len, fields)) + sum(map(len, fields.values()))
    if len(text) != compact_bytes:
        value_spans(text, fields)


def with_fields(
    text: bytes, changes: Mapping[str, bytes], fields: Mapping[str, msgspec.Raw] | None = None
) -> bytes:
    """`text` (a JSON object without duplicate keys) with the values in `changes` (JSON) put in or added.

    Every other byte stays as it is; the same object when nothing changes. `fields`: `read_object(text)`,
    where the caller has it. Raises NotAnObject or DuplicateKey.
    """
    if fields is None:
        fields = read_object(text)
    changes = {key: value for key, value in changes.items() if bytes(fields.get(key, b"")) != value}
    if not changes:
        return text
    replaced = fields.keys() & changes.keys()
    spans = value_spans(text, fields, replaced) if replaced else {}
    pieces: list[bytes] = []
    position = 0
    for key in sorted(replaced, key=spans.__getitem__):
        start, end = spans[key]
        pieces += (text[position:start], changes[key])
        position = end
    added = b",".join(
        msgspec.json.encode(key) + b":" + value for key, value in changes.items() if key not in fields
    )
    if added:
        brace = text.rindex(b"}")
        pieces += (text[position:brace], b"," if fields else b"", added)
        position = brace
    pieces.append(text[position:])
    return b"".join(pieces)
