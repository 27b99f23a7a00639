"""Models and their price versions.

A version is never changed, only followed by a newer one. A change is first committed, then pushed to
every meter by the caller; a meter that was away asks for the catalogue itself.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from services.common.contracts.catalogue import Catalogue, Model, PriceVersion
from services.common.errors import BadRequest, ModelNotFound
from services.common.money import TOKEN_CLASSES, PriceVector
from services.ledger import audit
from services.ledger.database import Connection, Database, Row
from services.ledger.queries import load_queries

SQL = load_queries("catalogue")
PRICE_MICROS_MAX: Final = 4_500_000_000
"""$4,500 per 1M tokens: 2M tokens at this price stay under 2**53 picodollars."""
MODEL_ID_CHARS_MAX: Final = 200
CUSTOM_OWNER: Final = "custom"
_START_TOLERANCE_MS: Final = 60_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def price_vector(*, input: int, output: int, **others: int | None) -> PriceVector:
    """A whole price from the classes that are given, in micro-USD per 1M tokens.

    A class that isn't given costs what plain input or output costs: no token is free by omission.
    Raises BadRequest when a price is out of bounds.
    """
    given = {name: value for name, value in others.items() if value is not None}
    prices = {
        "input": input,
        "cached_input": given.get("cached_input", input),
        "cache_write": given.get("cache_write", input),
        "audio_input": given.get("audio_input", input),
        "output": output,
        "reasoning": given.get("reasoning", output),
        "audio_output": given.get("audio_output", output),
    }
    for name, micros in prices.items():
        if not 0 <= micros <= PRICE_MICROS_MAX:
            raise BadRequest(f"{name}: a price must be from 0 to 4500 USD per 1M tokens.", param=name)
    return PriceVector(**prices)


def checked_model_id(model_id: str) -> str:
    """Raises BadRequest when `model_id` can't name a model."""
    if not model_id or len(model_id) > MODEL_ID_CHARS_MAX or not model_id.isprintable() or " " in model_id:
        raise BadRequest(
            f"model: an id has 1 to {MODEL_ID_CHARS_MAX} printable characters and no spaces.", param="model"
        )
    return model_id


async def load_catalogue(database: Database) -> Catalogue:
    """The enabled models with their live prices and the revision that they belong to."""
    return await database.transaction(catalogue_in, isolation="repeatable_read")


async def catalogue_in(connection: Connection) -> Catalogue:
    """As `load_catalogue`; the transaction must be one snapshot (repeatable read)."""
    revision = await connection.fetchval(SQL["revision"], "catalogue")
    rows = await connection.fetch(SQL["models"])
    prices = _by_model(await connection.fetch(SQL["live_prices"]))
    models = tuple(_model(row, prices[row["id"]]) for row in rows if row["enabled"])
    return Catalogue(revision=revision, models=models)


async def list_models(database: Database) -> Sequence[tuple[Model, bool]]:
    """Every model and whether it is enabled."""

    async def read(connection: Connection) -> list[tuple[Model, bool]]:
        rows = await connection.fetch(SQL["models"])
        prices = _by_model(await connection.fetch(SQL["live_prices"]))
        return [(_model(row, prices[row["id"]]), row["enabled"]) for row in rows]

    return await database.transaction(read, isolation="repeatable_read")


async def set_price(
    database: Database, *, model_id: str, price: PriceVector, starts_at_ms: int | None, actor: str
) -> PriceVersion:
    """Add a price version; a model that isn't there is made (kind `chat`, owner `custom`).

    `starts_at_ms` None: now. Raises BadRequest when it is over: a price never changes the past.
    """
    checked_model_id(model_id)
    starts_at = _checked_start(starts_at_ms)

    async def add(connection: Connection) -> PriceVersion:
        await connection.fetchval(SQL["insert_model"], *new_model_values(id=model_id, owner=CUSTOM_OWNER))
        await connection.fetchval(SQL["lock_model"], model_id)
        former = await connection.fetchrow(SQL["price_in_force"], model_id)
        row = await connection.fetchrow(SQL["insert_price"], model_id, starts_at, *price_values(price))
        assert row is not None
        version = PriceVersion(version=row["version"], starts_at_ms=_ms(row["starts_at"]), price=price)
        await audit.record(
            connection,
            actor=actor,
            action="price.set",
            target=model_id,
            before=None if former is None else _shown(former["version"], former["starts_at"], _price(former)),
            after=_shown(version.version, row["starts_at"], price),
        )
        return version

    return await database.transaction(add)


