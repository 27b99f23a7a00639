"""API keys. A key is shown once, when it is made."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from services.common.contracts.lending import KeyLimits
from services.common.errors import BadRequest
from services.ledger import accounts, keys
from services.ledger.api.amounts import optional_nanos
from services.ledger.api.caller import CUSTOMERS
from services.ledger.api.endpoint import Call, Nothing, endpoint
from services.ledger.catalogue import checked_model_id
from services.ledger.key_limits import LimitChanges, change_limits

Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Names = Annotated[tuple[str, ...], Meta(max_length=1000)]


class CreateKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits that aren't given don't limit. `quota_usd` is for the key's whole life; `unlimited` says in
    so many words that there is none. `expires_at`: RFC 3339 with an offset, or Unix milliseconds.
    `addresses`: IPs or CIDR networks."""

    name: str = ""
    quota_usd: Decimal | None = None
    unlimited: bool = False
    expires_at: str | int | None = None
    models: Names | None = None
    addresses: Names | None = None
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrency: Count | None = None
    budget_day_usd: Decimal | None = None
    budget_month_usd: Decimal | None = None


class ChangeKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What isn't given stays, null removes the limit."""

    name: str | UnsetType = UNSET
    quota_usd: Decimal | UnsetType | None = UNSET
    expires_at: str | int | UnsetType | None = UNSET
    models: Names | UnsetType | None = UNSET
    addresses: Names | UnsetType | None = UNSET
    requests_per_minute: Count | UnsetType | None = UNSET
    tokens_per_minute: Count | UnsetType | None = UNSET
    concurrency: Count | UnsetType | None = UNSET
    budget_day_usd: Decimal | UnsetType | None = UNSET
    budget_month_usd: Decimal | UnsetType | None = UNSET


class KeyCreated(msgspec.Struct, frozen=True):
    """`api_key` can't be shown again. `unconfirmed_meters`: they ask for the key when it is first used."""

    api_key: str
    key_id: str
    hint: str
    unconfirmed_meters: tuple[str, ...]


class LimitsView(msgspec.Struct, frozen=True):
    """null: not limited."""

    quota_nanos: int | None
    expires_at_ms: int | None
    models: tuple[str, ...] | None
    addresses: tuple[str, ...] | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None
    budget_day_nanos: int | None
    budget_month_nanos: int | None


class KeyView(msgspec.Struct, frozen=True):
    """`state`: `active` or `disabled`. `used_nanos`: posted use in all."""

    key_id: str
    account_id: str
    name: str
    hint: str
    state: str
    used_nanos: int
    created_at_ms: int
    limits: LimitsView


class KeysQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after: str = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class Keys(msgspec.Struct, frozen=True):
    """`next_after`: ask again with it as `after`; None: these were the last."""

    keys: tuple[KeyView, ...]
    next_after: str | None


class KeyChanged(msgspec.Struct, frozen=True):
    """In force on every meter."""

    key_id: str
    limits: LimitsView


class KeyState(msgspec.Struct, frozen=True):
    """In force on every meter."""

    key_id: str
    state: str


async def create_key(call: Call[CreateKey, Nothing]) -> KeyCreated:
    body, ledger = call.body, call.ledger
    if body.unlimited and body.quota_usd is not None:
        raise BadRequest("unlimited: there is a quota_usd, too. Please give one of them.", param="unlimited")
    limits = KeyLimits(
        quota_nanos=optional_nanos(body.quota_usd, "quota_usd"),
        expires_at_ms=_expiry_ms(body.expires_at),
        models=_model_ids(body.models),
        addresses=body.addresses,
        requests_per_minute=body.requests_per_minute,
        tokens_per_minute=body.tokens_per_minute,
        concurrency=body.concurrency,
        budget_day_nanos=optional_nanos(body.budget_day_usd, "budget_day_usd"),
        budget_month_nanos=optional_nanos(body.budget_month_usd, "budget_month_usd"),
    )
    new = await keys.create(
        ledger.database,
        ledger.meters,
        account_id=call.path["account_id"],
        name=body.name,
        limits=limits,
        actor=call.caller.actor,
    )
    return KeyCreated(
        api_key=new.api_key, key_id=new.key_id, hint=new.hint, unconfirmed_meters=new.unconfirmed_meters
    )


