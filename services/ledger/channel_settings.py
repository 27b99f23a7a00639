"""What a channel may be set to, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from services.common.errors import BadRequest
from services.ledger.catalogue import checked_model_id
from services.ledger.database import Row
from services.ledger.upstream_address import checked_headers, normalized_base_url, require_public_address

KINDS: Final = ("openai", "azure")
MODELS_MAX: Final = 5_000
PRIORITY_MAX: Final = 1_000
WEIGHT_MAX: Final = 10_000
TIMEOUT_MS_MAX: Final = 3_600_000


class CredentialView(msgspec.Struct, frozen=True):
    """A credential as it is shown. `state`: `active`, or `set_aside` after an upstream refused it."""

    id: str
    hint: str
    state: str
    set_aside_status: int | None = None
    set_aside_at_ms: int | None = None


class ChannelView(msgspec.Struct, frozen=True):
    """A channel as it is shown. `models`: our id -> the upstream's name; None: every model."""

    id: str
    name: str
    kind: str
    base_url: str
    models: dict[str, str] | None
    priority: int
    weight: int
    headers: dict[str, str]
    connect_timeout_ms: int
    first_byte_timeout_ms: int
    idle_timeout_ms: int
    enabled: bool
    allow_private_addresses: bool
    revision: int
    credentials: tuple[CredentialView, ...]


class ChannelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may set of a channel; UNSET keeps what is there, or takes the default.

    `models`: a map of our ids to the upstream's, or a list of ids that need no renaming.
    """

    name: str | UnsetType = UNSET
    kind: str | UnsetType = UNSET
    base_url: str | UnsetType = UNSET
    models: dict[str, str] | list[str] | UnsetType | None = UNSET
    priority: int | UnsetType = UNSET
    weight: int | UnsetType = UNSET
    headers: dict[str, str] | UnsetType = UNSET
    connect_timeout_ms: int | UnsetType = UNSET
    first_byte_timeout_ms: int | UnsetType = UNSET
    idle_timeout_ms: int | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    allow_private_addresses: bool | UnsetType = UNSET


class CredentialChanges(msgspec.Struct, frozen=True, kw_only=True):
    """`add`: secrets; `remove`, `activate`: ids."""

    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    activate: tuple[str, ...] = ()


COLUMNS: Final = ChannelSettings.__struct_fields__
DEFAULTS: Final[dict[str, Any]] = {
    "kind": "openai",
    "models": None,
    "priority": 0,
    "weight": 1,
    "headers": {},
    "connect_timeout_ms": 10_000,
    "first_byte_timeout_ms": 600_000,
    "idle_timeout_ms": 300_000,
    "enabled": True,
    "allow_private_addresses": False,
}


async def checked_values(
    settings: ChannelSettings, former: dict[str, Any], *, resolve: bool = True
) -> dict[str, Any]:
    values = {**former, **set_fields(settings)}
    values["name"] = values["name"].strip()
    if not 1 <= len(values["name"]) <= 100 or not values["name"].isprintable():
        raise BadRequest("name: 1 to 100 printable characters.", param="name")
    if values["kind"] not in KINDS:
        raise BadRequest(f"kind: one of {', '.join(KINDS)}.", param="kind")
    for field, low, high in (
        ("priority", -PRIORITY_MAX, PRIORITY_MAX),
        ("weight", 1, WEIGHT_MAX),
        ("connect_timeout_ms", 1, TIMEOUT_MS_MAX),
        ("first_byte_timeout_ms", 1, TIMEOUT_MS_MAX),
        ("idle_timeout_ms", 1, TIMEOUT_MS_MAX),
    ):
        if not low <= values[field] <= high:
            raise BadRequest(f"{field}: from {low} to {high}.", param=field)
    values["models"] = _checked_models(values["models"])
    values["headers"] = checked_headers(values["headers"])
    values["base_url"] = normalized_base_url(values["base_url"])
    if resolve and not values["allow_private_addresses"]:
        await require_public_address(values["base_url"])
    return values


def _checked_models(models: dict[str, str] | list[str] | None) -> dict[str, str] | None:
    if models is None:
        return None
    named = models if isinstance(models, dict) else {model_id: model_id for model_id in models}
    if not 1 <= len(named) <= MODELS_MAX:
        raise BadRequest(f"models: 1 to {MODELS_MAX}, or null for every model.", param="models")
    return {checked_model_id(ours): checked_model_id(theirs) for ours, theirs in named.items()}


def channel_view(row: Row, credentials: Sequence[Row]) -> ChannelView:
    return ChannelView(
        id=row["id"],
        revision=row["revision"],
        credentials=tuple(
            CredentialView(
                id=credential["id"],
                hint=credential["hint"],
                state=credential["state"],
                set_aside_status=credential["set_aside_status"],
                set_aside_at_ms=_ms(credential["set_aside_at"]),
            )
            for credential in credentials
        ),
        **{name: row[name] for name in COLUMNS},
    )


def set_fields(settings: ChannelSettings) -> dict[str, Any]:
    return {name: value for name in COLUMNS if (value := getattr(settings, name)) is not UNSET}


def shown_settings(view: ChannelView) -> dict[str, Any]:
    return {name: getattr(view, name) for name in COLUMNS}


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp()) * 1_000