async def set_model_enabled(database: Database, *, model_id: str, enabled: bool, actor: str) -> None:
    """A disabled model keeps its prices and can't be used. Raises ModelNotFound."""

    async def change(connection: Connection) -> None:
        if await connection.fetchval(SQL["lock_model"], model_id) is None:
            raise ModelNotFound(f"There is no model {model_id[:MODEL_ID_CHARS_MAX]}.", param="model")
        await connection.execute(SQL["set_model_enabled"], model_id, enabled)
        await audit.record(
            connection,
            actor=actor,
            action="model.enable" if enabled else "model.disable",
            target=model_id,
            after={"enabled": enabled},
        )

    await database.transaction(change)


def new_model_values(
    *,
    id: str,
    owner: str,
    kind: str = "chat",
    context_tokens: int | None = None,
    output_tokens_max: int | None = None,
    knowledge_cutoff: str = "",
    capabilities: Sequence[str] = (),
    hidden_reasoning: bool = False,
    list_price: PriceVector | None = None,
    note_en: str = "",
    note_zh: str = "",
    created_at: datetime | None = None,
) -> tuple[Any, ...]:
    """The values of the statement `insert_model`."""
    listed = (None,) * len(TOKEN_CLASSES) if list_price is None else price_values(list_price)
    return (
        id,
        owner,
        kind,
        context_tokens,
        output_tokens_max,
        knowledge_cutoff,
        list(capabilities),
        hidden_reasoning,
        *listed,
        note_en,
        note_zh,
        created_at,
    )


def price_values(price: PriceVector) -> tuple[int, ...]:
    """The classes in the order of the tables' columns, which is the contract's."""
    return tuple(getattr(price, name) for name in TOKEN_CLASSES)


def _by_model(rows: Sequence[Row]) -> Mapping[str, list[PriceVersion]]:
    prices: defaultdict[str, list[PriceVersion]] = defaultdict(list)
    for row in rows:
        prices[row["model_id"]].append(
            PriceVersion(version=row["version"], starts_at_ms=_ms(row["starts_at"]), price=_price(row))
        )
    return prices


def _model(row: Row, prices: Sequence[PriceVersion]) -> Model:
    listed = None if row["list_input_micros"] is None else _price(row, "list_")
    return Model(
        id=row["id"],
        owner=row["owner"],
        kind=row["kind"],
        prices=tuple(prices),
        context_tokens=row["context_tokens"],
        output_tokens_max=row["output_tokens_max"],
        knowledge_cutoff=row["knowledge_cutoff"],
        capabilities=tuple(row["capabilities"]),
        hidden_reasoning=row["hidden_reasoning"],
        created_at_ms=_ms(row["created_at"]),
        list_price=listed,
        note_en=row["note_en"],
        note_zh=row["note_zh"],
    )


def _price(row: Row, prefix: str = "") -> PriceVector:
    return PriceVector(**{name: row[f"{prefix}{name}_micros"] for name in TOKEN_CLASSES})


def _checked_start(starts_at_ms: int | None) -> datetime | None:
    if starts_at_ms is None:
        return None
    now_ms = time.time_ns() // 1_000_000
    if starts_at_ms < now_ms - _START_TOLERANCE_MS:
        raise BadRequest("starts_at: a price can't start in the past.", param="starts_at")
    if starts_at_ms > now_ms + 10 * 366 * 86_400_000:
        raise BadRequest("starts_at: a price can't start more than ten years ahead.", param="starts_at")
    # "Now", as the caller's clock has it, means now by the database's.
    return None if starts_at_ms <= now_ms else _EPOCH + timedelta(milliseconds=starts_at_ms)


def _shown(version: int, starts_at: datetime, price: PriceVector) -> dict[str, object]:
    micros = {f"{name}_micros": getattr(price, name) for name in TOKEN_CLASSES}
    return {"version": version, "starts_at": starts_at.isoformat(), **micros}


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)
