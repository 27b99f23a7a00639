from __future__ import annotations

from typing import Any

import pytest

from services.common.contracts.catalogue import Model, PriceVersion
from services.common.money import PriceVector
from services.ledger.catalogue import price_vector
from services.ledger.console.price_list import price_list, upcoming_price, usd_per_million
from services.ledger.console.texts import TEXTS, choose_language
from services.ledger.seed.seed import seed_models, seed_price

NOW_MS = 1_000_000
LIST = price_vector(input=30_000_000, output=60_000_000)


def model(model_id: str, price: PriceVector | None = LIST, **more: Any) -> Model:
    prices = () if price is None else (PriceVersion(version=1, starts_at_ms=0, price=price),)
    return Model(id=model_id, owner="openai", kind=more.pop("kind", "chat"), prices=prices, **more)


def test_snapshots_that_are_alike_share_a_row_and_others_do_not() -> None:
    dear = price_vector(input=31_000_000, output=60_000_000)
    (section,) = price_list([model("a"), model("a-2024-08-06"), model("a-2024-05-13", dear)], NOW_MS)
    assert [(row.model.id, row.snapshots) for row in section.rows] == [
        ("a", ("a-2024-08-06",)),
        ("a-2024-05-13", ()),
    ]


def test_a_model_without_a_price_in_force_is_not_shown() -> None:
    later = Model(id="b", owner="o", kind="chat", prices=(PriceVersion(1, NOW_MS + 1, LIST),))
    assert price_list([model("a", None), later], NOW_MS) == ()
    assert upcoming_price(later, NOW_MS) == ("1970-01-01 00:16", "$30.00 / $60.00")


def test_a_saving_is_never_overstated() -> None:
    for price, percent in (
        (price_vector(input=15_000_000, output=59_999_999), 0),
        (price_vector(input=3_000_000, output=6_000_000), 90),
        (price_vector(input=10_000_001, output=20_000_000), 66),
        (price_vector(input=31_000_000, output=1), 0),
        (LIST, 0),
    ):
        ((row,),) = (section.rows for section in price_list([model("a", price, list_price=LIST)], NOW_MS))
        assert row.saving_percent == percent


def test_classes_that_cost_the_same_as_plain_ones_are_not_repeated() -> None:
    price = price_vector(input=2_500_000, output=10_000_000, cached_input=1_250_000)
    ((row,),) = (section.rows for section in price_list([model("a", price)], NOW_MS))
    shown = [(shown.token_class, shown.ours, shown.list_price) for shown in row.prices]
    assert shown == [
        ("input", "$2.50", None),
        ("cached_input", "$1.25", None),
        ("output", "$10.00", None),
    ]


@pytest.mark.parametrize(
    ("micros", "text"), [(0, "$0.00"), (20_000, "$0.02"), (1, "$0.000001"), (1_234_500_000, "$1,234.50")]
)
def test_a_price_is_shown_exactly(micros: int, text: str) -> None:
    assert usd_per_million(micros) == text


def test_every_class_that_is_not_given_costs_what_the_plain_one_does() -> None:
    assert price_vector(input=1, output=2) == PriceVector(
        input=1, cached_input=1, cache_write=1, audio_input=1, output=2, reasoning=2, audio_output=2
    )


def test_both_languages_have_the_same_texts() -> None:
    assert set(TEXTS["en"]) == set(TEXTS["zh"])


@pytest.mark.parametrize(
    ("asked", "header", "language"),
    [
        (None, "", "en"),
        ("zh", "en", "zh"),
        ("fr", "zh-TW", "zh"),
        (None, "en;q=0.4, zh;q=0.5", "zh"),
        (None, "zh;q=0, en;q=0.1", "en"),
        (None, "zh;q=x,;;,,", "en"),
    ],
)
def test_the_language_is_what_was_asked_else_the_browsers(
    asked: str | None, header: str, language: str
) -> None:
    assert choose_language(asked, header) == language


def test_the_seed_has_the_usual_models_with_their_list_prices() -> None:
    seeded = {row.id: row for row in seed_models()}
    assert len(seeded) == len(seed_models())
    for model_id, context, output_max, listed in (
        ("gpt-4o", 128_000, 16_384, ("2.50", "10.00", "1.25")),
        ("gpt-4.1", 1_047_576, 32_768, ("2.00", "8.00", "0.50")),
        ("o3-mini", 200_000, 100_000, ("1.10", "4.40", "0.55")),
        ("gpt-3.5-turbo", 16_385, 4_096, ("0.50", "1.50", None)),
        ("gpt-3.5-turbo-16k", 16_385, 16_384, ("3.00", "4.00", None)),
        ("gpt-4", 8_192, 8_192, ("30.00", "60.00", None)),
        ("gpt-4-32k", 32_768, 32_768, ("60.00", "120.00", None)),
        ("gpt-4-1106-preview", 128_000, 4_096, ("10.00", "30.00", None)),
        ("gpt-4-vision-preview", 128_000, 4_096, ("10.00", "30.00", None)),
        ("text-embedding-3-small", 8_191, None, ("0.02", "0", None)),
    ):
        row = seeded[model_id]
        price = row.list_price
        assert (row.context_tokens, row.output_tokens_max) == (context, output_max)
        assert (price.input, price.output, price.cached_input) == listed
    for row in seeded.values():
        # Raises when a price is malformed or out of bounds.
        price_of = seed_price(row.list_price)
        assert (price_of == PriceVector()) == (row.kind == "moderation")
        assert row.hidden_reasoning == ("reasoning" in row.capabilities)
        assert row.kind in ("chat", "completion", "embedding", "moderation")
