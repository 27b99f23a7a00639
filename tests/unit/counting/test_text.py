from __future__ import annotations

import random
import re
import sys

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from services.meter.counting import count_prefix, count_text, text_tokens_bound
from services.meter.counting import text as counting_text
from services.meter.counting.encodings import ENCODING_NAMES, EncodingName, encoding
from services.meter.counting.text import (
    FORCED_CUT_CHARS,
    FORCED_CUT_TOKENS,
    PIECE_CHARS,
    TAIL_CHARS_MAX,
    count_growing,
    count_tokens,
    last_safe_cut,
)

pytestmark = pytest.mark.slow

GROWING: tuple[EncodingName, ...] = ("cl100k_base", "o200k_base", "p50k_base")
# fmt: off
FRAGMENTS = (
    "hello", " world", "Don't", "it's", "I'LL", "we've", "'s", "'", "\u2019s", "'\u017f", "X'd",
    "HTTPServer", "camelCase", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", " \n", "\n ", "\xa0",
    "\u3000", "\u2028", "\x85", "\x1c", "\x0b", "1", "12", "123", "4567", "3.14", "x1y2", "\xb2", "\u0665",
    "\u2167", ".", ",", ";\n", "//", "/\n/", "!!!", "?!\r\n", "_", "__init__", "\u4f60\u597d",
    "\u4e16\u754c\uff0c", "\u3002", "\u3001\u6f22\u5b57", "\u304a\u8a95\u751f\u65e5", "\U0001f600",
    "\U0001f468\u200d\U0001f469", "\u2764\ufe0f", "\U0001f1e9\U0001f1ea", "e\u0301", "\u0301",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u02b0", "\u01c5",
    "\u0130", "<|endoftext|>", "{\"a\": 1}", "\u200b", "\U000e0001", "\u0378",
)
# fmt: on
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=25).map("".join)


def whole(name: EncodingName, text: str) -> int:
    return len(encoding(name).encode_ordinary(text))


