"""Parts of a message's content: text, images, audio, files. Nothing is fetched; only headers are decoded."""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64
from typing import Any

from services.meter.counting.image_headers import size_of_data_url
from services.meter.counting.json_text import compact_json
from services.meter.counting.tally import Tally

# Of OpenAI's audio models; Gemini's 32 are covered by the factor below.
_AUDIO_TOKENS_PER_SECOND = 10
_AUDIO_UNKNOWN_FACTOR = 4
_AUDIO_MARGIN_TOKENS = 16


def count_part(tally: Tally, part: Any) -> None:
    """Add one part of any shape."""
    if isinstance(part, str):
        tally.text(part)
        tally.estimated()
        return
    if not isinstance(part, dict):
        return
    kind = part.get("type")
    kind = kind if isinstance(kind, str) else ""
    if kind == "text" or (kind in ("refusal", "input_text", "output_text", "thinking", "")):
        _count_texts(tally, part, kind)
    elif "image" in kind:
        _count_image(tally, part)
    elif kind == "input_audio":
        _count_audio(tally, part.get("input_audio"))
    elif is_out_of_sight(kind):
        tally.out_of_sight()
        tally.add(0, tally.text_tokens_max(_without_payload(part)))
    else:
        tally.estimated()
        tally.text(compact_json(part))


def is_image_part(part: Any) -> bool:
    """What `InputFacts.image_count` must count at least."""
    return isinstance(part, dict) and isinstance(part.get("type"), str) and "image" in part["type"]


def is_out_of_sight(kind: str) -> bool:
    """Parts of this type, images and `input_audio` apart, are what `InputFacts.file_count` must count."""
    return any(word in kind for word in ("file", "document", "video", "audio"))


def _count_texts(tally: Tally, part: dict[str, Any], kind: str) -> None:
    if kind != "text":
        tally.estimated()
    for key in ("text", "refusal", "thinking"):
        text = part.get(key)
        if isinstance(text, str):
            tally.text(text)


def _count_image(tally: Tally, part: dict[str, Any]) -> None:
    tally.estimated()
    image = part.get("image_url")
    address = image.get("url") if isinstance(image, dict) else image
    detail = image.get("detail") if isinstance(image, dict) else part.get("detail")
    size = size_of_data_url(address) if isinstance(address, str) else None
    detail = detail if isinstance(detail, str) else "auto"
    formula = tally.rules.images
    tally.add(formula.tokens(size, detail), formula.tokens_max(size, detail))


def _count_audio(tally: Tally, audio: Any) -> None:
    """10 tokens a second. PCM WAV says how many seconds it has. Else: estimated at 128 kbit/s, held at
    one token per 8 bytes, 80 times as much as the slowest MP3 (8 kbit/s) needs at 10 tokens a second."""
    tally.estimated()
    data = audio.get("data") if isinstance(audio, dict) else None
    if not isinstance(data, str):
        return
    audio_bytes = len(data) * 3 // 4
    factor = 1 if tally.rules.known_tokenizer else _AUDIO_UNKNOWN_FACTOR
    bytes_per_second = _wav_bytes_per_second(data)
    if bytes_per_second:
        tokens = -(-audio_bytes * _AUDIO_TOKENS_PER_SECOND // bytes_per_second)
        held = tokens * factor + _AUDIO_MARGIN_TOKENS
    else:
        tokens = -(-audio_bytes * _AUDIO_TOKENS_PER_SECOND // 16_000)
        held = -(-audio_bytes // 8) + _AUDIO_MARGIN_TOKENS
    tally.add(tokens, held)


def _wav_bytes_per_second(data: str) -> int:
    """0 unless the data starts with the plain 44-byte header of a PCM WAV at 4 kB/s or more."""
    try:
        head = a2b_base64(data[:48])
    except (Base64Error, ValueError):
        return 0
    if head[:4] != b"RIFF" or head[8:16] != b"WAVEfmt " or head[20:22] != b"\x01\x00":
        return 0
    channels, rate = int.from_bytes(head[22:24], "little"), int.from_bytes(head[24:28], "little")
    bytes_per_second = channels * rate * (int.from_bytes(head[34:36], "little") // 8)
    return bytes_per_second if bytes_per_second >= 4_000 else 0


def _without_payload(part: dict[str, Any]) -> str:
    shown = {
        key: {name: value for name, value in inner.items() if name not in ("file_data", "data")}
        if isinstance(inner, dict)
        else inner
        for key, inner in part.items()
    }
    return compact_json(shown)
