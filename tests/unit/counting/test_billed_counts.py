from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.meter.counting import input_tokens_bound
from services.meter.counting.encodings import encoding
from tests.unit.counting.billed import DATA, Case, chat_cases, formula_images
from tests.unit.counting.facts import facts_of
from tests.unit.counting.table import all_cases, document_tables, tables


def _ids(case: Case) -> str:
    return case.id


@pytest.mark.parametrize("case", [c for c in chat_cases() if c.kind == "text"], ids=_ids)
def test_a_text_message_counts_exactly_what_was_billed(case: Case) -> None:
    assert case.counted.tokens == case.billed_tokens
    assert case.counted.hold_tokens == case.billed_tokens
    assert case.counted.exact


@pytest.mark.parametrize("case", [c for c in chat_cases() if c.kind != "text"], ids=_ids)
def test_functions_tools_and_images_count_exactly_what_was_billed(case: Case) -> None:
    assert case.counted.tokens == case.billed_tokens
    assert not case.counted.exact


@pytest.mark.parametrize("case", all_cases(), ids=_ids)
def test_neither_the_hold_nor_the_bound_is_below_what_was_billed(case: Case) -> None:
    assert case.counted.hold_tokens >= case.billed_tokens
    facts = facts_of(case.request, msgspec.json.encode(case.request))
    assert input_tokens_bound(case.model, facts) >= case.counted.hold_tokens


@pytest.mark.parametrize("case", DATA["string_cases"], ids=lambda c: f"{c['encoding']}-{c['text']}")
def test_a_string_has_the_published_token_ids(case: dict[str, Any]) -> None:
    assert encoding(case["encoding"]).encode_ordinary(case["text"]) == case["ids"]


@pytest.mark.parametrize(("what", "published", "ours"), formula_images())
def test_an_image_costs_what_the_formulas_worked_example_says(what: str, published: int, ours: int) -> None:
    assert ours == published, what


def test_the_documents_table_is_true() -> None:
    assert document_tables() == tables(), "run: python -m tests.unit.counting.table"
