"""Edges: who is registered, and forgetting one that is gone for good."""

from __future__ import annotations

import msgspec

from services.ledger import gone_edges
from services.ledger.api.caller import OWNERS
from services.ledger.api.endpoint import Call, Nothing, endpoint


class Edges(msgspec.Struct, frozen=True):
    edges: tuple[gone_edges.Edge, ...]


class Forgotten(msgspec.Struct, frozen=True):
    edge_id: str


async def list_edges(call: Call[Nothing, Nothing]) -> Edges:
    return Edges(edges=tuple(await gone_edges.list_edges(call.ledger.database)))


async def forget_edge(call: Call[Nothing, Nothing]) -> Forgotten:
    edge_id = call.path["edge_id"]
    await gone_edges.forget(call.ledger.database, edge_id=edge_id, actor=call.caller.actor)
    call.ledger.roll_calls.wake()
    return Forgotten(edge_id=edge_id)


ENDPOINTS = (
    endpoint("GET", "/edges", "The edges that have registered.", list_edges, Edges),
    endpoint(
        "POST",
        "/edges/{edge_id}/forget",
        "An edge is gone for good: its sessions end at their last checkpoints, its log may charge no more.",
        forget_edge,
        Forgotten,
        roles=OWNERS,
    ),
)
