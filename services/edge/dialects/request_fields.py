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

_INT: Final = msgspec.json.Decoder(int)
_STR: Final = msgspec.json.Decoder(str)
_BOOL: Final = msgspec.json.Decoder(bool)
FAULTS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


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
        except FAULTS:
            raise bad(name, f"`{name}` must be a string.") from None
        if not value or len(value) > chars_max:
            raise bad(name, f"`{name}` must have 1 to {chars_max} characters.")
        return value

    def flag(self, name: str) -> bool:
        raw = self.raw(name)
        if raw is None:
            return False
        try:
            return _BOOL.decode(raw)
        except FAULTS:
            raise bad(name, f"`{name}` must be true or false.") from None

    def number(self, name: str, *, minimum: int, maximum: int) -> int | None:
        raw = self.raw(name)
        if raw is None:
            return None
        try:
            value = _INT.decode(raw)
        except FAULTS:
            raise bad(name, f"`{name}` must be a whole number.") from None
        if not minimum <= value <= maximum:
            raise bad(name, f"`{name}` must be between {minimum} and {maximum}.")
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
            raise bad("stream_options", "`stream_options` must be an object.") from None
        try:
            return Fields(options).flag("include_usage")
        except BadRequest:
            name = "stream_options.include_usage"
            raise bad(name, f"`{name}` must be true or false.") from None


def read_fields(body: bytes, known: frozenset[str]) -> Fields:
    """The body's top-level fields. `known`: those that the gateway reads. Raises BadRequest."""
    try:
        if not body.isascii():
            body.decode()
        fields = read_object(body)
        check_no_duplicates(body, fields)
    except UnicodeDecodeError:
        raise bad(None, "The request body is not valid UTF-8.") from None
    except DuplicateKey as error:
        raise bad(
            str(error) or None, "The request body has the same key twice. Please send it once."
        ) from None
    except NotAnObject:
        raise bad(None, "The request body must be one valid JSON object.") from None
    for key in fields:
        if key not in known and key.casefold() in known:
            raise bad(key[:64], f"Unknown field. Please write it `{key.casefold()}`.")
    return Fields(fields)


def read_model(fields: Fields, *, default: str | None = None) -> str:
    model = fields.text("model", chars_max=MODEL_CHARS_MAX) or default
    if model is None:
        raise bad("model", "`model` is required. GET /v1/models lists what you may use.")
    return model


def has_tools(fields: Fields) -> bool:
    """Whether definitions go along that the model sees as text of its own format."""
    if any(fields.raw(name) not in (None, b"[]") for name in ("tools", "functions")):
        return True
    return b"schema" in (fields.raw("response_format") or b"")


def bad(param: str | None, message: str) -> BadRequest:
    return BadRequest(message, param=param)