async def list_keys(call: Call[Nothing, KeysQuery]) -> Keys:
    account_id, query = call.path["account_id"], call.query
    await accounts.get_account(call.ledger.database, account_id)
    found = await keys.list_keys(
        call.ledger.database, account_id=account_id, after=query.after, limit=query.limit
    )
    return Keys(
        keys=tuple(_key(key) for key in found),
        next_after=found[-1].id if len(found) == query.limit else None,
    )


async def change_key(call: Call[ChangeKey, Nothing]) -> KeyChanged:
    body, ledger = call.body, call.ledger
    changes = LimitChanges(
        quota_nanos=_changed_nanos(body.quota_usd, "quota_usd"),
        expires_at_ms=UNSET if body.expires_at is UNSET else _expiry_ms(body.expires_at),
        models=UNSET if body.models is UNSET else _model_ids(body.models),
        addresses=body.addresses,
        requests_per_minute=body.requests_per_minute,
        tokens_per_minute=body.tokens_per_minute,
        concurrency=body.concurrency,
        budget_day_nanos=_changed_nanos(body.budget_day_usd, "budget_day_usd"),
        budget_month_nanos=_changed_nanos(body.budget_month_usd, "budget_month_usd"),
    )
    limits = await change_limits(
        ledger.database,
        ledger.meters,
        key_id=call.path["key_id"],
        changes=changes,
        name=None if body.name is UNSET else body.name,
        actor=call.caller.actor,
    )
    return KeyChanged(key_id=call.path["key_id"], limits=_limits(limits))


async def disable_key(call: Call[Nothing, Nothing]) -> KeyState:
    ledger, key_id = call.ledger, call.path["key_id"]
    await keys.disable(ledger.database, ledger.meters, key_id=key_id, actor=call.caller.actor)
    return KeyState(key_id=key_id, state="disabled")


async def enable_key(call: Call[Nothing, Nothing]) -> KeyState:
    ledger, key_id = call.ledger, call.path["key_id"]
    await keys.enable(ledger.database, ledger.meters, key_id=key_id, actor=call.caller.actor)
    return KeyState(key_id=key_id, state="active")


def _changed_nanos(amount: Decimal | UnsetType | None, field: str) -> int | UnsetType | None:
    return UNSET if amount is UNSET else optional_nanos(amount, field)


def _expiry_ms(moment: str | int | None) -> int | None:
    if moment is None or isinstance(moment, int):
        return moment
    try:
        parsed = datetime.fromisoformat(moment)
        if parsed.tzinfo is None:
            raise ValueError("no offset")
        return int(parsed.astimezone(UTC).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise BadRequest(
            "expires_at: a time with an offset is needed, such as 2027-01-31T00:00:00Z.", param="expires_at"
        ) from error


def _model_ids(models: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if models is None else tuple(checked_model_id(model) for model in models)


def _key(key: keys.Key) -> KeyView:
    return KeyView(
        key_id=key.id,
        account_id=key.account_id,
        name=key.name,
        hint=key.hint,
        state=key.state,
        used_nanos=key.used_nanos,
        created_at_ms=int(key.created_at.timestamp() * 1000),
        limits=_limits(key.limits),
    )


def _limits(limits: KeyLimits) -> LimitsView:
    shown: dict[str, Any] = {name: getattr(limits, name) for name in LimitsView.__struct_fields__}
    return LimitsView(**shown)


ENDPOINTS = (
    endpoint(
        "POST",
        "/accounts/{account_id}/keys",
        "Make an API key; it is shown this once.",
        create_key,
        KeyCreated,
        body=CreateKey,
        roles=CUSTOMERS,
    ),
    endpoint(
        "GET",
        "/accounts/{account_id}/keys",
        "The keys of an account.",
        list_keys,
        Keys,
        query=KeysQuery,
    ),
    endpoint(
        "PATCH",
        "/keys/{key_id}",
        "Change a key's limits or name.",
        change_key,
        KeyChanged,
        body=ChangeKey,
        roles=CUSTOMERS,
    ),
    endpoint(
        "POST", "/keys/{key_id}/disable", "Stop all use of a key.", disable_key, KeyState, roles=CUSTOMERS
    ),
    endpoint("POST", "/keys/{key_id}/enable", "Use a key again.", enable_key, KeyState, roles=CUSTOMERS),
)
