from __future__ import annotations

import base64
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.meter.counting.image_headers import size_of_data_url
from services.meter.counting.images import patch_count, tile_count
from services.meter.counting.models import counting_for
from tests.unit.counting.billed import png_address

MODELS = [
    "gpt-4o",
    "gpt-4o-mini",
    "gpt-4.1-mini",
    "o3",
    "o4-mini",
    "gpt-5",
    "gpt-5.4",
    "gpt-5.4-nano",
    "claude-3",
    "gemini-2",
    "x",
]
SIDES = st.integers(1, 20_000)


def address(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def jpeg(width: int, height: int, before: bytes) -> bytes:
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)
    return b"\xff\xd8" + before + frame + bytes(200)


def segment(marker: int, length: int) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", length + 2) + b"\xc0" * length


@pytest.mark.parametrize("before", [
    b"",
    segment(0xE0, 14),
    segment(0xE1, 65_533) + segment(0xE2, 65_000) + segment(0xDB, 65) + segment(0xC4, 30),
    segment(0xE0, 15) + b"\xff\xff\xff" + segment(0xFE, 1)[1:],
])  # fmt: skip
def test_a_jpegs_size_is_found_behind_its_other_segments(before: bytes) -> None:
    assert size_of_data_url(address(jpeg(4032, 3024, before), "jpeg")) == (4032, 3024)


def test_png_gif_and_webp_tell_their_size() -> None:
    assert size_of_data_url(png_address(1126, 488)) == (1126, 488)
    assert size_of_data_url(address(b"GIF89a" + struct.pack("<HH", 320, 200) + bytes(20), "gif")) == (
        320,
        200,
    )
    lossy = (
        b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\x30\x01\x00\x9d\x01\x2a"
        + struct.pack("<HH", 550 | 0x4000, 368)
        + bytes(9)
    )
    assert size_of_data_url(address(lossy, "webp")) == (550, 368)
    bits = (386 - 1) | (395 - 1) << 14
    lossless = b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f" + struct.pack("<I", bits) + bytes(9)
    assert size_of_data_url(address(lossless, "webp")) == (386, 395)
    canvas = (1999).to_bytes(3, "little") + (999).to_bytes(3, "little")
    extended = b"RIFF\0\0\0\0WEBPVP8X\0\0\0\0\0\0\0\0" + canvas + bytes(9)
    assert size_of_data_url(address(extended, "webp")) == (2000, 1000)


@pytest.mark.parametrize("bad", [
    "https://example.com/a.png", "data:image/png,abc", "data:image/png;base64,", "data:image/png;base64,????",
    "data:;base64,iVBORw0KGgo=", address(b"\x89PNG\r\n\x1a\n" + bytes(40), "png"),
    address(b"\xff\xd8\xff", "jpeg"),
    address(b"\xff\xd8" + segment(0xE0, 4) * 600, "jpeg"), png_address(0, 5), "", "data:",
])  # fmt: skip
def test_an_image_that_tells_no_size_counts_as_the_worst_one(bad: str) -> None:
    assert size_of_data_url(bad) is None
    for model in MODELS:
        formula = counting_for(model).images
        assert formula.tokens_max(None, "high") == formula.worst_tokens


@given(
    st.binary(max_size=80),
    st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"GIF89a"]),
)
def test_no_image_header_raises(data: bytes, head: bytes) -> None:
    size = size_of_data_url(address(head + data, "png"))
    assert size is None or min(size) > 0


@settings(max_examples=300)
@given(width=SIDES, height=SIDES, detail=st.sampled_from(["low", "high", "auto", "original", ""]))
def test_no_image_is_held_short_or_costs_more_than_the_worst_one(
    width: int, height: int, detail: str
) -> None:
    for model in MODELS:
        formula = counting_for(model).images
        estimate, held = formula.tokens((width, height), detail), formula.tokens_max((width, height), detail)
        assert 0 < estimate <= held <= formula.worst_tokens


@given(width=SIDES, height=SIDES)
def test_tiles_and_patches_stay_within_their_limits_and_do_not_depend_on_orientation(
    width: int, height: int
) -> None:
    assert 1 <= tile_count((width, height)) <= 8
    assert tile_count((width, height)) == tile_count((height, width))
    assert 1 <= patch_count((width, height)) <= 1536
    assert patch_count((width, height)) == patch_count((height, width))
