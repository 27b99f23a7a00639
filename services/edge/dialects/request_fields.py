"""Reads a request body's fields one by one; every fault names its field.

What the gateway reads decides what is held, so a body that an upstream could read in another way is refused:
a key that occurs twice, or one that differs from a known one by case only (Go's JSON ignores case).
"""

from __future__ import annotations

from typing import Final

import msgspec

from services.common.errors import BadRequest
from services.edge.dialects.json_object import (
    DuplicateKey,
    NotAnObject,
    check_no_duplicates,
    read_object,
)

MODEL_CHARS_MAX: Final = 256
CHOICES_MAX: Final = 128
OUTPUT_TOKENS_MAX: Final = 2**31 - 1
_NULL: Final = b"null"
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text", "refusal", "thinking", "reasoning"})
_MEDIA_PARTS: Final = frozenset({"image_url", "input_image", "image", "input_audio", "file", "input_file"})


class _Message(msgspec.Struct, gc=False):
    content: msgspec.Raw = msgspec.Raw(_NULL)


class _Part(msgspec.Struct, gc=False):
    type: str = ""


_INT: Final = msgspec.json.Decoder(int)
_STR: Final = msgspec.json.Decoder(str)
_BOOL: Final = msgspec.json.Decoder(bool)
_MESSAGES: Final = msgspec.json.Decoder(list[_Message])
_PARTS: Final = msgspec.json.Decoder(list[_Part])
_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_FAULTS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Fields:
    """A request body's top-level fields. A field that is null counts as absent."""

    __slots__ = ("_raw",)

    def __init__(self, raw: dict[str, msgspec.Raw]) -> None:
        self._raw = raw

    def raw(self, name: str) -> bytes | None:
        """The field's JSON, None when it is absent or null."""
        raw = self._raw.get(name)
        if raw is None:
            return None
        value = bytes(raw)
        return None if value == _NULL else value

    def text(self, name: str, *, chars_max: int) -> str | None:
        raw = self.raw(name)
        if raw is None:
            return None
        try:
            value = _STR.decode(raw)
        except _FAULTS:
            raise _bad(name, f"`{name}` must be a string.") from None
        if not value or len(value) > chars_max:
            raise _bad(name, f"`{name}` must have 1 to {chars_max} characters.")
        return value

    def flag(self, name: str) -> bool:
        raw = self.raw(name)
        if raw is None:
            return False
        try:
            return _BOOL.decode(raw)
        except _FAULTS:
            raise _bad(name, f"`{name}` must be true or false.") from None

    def number(self, name: str, *, minimum: int, maximum: int) -> int | None:
        raw = self.raw(name)
        if raw is None:
            return None
        try:
            value = _INT.decode(raw)
        except _FAULTS:
            raise _bad(name, f"`{name}` must be a whole number.") from None
        if not minimum <= value <= maximum:
            raise _bad(name, f"`{name}` must be between {minimum} and {maximum}.")
        return value

    def include_usage(self) -> bool:
        """`stream_options.include_usage`."""
        raw = self.raw("stream_options")
        if raw is None:
            return False
        try:
            options = read_object(raw)
            check_no_duplicates(raw, options)
        except (NotAnObject, DuplicateKey):
            raise _bad("stream_options", "`stream_options` must be an object.") from None
        try:
            return Fields(options).flag("include_usage")
        except BadRequest:
            name = "stream_options.include_usage"
            raise _bad(name, f"`{name}` must be true or false.") from None


def read_fields(body: bytes, known: frozenset[str]) -> Fields:
    """The body's top-level fields. `known`: those that the gateway reads. Raises BadRequest."""
    try:
        if not body.isascii():
            body.decode()
        fields = read_object(body)
        check_no_duplicates(body, fields)
    except UnicodeDecodeError:
        raise _bad(None, "The request body is not valid UTF-8.") from None
    except DuplicateKey as error:
        raise _bad(
            str(error) or None, "The request body has the same key twice. Please send it once."
        ) from None
    except NotAnObject:
        raise _bad(None, "The request body must be one valid JSON object.") from None
    for key in fields:
        if key not in known and key.casefold() in known:
            raise _bad(key[:64], f"Unknown field. Please write it `{key.casefold()}`.")
    return Fields(fields)


def read_model(fields: Fields, *, default: str | None = None) -> str:
    model = fields.text("model", chars_max=MODEL_CHARS_MAX) or default
    if model is None:
        raise _bad("model", "`model` is required. GET /v1/models lists what you may use.")
    return model


def read_messages(fields: Fields) -> tuple[int, int]:
    """How many messages and how many images, files and audio parts they hold (at most)."""
    raw = fields.raw("messages")
    if raw is None:
        raise _bad("messages", "`messages` is required: a list of messages.")
    try:
        messages = _MESSAGES.decode(raw)
    except _FAULTS:
        raise _bad("messages", "`messages` must be a list of objects.") from None
    if not messages:
        raise _bad("messages", "`messages` must not be empty.")
    return len(messages), sum(_media_parts(bytes(message.content)) for message in messages)


def _media_parts(content: bytes) -> int:
    if content[:1] == b'"' or content == _NULL:
        return 0
    try:
        types = [part.type for part in _PARTS.decode(content)]
    except _FAULTS:
        types = [""]
    if _TEXT_PARTS.issuperset(types):
        return 0
    if (_TEXT_PARTS | _MEDIA_PARTS).issuperset(types):
        return sum(part_type in _MEDIA_PARTS for part_type in types)
    # A shape we don't know: no more media in it than objects.
    return max(1, content.count(b"{"))


def has_tools(fields: Fields) -> bool:
    """Whether definitions go along that the model sees as text of its own format."""
    if any(fields.raw(name) not in (None, b"[]") for name in ("tools", "functions")):
        return True
    return b"schema" in (fields.raw("response_format") or b"")


def read_inputs(fields: Fields, name: str) -> tuple[int, int]:
    """How many texts (or token lists) the field holds, and how many images (at most)."""
    raw = fields.raw(name)
    if raw is None:
        raise _bad(name, f"`{name}` is required: a string or a list.")
    if raw[:1] == b'"':
        return 1, 0
    try:
        items = _ITEMS.decode(raw)
    except _FAULTS:
        raise _bad(name, f"`{name}` must be a string or a list.") from None
    if not items:
        raise _bad(name, f"`{name}` must not be empty.")
    starts = {bytes(item)[:1] for item in items}
    if b"{" in starts:
        return len(items), _media_parts(raw)
    # A list of token numbers is one text.
    return (len(items), 0) if starts & {b'"', b"["} else (1, 0)


def _bad(param: str | None, message: str) -> BadRequest:
    return BadRequest(message, param=param)
