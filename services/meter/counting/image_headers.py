"""Width and height of an image in a `data:` URL, from its header, decoding a few bytes only.

PNG, JPEG, GIF and WebP. Anything else, anything damaged: None, and the caller counts the worst image.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64

from services.meter.counting.images import Size

_JPEG_SEGMENTS_MAX = 512
# Start-of-frame markers carry the size; C4, C8 and CC look like them and are not.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})


def size_of_data_url(address: str) -> Size | None:
    """Pixels of the image in `data:image/...;base64,...`; None for any other address."""
    comma = address.find(",", 0, 256)
    if comma < 0 or address[:5].lower() != "data:" or not address[:comma].lower().endswith(";base64"):
        return None
    payload = _Base64Bytes(address, comma + 1)
    head = payload.read(0, 32)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _size(head[16:20], head[20:24], "big") if head[12:16] == b"IHDR" else None
    if head.startswith((b"GIF87a", b"GIF89a")):
        return _size(head[6:8], head[8:10], "little")
    if head.startswith(b"\xff\xd8"):
        return _jpeg_size(payload)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp_size(head)
    return None


class _Base64Bytes:
    """Random access to the bytes behind a base64 text."""

    def __init__(self, text: str, start: int) -> None:
        self._text = text
        self._start = start

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer, or none, at the end or where the text isn't base64."""
        first = self._start + offset // 3 * 4
        quads = self._text[first : first + (length + 2 + 2) // 3 * 4 + 4]
        quads = quads[: len(quads) // 4 * 4]
        try:
            decoded = a2b_base64(quads, strict_mode=True) if quads else b""
        except (Base64Error, ValueError):
            return b""
        skipped = offset % 3
        return decoded[skipped : skipped + length]


def _jpeg_size(payload: _Base64Bytes) -> Size | None:
    offset = 2
    for _ in range(_JPEG_SEGMENTS_MAX):
        head = payload.read(offset, 9)
        if len(head) < 4 or head[0] != 0xFF:
            return None
        marker = head[1]
        if marker == 0xFF:
            offset += 1
        elif marker in _JPEG_BARE:
            offset += 2
        elif marker in _JPEG_FRAMES:
            return _size(head[7:9], head[5:7], "big")
        else:
            offset += 2 + int.from_bytes(head[2:4], "big")
    return None


def _webp_size(head: bytes) -> Size | None:
    if len(head) < 30:
        return None
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
        return _size((width & 0x3FFF).to_bytes(2, "big"), (height & 0x3FFF).to_bytes(2, "big"), "big")
    return None


def _size(width: bytes, height: bytes, order: str) -> Size | None:
    if len(width) < 2 or len(height) < 2:
        return None
    pixels = (
        int.from_bytes(width, "big" if order == "big" else "little"),
        int.from_bytes(height, "big" if order == "big" else "little"),
    )
    return pixels if min(pixels) > 0 else None
