"""Channels and their credentials. Secrets go in; only hints come out."""

from __future__ import annotations

import msgspec

from services.ledger import channels
from services.ledger.api.caller import OWNERS
from services.ledger.api.endpoint import Call, Nothing, endpoint
from services.ledger.channel_settings import ChannelSettings, ChannelView, CredentialChanges


class CreateChannel(ChannelSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`credentials`: the upstream's API keys. `models`: a map of our ids to the upstream's, a list of ids
    that need no renaming, or null for every model. Higher `priority` first, by `weight` inside one."""

    credentials: tuple[str, ...]


class ChangeChannel(ChannelSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What isn't given stays. `add_credentials`: secrets; the other two: credential ids."""

    add_credentials: tuple[str, ...] = ()
    remove_credentials: tuple[str, ...] = ()
    activate_credentials: tuple[str, ...] = ()


class Channels(msgspec.Struct, frozen=True):
    channels: tuple[ChannelView, ...]


class Deleted(msgspec.Struct, frozen=True):
    id: str
    deleted: bool = True


async def create_channel(call: Call[CreateChannel, Nothing]) -> ChannelView:
    return await channels.create_channel(
        call.ledger.database,
        call.parts.vault,
        settings=call.body,
        credentials=call.body.credentials,
        actor=call.caller.actor,
    )


async def list_channels(call: Call[Nothing, Nothing]) -> Channels:
    return Channels(channels=tuple(await channels.list_channels(call.ledger.database)))


async def change_channel(call: Call[ChangeChannel, Nothing]) -> ChannelView:
    body = call.body
    return await channels.change_channel(
        call.ledger.database,
        call.parts.vault,
        channel_id=call.path["channel_id"],
        settings=body,
        credentials=CredentialChanges(
            add=body.add_credentials, remove=body.remove_credentials, activate=body.activate_credentials
        ),
        actor=call.caller.actor,
    )


async def delete_channel(call: Call[Nothing, Nothing]) -> Deleted:
    channel_id = call.path["channel_id"]
    await channels.delete_channel(call.ledger.database, channel_id=channel_id, actor=call.caller.actor)
    return Deleted(id=channel_id)


ENDPOINTS = (
    endpoint("GET", "/channels", "All channels, the highest priority first.", list_channels, Channels),
    endpoint(
        "POST",
        "/channels",
        "Add an upstream; every edge uses it within a second.",
        create_channel,
        ChannelView,
        body=CreateChannel,
        roles=OWNERS,
    ),
    endpoint(
        "PATCH",
        "/channels/{channel_id}",
        "Change a channel, its credentials too.",
        change_channel,
        ChannelView,
        body=ChangeChannel,
        roles=OWNERS,
    ),
    endpoint(
        "DELETE",
        "/channels/{channel_id}",
        "Delete a channel with its credentials.",
        delete_channel,
        Deleted,
        roles=OWNERS,
    ),
)
