"""Channels for tests."""

from __future__ import annotations

from typing import Any

from services.common.contracts.catalogue import Catalogue, Channel, ChannelCredential, Model, Routing
from services.common.ids import ChannelId


def channel(name: str, *, credentials: int = 1, **fields: Any) -> Channel:
    fields.setdefault("base_url", "http://127.0.0.1:1/v1")
    return Channel(
        id=ChannelId(name),
        name=name,
        credentials=tuple(
            ChannelCredential(id=f"{name}-{number}", secret=f"secret-{name}-{number}")
            for number in range(credentials)
        ),
        **fields,
    )


def routing(*channels: Channel, models: tuple[str, ...] = ("gpt-4o",), revision: int = 1) -> Routing:
    catalogue = Catalogue(
        revision=1, models=tuple(Model(id=name, owner="x", kind="chat", prices=()) for name in models)
    )
    return Routing(revision=revision, channels=channels, catalogue=catalogue)
