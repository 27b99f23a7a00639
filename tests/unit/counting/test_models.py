from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.meter.counting.models import counting_for


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-4o", "o200k_base"),
        ("gpt-4o-2024-08-06", "o200k_base"),
        ("openai/gpt-4o", "o200k_base"),
        ("openai/gpt-4o-mini:free", "o200k_base"),
        ("ft:gpt-4o-mini-2024-07-18:acme::id", "o200k_base"),
        ("ft:gpt-4o:acme::id", "o200k_base"),
        ("chatgpt-4o-latest", "o200k_base"),
        ("gpt-4.1-nano-2025-04-14", "o200k_base"),
        ("o1-preview", "o200k_base"),
        ("o3-mini", "o200k_base"),
        ("o4-mini-2025-04-16", "o200k_base"),
        ("gpt-5", "o200k_base"),
        ("gpt-5.2-chat-latest", "o200k_base"),
        ("GPT-4-1106-preview", "cl100k_base"),
        ("gpt-4-32k", "cl100k_base"),
        ("gpt-4-turbo-2024-04-09", "cl100k_base"),
        ("ft:gpt-3.5-turbo-0125:acme::id", "cl100k_base"),
        ("azure/gpt-35-turbo-16k", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("text-embedding-ada-002", "cl100k_base"),
        ("davinci-002", "cl100k_base"),
        ("text-davinci-003", "p50k_base"),
        ("text-davinci-001", "r50k_base"),
        ("davinci:ft-acme", "r50k_base"),
        ("ada", "r50k_base"),
    ],
)
def test_a_model_id_in_any_spelling_finds_its_tokenizer(model: str, name: str) -> None:
    assert counting_for(model).encoding == name
    assert counting_for(model).known_tokenizer


@pytest.mark.parametrize(
    "model",
    [
        "claude-sonnet-4-5",
        "gemini-2.5-pro",
        "llama-3",
        "adapter-1",
        "o1x",
        "gpt-4ox",
        "gpt-6",
        "text-embedding-004",
        "",
    ],
)
def test_a_model_whose_tokenizer_is_not_published_is_not_taken_for_one_that_is(model: str) -> None:
    assert not counting_for(model).known_tokenizer


def test_a_mini_is_not_taken_for_its_big_sister() -> None:
    for big, small in (("gpt-4o", "gpt-4o-mini"), ("gpt-4.1", "gpt-4.1-mini"), ("gpt-5", "gpt-5-nano"),
                       ("gpt-5.4", "gpt-5.4-mini"), ("gpt-4.1-mini", "gpt-4.1-nano")):  # fmt: skip
        assert counting_for(big).images != counting_for(small).images


@given(st.text(max_size=400))
def test_any_id_at_all_finds_some_way_of_counting(model: str) -> None:
    assert counting_for(model).message_tokens >= 3
