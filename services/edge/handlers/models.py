"""`GET /v1/models` and `/v1/models/{id}`: what this key may use, with prices."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from aiohttp import web

from services.common.contracts.catalogue import Model
from services.common.contracts.charging import KeyHint
from services.common.errors import MeterwayError, ModelNotFound
from services.common.ids import hash_api_key, new_session_id
from services.common.money import PriceVector
from services.edge.auth import read_api_key
from services.edge.errors_http import RefusedByMeter, error_reply
from services.edge.parts import PARTS, EdgeParts
from services.edge.upstreams.routing import RoutingTable

MICROS_PER_USD = 1_000_000


async def list_models(request: web.Request) -> web.Response:
    return await _answer(request, None)


async def get_model(request: web.Request) -> web.Response:
    return await _answer(request, request.match_info["id"])


async def _answer(request: web.Request, model_id: str | None) -> web.Response:
    parts, request_id = request.app[PARTS], new_session_id()
    try:
        hint = await _hint(parts, request)
        now_ms = time.time_ns() // 1_000_000
        body: object
        if model_id is None:
            body = {"object": "list", "data": usable_models(parts.routing.table, hint, now_ms)}
        else:
            body = usable_model(parts.routing.table, hint, model_id, now_ms)
    except RefusedByMeter as refused:
        return error_reply(refused.error, request_id)
    except MeterwayError as error:
        return error_reply(error, request_id)
    return web.Response(
        body=msgspec.json.encode(body),
        headers={"x-request-id": request_id, "Content-Type": "application/json"},
    )


async def _hint(parts: EdgeParts, request: web.Request) -> KeyHint:
    key_hash = hash_api_key(read_api_key(request.headers))
    known = parts.key_hints.cached(key_hash) or await parts.key_hints.resolve(key_hash)
    return known.hint


def usable_models(table: RoutingTable, hint: KeyHint, now_ms: int) -> list[dict[str, Any]]:
    """Models that are priced now, served by a channel and allowed to the key."""
    return [
        model_json(model, price.price)
        for model in table.models
        if _may_use(table, hint, model.id) and (price := model.price_at(now_ms)) is not None
    ]


def usable_model(table: RoutingTable, hint: KeyHint, model_id: str, now_ms: int) -> dict[str, Any]:
    """Raises ModelNotFound."""
    model = table.model(model_id)
    price = model.price_at(now_ms) if model is not None else None
    if model is None or price is None or not _may_use(table, hint, model_id):
        raise ModelNotFound(param="model")
    return model_json(model, price.price)


def _may_use(table: RoutingTable, hint: KeyHint, model_id: str) -> bool:
    return (hint.models is None or model_id in hint.models) and table.serves(model_id)


def model_json(model: Model, price: PriceVector) -> dict[str, Any]:
    """OpenAI's shape, and what a user chooses a model by. Prices: USD per 1M tokens, decimal strings."""
    return {
        "id": model.id,
        "object": "model",
        "created": model.created_at_ms // 1000,
        "owned_by": model.owner,
        "context_window": model.context_tokens,
        "max_output_tokens": model.output_tokens_max,
        "knowledge_cutoff": model.knowledge_cutoff or None,
        "capabilities": list(model.capabilities),
        "pricing": {
            "currency": "USD",
            "per": "1M tokens",
            **{
                name: usd_per_million(micros)
                for name in PriceVector.__struct_fields__
                if (micros := getattr(price, name)) or name in ("input", "output")
            },
        },
    }


def usd_per_million(micros: int) -> str:
    """`2.5` for 2,500,000 micro-USD: exact, no trailing zeros."""
    whole, rest = divmod(micros, MICROS_PER_USD)
    decimals = f"{rest:06d}".rstrip("0")
    return f"{whole}.{decimals}" if decimals else str(whole)
