"""What a request's input is made of, as far as its size in bytes doesn't say what it costs: messages, images,
files. The parts themselves stay raw; a part in a shape we don't know counts as the worst it could be.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from services.edge.dialects.request_fields import FAULTS, Fields, bad

_NULL: Final = b"null"
_NO_RAW: Final = msgspec.Raw(_NULL)
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text", "refusal", "thinking", "reasoning"})
_FILE_WORDS: Final = ("file", "document", "video", "audio")
_FILE_BYTES: Final = (*(word.encode() for word in _FILE_WORDS), b"\\u00")
_DATA_URL: Final = re.compile(rb'"data:image\\?/[A-Za-z0-9.+-]{1,64};base64,')


class Media(msgspec.Struct, frozen=True, gc=False):
    """As in `InputFacts`: images and files at least, bytes of image data at most."""

    image_count: int = 0
    file_count: int = 0
    image_bytes: int = 0

    def plus(self, other: Media) -> Media:
        return Media(
            self.image_count + other.image_count,
            self.file_count + other.file_count,
            self.image_bytes + other.image_bytes,
        )


class _Message(msgspec.Struct, gc=False):
    content: msgspec.Raw = _NO_RAW
    audio: msgspec.Raw = _NO_RAW


class _Part(msgspec.Struct, gc=False):
    type: str = ""
    image_url: msgspec.Raw = _NO_RAW


class _ImageUrl(msgspec.Struct, gc=False):
    url: msgspec.Raw = _NO_RAW


_MESSAGES: Final = msgspec.json.Decoder(list[_Message])
_PARTS: Final = msgspec.json.Decoder(list[_Part])
_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_IMAGE_URL: Final = msgspec.json.Decoder(_ImageUrl)
_NO_MEDIA: Final = Media()
_ONE_FILE: Final = Media(file_count=1)


def read_messages(fields: Fields) -> tuple[int, Media]:
    """How many messages, and what they hold besides text. Raises BadRequest."""
    raw = fields.raw("messages")
    if raw is None:
        raise bad("messages", "`messages` is required: a list of messages.")
    try:
        messages = _MESSAGES.decode(raw)
    except FAULTS:
        raise bad("messages", "`messages` must be a list of objects.") from None
    if not messages:
        raise bad("messages", "`messages` must not be empty.")
    media = _NO_MEDIA
    for message in messages:
        content = bytes(message.content)
        if content[:1] != b'"' and content != _NULL:
            media = media.plus(media_of(content))
        if bytes(message.audio) != _NULL:
            # Earlier audio, by its id.
            media = media.plus(_ONE_FILE)
    return len(messages), media


def read_inputs(fields: Fields, name: str) -> tuple[int, Media]:
    """How many texts (or token lists) the field holds, and what besides text. Raises BadRequest."""
    raw = fields.raw(name)
    if raw is None:
        raise bad(name, f"`{name}` is required: a string or a list.")
    if raw[:1] == b'"':
        return 1, _NO_MEDIA
    try:
        items = _ITEMS.decode(raw)
    except FAULTS:
        raise bad(name, f"`{name}` must be a string or a list.") from None
    if not items:
        raise bad(name, f"`{name}` must not be empty.")
    starts = {bytes(item)[:1] for item in items}
    if b"{" in starts:
        return len(items), media_of(raw)
    # A list of token numbers is one text.
    return (len(items) if starts & {b'"', b"["} else 1), _NO_MEDIA


def media_of(content: bytes) -> Media:
    """Of a list of parts (or something else: then the worst)."""
    try:
        parts = _PARTS.decode(content)
    except FAULTS:
        return _unknown(content)
    if _TEXT_PARTS.issuperset([part.type for part in parts]):
        return _NO_MEDIA
    media = _NO_MEDIA
    for at, part in enumerate(parts):
        kind = part.type
        if kind in _TEXT_PARTS or kind == "input_audio":
            # Audio inside the body: its bytes bound its tokens.
            continue
        if "image" in kind:
            media = media.plus(Media(image_count=1, image_bytes=_image_bytes(part.image_url)))
        elif any(word in kind for word in _FILE_WORDS):
            media = media.plus(_ONE_FILE)
        else:
            media = media.plus(_unknown(bytes(_ITEMS.decode(content)[at])))
    return media


def _image_bytes(image_url: msgspec.Raw) -> int:
    """Bytes of base64 data in a part's `image_url`: an address, or an object with one as `url`."""
    address = image_url
    if bytes(memoryview(image_url)[:1]) == b"{":
        try:
            address = _IMAGE_URL.decode(image_url).url
        except FAULTS:
            return 0
    found = _DATA_URL.match(memoryview(address))
    return len(address) - found.end() - 1 if found is not None else 0


def _unknown(raw: bytes) -> Media:
    """No more images in it than objects."""
    return Media(max(1, raw.count(b"{")), int(any(word in raw for word in _FILE_BYTES)))
