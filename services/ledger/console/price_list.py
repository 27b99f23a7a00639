"""The public price list: what the catalogue says, as rows to show. Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.common.contracts.catalogue import Model
from services.common.money import MICROS_PER_USD, PriceVector

# Input, what makes input dearer or cheaper, output: the order in which people read a price.
_SHOWN_CLASSES: Final = (
    "input",
    "cached_input",
    "cache_write",
    "output",
    "reasoning",
    "audio_input",
    "audio_output",
)
# A class that costs as much as its plain one is not worth a line of its own.
_PLAIN_CLASS: Final = {
    "cached_input": "input",
    "cache_write": "input",
    "audio_input": "input",
    "reasoning": "output",
    "audio_output": "output",
}
_SNAPSHOT: Final = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{4})")
KINDS: Final = ("chat", "completion", "embedding", "moderation")


@dataclass(frozen=True, kw_only=True)
class ClassPrice:
    """`ours` and `list_price` per 1M tokens, such as `$2.50`; `list_price` only where it differs."""

    token_class: str
    ours: str
    list_price: str | None


@dataclass(frozen=True, kw_only=True)
class PriceRow:
    """`snapshots`: dated versions that are alike in all that is shown. `saving_percent`: the least over
    the classes; 0: none."""

    model: Model
    prices: tuple[ClassPrice, ...]
    free: bool
    saving_percent: int
    context: str
    output_max: str
    snapshots: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PriceSection:
    kind: str
    rows: tuple[PriceRow, ...]


def price_list(models: Sequence[Model], now_ms: int | None = None) -> tuple[PriceSection, ...]:
    """The models that have a price at `now_ms`, by kind, in the catalogue's order."""
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    priced = {model.id: model for model in models if model.price_at(now_ms)}
    folded: dict[str, list[str]] = {}
    rows: list[Model] = []
    for model in priced.values():
        base = priced.get(_SNAPSHOT.sub("", model.id)) if _SNAPSHOT.search(model.id) else None
        if base is not None and base.id != model.id and _face(base, now_ms) == _face(model, now_ms):
            folded.setdefault(base.id, []).append(model.id)
        else:
            rows.append(model)
    sections = []
    for kind in KINDS:
        members = tuple(
            _row(model, tuple(folded.get(model.id, ())), now_ms) for model in rows if model.kind == kind
        )
        if members:
            sections.append(PriceSection(kind=kind, rows=members))
    return tuple(sections)


def usd_per_million(micros: int) -> str:
    """Micro-USD per 1M tokens as dollars, exact: at least two decimals, at most six."""
    whole, rest = divmod(micros, MICROS_PER_USD)
    return f"${whole:,}.{f'{rest:06d}'.rstrip('0').ljust(2, '0')}"


def upcoming_price(model: Model, now_ms: int | None = None) -> tuple[str, str] | None:
    """When the next price starts (UTC) and its input and output, or None."""
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    for version in model.prices:
        if version.starts_at_ms > now_ms:
            moment = time.strftime("%Y-%m-%d %H:%M", time.gmtime(version.starts_at_ms / 1000))
            price = version.price
            return moment, f"{usd_per_million(price.input)} / {usd_per_million(price.output)}"
    return None


def _face(model: Model, now_ms: int) -> tuple[object, ...]:
    """All that a row shows of a model but its name."""
    version = model.price_at(now_ms)
    return (
        version.price if version else None,
        model.list_price,
        model.context_tokens,
        model.output_tokens_max,
        model.knowledge_cutoff,
        model.capabilities,
        model.note_en,
        model.note_zh,
    )


def _row(model: Model, snapshots: tuple[str, ...], now_ms: int) -> PriceRow:
    version = model.price_at(now_ms)
    assert version is not None
    price = version.price
    listed = model.list_price
    classes = [name for name in _SHOWN_CLASSES if _worth_showing(name, price, listed)]
    if model.kind in ("embedding", "moderation") and price.output == 0:
        classes = [name for name in classes if name != "output"]
    return PriceRow(
        model=model,
        prices=tuple(_class_price(name, price, listed) for name in classes),
        free=price == PriceVector(),
        saving_percent=_saving_percent(classes, price, listed),
        context=_token_count(model.context_tokens),
        output_max=_token_count(model.output_tokens_max),
        snapshots=snapshots,
    )


def _worth_showing(name: str, price: PriceVector, listed: PriceVector | None) -> bool:
    plain = _PLAIN_CLASS.get(name)
    if plain is None:
        return True
    differs = getattr(price, name) != getattr(price, plain)
    return differs or (listed is not None and getattr(listed, name) != getattr(listed, plain))


def _class_price(name: str, price: PriceVector, listed: PriceVector | None) -> ClassPrice:
    ours = getattr(price, name)
    theirs = getattr(listed, name) if listed is not None else ours
    return ClassPrice(
        token_class=name,
        ours=usd_per_million(ours),
        # A list price below ours is no offer, but hiding it would be worse.
        list_price=usd_per_million(theirs) if theirs != ours else None,
    )


def _saving_percent(classes: Sequence[str], price: PriceVector, listed: PriceVector | None) -> int:
    if listed is None:
        return 0
    savings = [
        (getattr(listed, name) - getattr(price, name)) * 100 // getattr(listed, name)
        for name in classes
        if getattr(listed, name) > 0
    ]
    return max(0, min(savings, default=0))


def _token_count(tokens: int | None) -> str:
    return f"{tokens:,}" if tokens else ""
