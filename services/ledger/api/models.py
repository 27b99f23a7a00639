"""Models and prices."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from services.common.contracts.catalogue import Model, PriceVersion
from services.common.errors import BadRequest
from services.ledger import catalogue
from services.ledger.api.amounts import micros, optional_micros
from services.ledger.api.caller import OWNERS
from services.ledger.api.endpoint import Call, Nothing, endpoint


class SetPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """USD per 1M tokens, at most six decimals. A class that isn't given costs what plain input or output
    costs. `starts_at`: RFC 3339 with an offset; now when it isn't given."""

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None
    cache_write: Decimal | None = None
    audio_input: Decimal | None = None
    audio_output: Decimal | None = None
    reasoning: Decimal | None = None
    starts_at: datetime | None = None


class PriceSet(msgspec.Struct, frozen=True):
    """In force (from `starts_at_ms`) on every meter. Prices: micro-USD per 1M tokens."""

    model: str
    price_version: int
    starts_at_ms: int
    price: dict[str, int]


class ModelView(msgspec.Struct, frozen=True):
    """`price`: the version in force, None: the model can't be used. `prices`: with the coming ones.
    All prices in micro-USD per 1M tokens."""

    id: str
    owner: str
    kind: str
    enabled: bool
    context_tokens: int | None
    output_tokens_max: int | None
    knowledge_cutoff: str
    capabilities: tuple[str, ...]
    hidden_reasoning: bool
    price_version: int | None
    price: dict[str, int] | None
    list_price: dict[str, int] | None
    prices: tuple[PriceVersion, ...]
    note_en: str
    note_zh: str


class Models(msgspec.Struct, frozen=True):
    models: tuple[ModelView, ...]


class ChangeModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A disabled model keeps its prices and can't be used."""

    enabled: bool


class ModelChanged(msgspec.Struct, frozen=True):
    model: str
    enabled: bool


async def set_price(call: Call[SetPrice, Nothing]) -> PriceSet:
    body = call.body
    price = catalogue.price_vector(
        input=micros(body.input, "input"),
        output=micros(body.output, "output"),
        **{
            name: optional_micros(getattr(body, name), name)
            for name in ("cached_input", "cache_write", "audio_input", "audio_output", "reasoning")
        },
    )
    version = await catalogue.set_price(
        call.ledger.database,
        model_id=call.path["model"],
        price=price,
        starts_at_ms=_milliseconds(body.starts_at),
        actor=call.caller.actor,
    )
    await _push(call)
    return PriceSet(
        model=call.path["model"],
        price_version=version.version,
        starts_at_ms=version.starts_at_ms,
        price=msgspec.structs.asdict(price),
    )


async def change_model(call: Call[ChangeModel, Nothing]) -> ModelChanged:
    model_id, enabled = call.path["model"], call.body.enabled
    await catalogue.set_model_enabled(
        call.ledger.database, model_id=model_id, enabled=enabled, actor=call.caller.actor
    )
    await _push(call)
    return ModelChanged(model=model_id, enabled=enabled)


async def list_models(call: Call[Nothing, Nothing]) -> Models:
    found = await catalogue.list_models(call.ledger.database)
    now_ms = time.time_ns() // 1_000_000
    return Models(models=tuple(_view(model, enabled, now_ms) for model, enabled in found))


async def _push(call: Call[Any, Any]) -> None:
    """In force on every meter when this returns; raises MeterNotConfirmed."""
    await call.ledger.meters.catalogue(await catalogue.load_catalogue(call.ledger.database))


def _milliseconds(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise BadRequest("starts_at: an offset is needed, such as 2026-12-01T00:00:00Z.", param="starts_at")
    return int(moment.astimezone(UTC).timestamp() * 1000)


def _view(model: Model, enabled: bool, now_ms: int) -> ModelView:
    current = model.price_at(now_ms)
    listed = model.list_price
    return ModelView(
        id=model.id,
        owner=model.owner,
        kind=model.kind,
        enabled=enabled,
        context_tokens=model.context_tokens,
        output_tokens_max=model.output_tokens_max,
        knowledge_cutoff=model.knowledge_cutoff,
        capabilities=model.capabilities,
        hidden_reasoning=model.hidden_reasoning,
        price_version=None if current is None else current.version,
        price=None if current is None else msgspec.structs.asdict(current.price),
        list_price=None if listed is None else msgspec.structs.asdict(listed),
        prices=model.prices,
        note_en=model.note_en,
        note_zh=model.note_zh,
    )


ENDPOINTS = (
    endpoint("GET", "/models", "All models with their prices.", list_models, Models),
    endpoint(
        "PATCH",
        "/models/{model}",
        "Enable or disable a model.",
        change_model,
        ModelChanged,
        body=ChangeModel,
        roles=OWNERS,
    ),
    endpoint(
        "PUT",
        "/models/{model}/price",
        "Set a new price version; a model that isn't there is made.",
        set_price,
        PriceSet,
        body=SetPrice,
        roles=OWNERS,
    ),
)
