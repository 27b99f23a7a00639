"""The seed, prices and what the meters hear of them."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from services.common.money import PriceVector
from services.ledger.app import LedgerApps, open_apps
from services.ledger.catalogue import load_catalogue, set_price
from services.ledger.seed.seed import seed_models
from services.ledger.settings import LedgerSettings
from tests.integration.ledger_catalogue.conftest import Api, Meter


async def test_an_empty_catalogue_is_seeded_and_reaches_the_meters(apps: LedgerApps, meter: Meter) -> None:
    catalogue = await load_catalogue(apps.ledger.database)
    assert [model.id for model in catalogue.models] == [model.id for model in seed_models()]
    by_id = {model.id: model for model in catalogue.models}
    mini = by_id["gpt-4o-mini"]
    assert mini.prices[0].price == PriceVector(
        input=150_000,
        cached_input=75_000,
        cache_write=150_000,
        audio_input=150_000,
        output=600_000,
        reasoning=600_000,
        audio_output=600_000,
    )
    assert mini.list_price == mini.prices[0].price
    assert by_id["o3-mini"].hidden_reasoning
    assert by_id["gpt-4-vision-preview"].output_tokens_max == 4096
    assert meter.catalogues[-1] == catalogue


async def test_a_second_start_seeds_nothing_and_keeps_changed_prices(
    settings: LedgerSettings, meter: Meter
) -> None:
    async with open_apps(settings, database_wait_s=0) as first:
        await set_price(
            first.ledger.database,
            model_id="gpt-4o",
            price=PriceVector(input=7, output=9),
            starts_at_ms=None,
            actor="test",
        )
        before = await load_catalogue(first.ledger.database)
    async with open_apps(settings, database_wait_s=0) as second:
        assert await load_catalogue(second.ledger.database) == before
    assert len(meter.catalogues) == 1


async def test_a_price_is_in_force_on_every_meter_when_the_call_returns(api: Api, meter: Meter) -> None:
    answer = await api.call(
        "PUT", "/models/gpt-4o/price", {"input": "1.25", "output": 5, "cached_input": "0.000001"}
    )
    assert answer["price_version"] == 2
    assert answer["price"]["input"] == 1_250_000
    assert answer["price"]["output"] == 5_000_000
    assert answer["price"]["cached_input"] == 1
    # What isn't given is never free.
    assert answer["price"]["cache_write"] == answer["price"]["audio_input"] == 1_250_000
    assert answer["price"]["reasoning"] == answer["price"]["audio_output"] == 5_000_000
    told = next(model for model in meter.catalogues[-1].models if model.id == "gpt-4o")
    version = told.price_at(answer["starts_at_ms"])
    assert version is not None
    assert version.version == 2
    assert [price.version for price in told.prices] == [1, 2]


async def test_a_number_in_json_is_no_float(api: Api) -> None:
    answer = await api.call("PUT", "/models/gpt-4o/price", b'{"input": 0.1, "output": 2.675}')
    assert (answer["price"]["input"], answer["price"]["output"]) == (100_000, 2_675_000)


async def test_a_price_of_an_unknown_model_makes_it_and_slashes_may_be_encoded_or_not(
    api: Api, meter: Meter
) -> None:
    for path in ("/models/org%2Fmy-model/price", "/models/org/my-model/price"):
        answer = await api.call("PUT", path, {"input": "1", "output": "2"})
        assert answer["model"] == "org/my-model"
    model = next(model for model in meter.catalogues[-1].models if model.id == "org/my-model")
    assert (model.kind, model.owner, len(model.prices)) == ("chat", "custom", 2)


async def test_a_future_price_waits_for_its_time_even_behind_a_newer_version(
    api: Api, apps: LedgerApps
) -> None:
    await api.call(
        "PUT", "/models/gpt-4o/price", {"input": 1, "output": 1, "starts_at": "2030-01-01T00:00:00Z"}
    )
    await api.call("PUT", "/models/gpt-4o/price", {"input": 3, "output": 3})
    catalogue = await load_catalogue(apps.ledger.database)
    model = next(model for model in catalogue.models if model.id == "gpt-4o")
    assert [price.version for price in model.prices] == [1, 3, 2]
    listed = await api.call("GET", "/models")
    shown = next(model for model in listed["models"] if model["id"] == "gpt-4o")
    assert shown["price_version"] == 3
    new_year_ms = 1_893_456_000_000
    assert model.prices[-1].starts_at_ms == new_year_ms
    current = model.price_at(new_year_ms)
    assert current is not None
    assert current.version == 2


REFUSED_PRICES: list[tuple[dict[str, object], str]] = [
    ({"input": "1"}, "output"),
    ({"input": "-1", "output": "1"}, "input"),
    ({"input": "1.0000001", "output": "1"}, "input"),
    ({"input": "4500.000001", "output": "1"}, "input"),
    ({"input": "1", "output": "NaN"}, "output"),
    ({"input": "1", "output": "1e999999999"}, "output"),
    ({"input": "1", "output": "1.00000000000000000000000000000001"}, "output"),
    ({"input": "1", "output": "1", "cached": "1"}, "cached"),
    ({"input": "1", "output": "1", "starts_at": "2020-01-01T00:00:00Z"}, "starts_at"),
    ({"input": "1", "output": "1", "starts_at": "2030-01-01T00:00:00"}, "starts_at"),
    ({"input": None, "output": "1"}, "input"),
]


async def test_a_price_that_cannot_be_is_refused_and_nothing_changes(api: Api, apps: LedgerApps) -> None:
    before = await load_catalogue(apps.ledger.database)
    for body, param in REFUSED_PRICES:
        answer = await api.call("PUT", "/models/gpt-4o/price", body, status=400)
        assert answer["error"]["param"] == param, body
    assert await load_catalogue(apps.ledger.database) == before


async def test_price_versions_are_immutable_in_the_database_itself(apps: LedgerApps) -> None:
    for statement in (
        "UPDATE price SET input_micros = 0 WHERE model_id = 'gpt-4o'",
        "DELETE FROM price WHERE model_id = 'gpt-4o'",
        "TRUNCATE price",
    ):
        with pytest.raises(asyncpg.RestrictViolationError):
            await apps.ledger.database.execute(statement)


async def test_prices_set_at_once_get_one_version_each(apps: LedgerApps) -> None:
    async def put(micros: int) -> int:
        version = await set_price(
            apps.ledger.database,
            model_id="gpt-4o",
            price=PriceVector(input=micros, output=micros),
            starts_at_ms=None,
            actor="test",
        )
        return version.version

    assert sorted(await asyncio.gather(*(put(n) for n in range(8)))) == list(range(2, 10))


async def test_a_meter_that_does_not_confirm_a_price_is_told_of(api: Api, meter: Meter) -> None:
    meter.failing = True
    answer = await api.call("PUT", "/models/gpt-4o/price", {"input": 1, "output": 1}, status=503)
    assert answer["error"]["code"] == "meter_not_confirmed"
    meter.failing = False
    assert (await api.call("PUT", "/models/gpt-4o/price", {"input": 1, "output": 1}))["price_version"] == 3


async def test_a_disabled_model_leaves_the_catalogue_and_comes_back(api: Api, meter: Meter) -> None:
    await api.call("PATCH", "/models/gpt-4o", {"enabled": False})
    assert "gpt-4o" not in {model.id for model in meter.catalogues[-1].models}
    await api.call("PATCH", "/models/gpt-4o", {"enabled": True})
    assert "gpt-4o" in {model.id for model in meter.catalogues[-1].models}
    await api.call("PATCH", "/models/nothing", {"enabled": True}, status=404)


async def test_a_price_change_is_in_the_audit_log_with_before_and_after(api: Api) -> None:
    await api.call("PUT", "/models/gpt-4/price", {"input": "20", "output": "40"})
    entry = (await api.call("GET", "/audit?target=gpt-4"))["entries"][0]
    assert (entry["actor"], entry["action"]) == ("token", "price.set")
    assert entry["detail"]["before"]["input_micros"] == 30_000_000
    assert entry["detail"]["after"]["input_micros"] == 20_000_000
