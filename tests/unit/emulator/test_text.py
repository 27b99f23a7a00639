import pytest

from services.emulator.text import PIECES, pieces_between, text_of, tokens_for_bytes
from services.meter.counting.encodings import encoding

ENCODINGS = {
    "ascii": ("o200k_base", "cl100k_base"),
    "emoji": ("o200k_base", "cl100k_base"),
    "chinese": ("o200k_base",),
    "u2028": ("o200k_base",),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in PIECES for name in ENCODINGS[kind]])
def test_every_prefix_of_a_text_has_as_many_tokens_as_pieces(kind: str, name: str) -> None:
    tokenizer = encoding(name)
    for tokens in range(2 * len(PIECES[kind]) + 2):
        assert len(tokenizer.encode_ordinary(text_of(kind, tokens))) == tokens


@pytest.mark.parametrize("kind", sorted(PIECES))
def test_the_pieces_join_to_the_text_and_go_on_without_end(kind: str) -> None:
    for tokens in (0, 1, 5, len(PIECES[kind]), 3 * len(PIECES[kind]) + 1, 5000):
        pieces = pieces_between(kind, 0, tokens)
        assert len(pieces) == tokens
        assert "".join(pieces) == text_of(kind, tokens)
        assert pieces_between(kind, 1, tokens) == pieces[1:]


@pytest.mark.parametrize("kind", sorted(PIECES))
@pytest.mark.parametrize("size_bytes", [1, 7, 100, 10_000])
def test_the_fewest_tokens_that_fill_a_line_are_found(kind: str, size_bytes: int) -> None:
    tokens = tokens_for_bytes(kind, size_bytes)
    assert len(text_of(kind, tokens).encode()) >= size_bytes
    assert len(text_of(kind, tokens - 1).encode()) <= size_bytes


def test_the_texts_hold_what_their_names_promise() -> None:
    assert text_of("ascii", 300).isascii()
    assert "\u2028" in text_of("u2028", 40)
    assert any(len(char.encode()) == 4 for char in text_of("emoji", 40))
    assert any("\u4e00" <= char <= "\u9fff" for char in text_of("chinese", 40))