@pytest.mark.parametrize("name", GROWING)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS, data=st.data())
def test_counts_of_a_growing_text_add_up_to_the_wholes(
    name: EncodingName, text: str, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
    total, kept = 0, ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        kept += text[start:end]
        tokens, consumed = count_growing(name, kept, final=False)
        assert 0 <= consumed <= len(kept)
        total, kept = total + tokens, kept[consumed:]
    tokens, consumed = count_growing(name, kept, final=True)
    assert consumed == len(kept)
    assert total + tokens == whole(name, text)


@pytest.mark.parametrize("name", ENCODING_NAMES)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_every_safe_cut_keeps_the_count(name: EncodingName, text: str) -> None:
    for match in counting_text._SAFE_CUT.finditer(text):
        cut = match.end()
        assert whole(name, text[:cut]) + whole(name, text[cut:]) == whole(name, text), (text, cut)


@pytest.mark.parametrize("name", GROWING)
def test_every_pair_of_fragments_may_be_cut_where_the_rule_says(name: EncodingName) -> None:
    for first in FRAGMENTS:
        for second in FRAGMENTS:
            for text in (first + second + " tail", "lead " + first + second, first + second + first):
                cut = last_safe_cut(text)
                assert whole(name, text[:cut]) + whole(name, text[cut:]) == whole(name, text), (text, cut)


def test_the_characters_of_the_cutting_rule_are_what_the_tokenizers_take_them_for() -> None:
    """Python's classes against those of tiktoken's regex engine, over all of Unicode."""
    everything = "".join(chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)

    def members(pattern: str) -> set[str]:
        matcher = tiktoken.Encoding(
            "classes", pat_str=pattern, mergeable_ranks={bytes([n]): n for n in range(256)}, special_tokens={}
        )
        return set(matcher.decode(matcher.encode_ordinary(everything)))

    letters_digits, spaces = members(r"[\p{L}\p{N}]"), members(r"\s")
    letters_digits_marks = letters_digits | members(r"\p{M}")
    blanks = set(re.findall(f"[{counting_text._BLANKS}]", everything))
    punctuation = set(re.findall(f"[{counting_text._PUNCTUATION}]", everything))
    assert blanks == spaces - {"\r", "\n"}
    assert set(re.findall(r"\s", everything)) >= spaces
    assert set(re.findall(r"[^\W_]", everything)) <= letters_digits
    assert not punctuation & (letters_digits_marks | spaces | {"'"})


def test_of_usual_text_only_a_word_is_left_uncounted() -> None:
    english = "It isn't far, she said, and walked on.\n\n" * 30
    chinese = (
        "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u6563\u6b65\u5427\u3002\u4f60\u89c9\u5f97\u600e\u4e48\u6837\uff1f"
        * 30
    )
    code = "def f(x):\n    return [y for y in x if y > 10]\n\n\n" * 30
    for text in (english, chinese, code):
        for end in range(100, len(text), 7):
            _, consumed = count_prefix("gpt-4o", text[:end], final=False)
            assert end - consumed <= 32


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4", "claude-sonnet-4"])
def test_a_text_without_an_end_of_a_word_is_counted_when_its_tail_grows_too_long(model: str) -> None:
    emoji = "\U0001f600" * TAIL_CHARS_MAX
    assert count_prefix(model, emoji, final=False) == (0, 0)
    tokens, consumed = count_prefix(model, emoji + "\U0001f600", final=False)
    assert consumed == TAIL_CHARS_MAX + 1
    assert 0 <= tokens - count_text(model, emoji + "\U0001f600") <= FORCED_CUT_TOKENS


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base"])
def test_a_long_text_counts_in_pieces_what_it_counts_whole(name: EncodingName) -> None:
    rng = random.Random(11)
    for _ in range(6):
        text = "".join(rng.choice(FRAGMENTS) for _ in range(PIECE_CHARS))
        assert count_tokens(name, text) == whole(name, text)
    for unit in ("\U0001f600", "7", "\u4f60", "<|endoftext|>", "\ud800", "\n"):
        unbroken = "start " + unit * (3 * PIECE_CHARS // len(unit)) + " end " + unit * PIECE_CHARS
        assert count_tokens(name, unbroken) == whole(name, unbroken)


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base", "r50k_base"])
def test_a_million_blanks_neither_break_nor_are_counted_short(name: EncodingName) -> None:
    # That many are under tiktoken's limit: the truth is known there, and a cut is made all the same.
    blanks = " " * 300_000 + "x"
    cuts = -(-len(blanks) // FORCED_CUT_CHARS) - 1
    truth = whole(name, blanks)
    assert truth <= count_tokens(name, blanks) <= truth + cuts * (FORCED_CUT_TOKENS + 5)
    assert count_tokens(name, " " * 1_100_000) > 1_100_000 // 142


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base"])
@settings(max_examples=120, deadline=None)
@given(unit=st.text(min_size=1, max_size=6), length=st.integers(2, 400), data=st.data())
def test_a_cut_anywhere_hides_fewer_tokens_than_a_forced_cut_adds(
    name: EncodingName, unit: str, length: int, data: st.DataObject
) -> None:
    text = (unit * length)[:length]
    cut = data.draw(st.integers(1, length - 1))
    hidden = whole(name, text) - whole(name, text[:cut]) - whole(name, text[cut:])
    assert hidden < FORCED_CUT_TOKENS


def test_a_text_as_long_as_a_piece_may_be_is_not_cut() -> None:
    for length in (FORCED_CUT_CHARS - 1, FORCED_CUT_CHARS):
        assert count_tokens("r50k_base", "7" * length) == whole("r50k_base", "7" * length)


def test_special_tokens_in_a_text_are_ordinary_text() -> None:
    assert count_text("gpt-4o", "<|endoftext|>") == 7
    assert count_text("gpt-4o", "a<|im_start|>b") > 3


@settings(max_examples=120, deadline=None)
@given(text=st.text(alphabet=st.characters(), max_size=40))
def test_no_text_has_more_tokens_than_bytes(text: str) -> None:
    for model in ("gpt-4o", "gpt-4", "text-davinci-003", "davinci"):
        assert text_tokens_bound(model, text) <= len(text.encode("utf-8", "surrogatepass"))
    assert text_tokens_bound("claude-opus-4", text) == len(text.encode("utf-8", "surrogatepass"))


def test_a_lone_surrogate_is_counted_as_the_character_that_replaces_it() -> None:
    assert count_text("gpt-4o", "a\ud800b") == count_text("gpt-4o", "a\ufffdb")
