"""The price list that an empty catalogue starts with: the makers' list prices are ours at first."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import resources

import msgspec

from services.common.money import PriceVector, usd_to_micros
from services.ledger import audit
from services.ledger.catalogue import SQL, new_model_values, price_values, price_vector
from services.ledger.database import Connection, Database


class SeedPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Decimal USD per 1M tokens. A class without a price costs what plain input or output costs."""

    input: str
    output: str
    cached_input: str | None = None
    cache_write: str | None = None
    audio_input: str | None = None
    audio_output: str | None = None
    reasoning: str | None = None


class SeedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`released`: the day, as YYYY-MM-DD."""

    id: str
    owner: str
    kind: str
    released: str
    list_price: SeedPrice
    context_tokens: int | None = None
    output_tokens_max: int | None = None
    knowledge_cutoff: str = ""
    capabilities: tuple[str, ...] = ()
    hidden_reasoning: bool = False
    note_en: str = ""
    note_zh: str = ""


def seed_models() -> list[SeedModel]:
    """The models of `seed_models.json`, in the order in which they are shown."""
    path = resources.files("services.ledger.seed") / "seed_models.json"
    return msgspec.json.decode(path.read_bytes(), type=list[SeedModel])


def seed_price(price: SeedPrice) -> PriceVector:
    given = msgspec.structs.asdict(price)
    others = {
        name: usd_to_micros(text)
        for name, text in given.items()
        if name not in ("input", "output") and text is not None
    }
    return price_vector(input=usd_to_micros(price.input), output=usd_to_micros(price.output), **others)


async def seed_catalogue(database: Database) -> int:
    """Fill an empty catalogue; answers how many models it wrote. 0: there are models already."""

    async def fill(connection: Connection) -> int:
        await connection.execute(SQL["lock_seeding"])
        if await connection.fetchval(SQL["count_models"]):
            return 0
        models = seed_models()
        for model in models:
            await _insert(connection, model)
        await audit.record(
            connection,
            actor="ledger",
            action="catalogue.seed",
            target="catalogue",
            after={"models": len(models)},
        )
        return len(models)

    return await database.transaction(fill)


async def _insert(connection: Connection, model: SeedModel) -> None:
    price = seed_price(model.list_price)
    await connection.execute(
        SQL["insert_model"],
        *new_model_values(
            id=model.id,
            owner=model.owner,
            kind=model.kind,
            context_tokens=model.context_tokens,
            output_tokens_max=model.output_tokens_max,
            knowledge_cutoff=model.knowledge_cutoff,
            capabilities=model.capabilities,
            hidden_reasoning=model.hidden_reasoning,
            list_price=price,
            note_en=model.note_en,
            note_zh=model.note_zh,
            created_at=datetime.fromisoformat(model.released).replace(tzinfo=UTC),
        ),
    )
    await connection.execute(SQL["insert_price"], model.id, None, *price_values(price))
