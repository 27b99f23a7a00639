"""Which channels are tried, in what order."""

from __future__ import annotations

import random
from collections import Counter

from services.edge.upstreams.routing import RoutingTable
from tests.unit.edge_upstreams.channels import channel, routing


def order(table: RoutingTable, model: str = "gpt-4o", seed: int = 1) -> list[str]:
    return [candidate.channel.name for candidate in table.candidates(model, rng=random.Random(seed))]


def test_higher_priority_comes_first() -> None:
    table = RoutingTable(routing(channel("low"), channel("high", priority=9), channel("mid", priority=5)))
    assert order(table) == ["high", "mid", "low"]


def test_inside_a_priority_the_weight_decides_by_chance() -> None:
    table = RoutingTable(routing(channel("light", weight=1), channel("heavy", weight=3)))
    firsts = Counter(order(table, seed=seed)[0] for seed in range(2_000))
    assert 1_400 < firsts["heavy"] < 1_600
    assert all(sorted(order(table, seed=seed)) == ["heavy", "light"] for seed in range(20))


def test_a_channel_without_weight_or_credentials_is_left_out() -> None:
    table = RoutingTable(routing(channel("drained", weight=0), channel("keyless", credentials=0)))
    assert order(table) == []
    assert not table.serves("gpt-4o")


def test_a_channel_serves_the_models_it_names_under_their_upstream_names() -> None:
    table = RoutingTable(
        routing(
            channel("named", models={"gpt-4o": "azure-gpt", "same": "same"}, priority=1),
            channel("any"),
            models=("gpt-4o", "same", "other"),
        )
    )
    renames = [(found.channel.name, found.model_rename) for found in table.candidates("gpt-4o")]
    assert renames == [("named", "azure-gpt"), ("any", None)]
    assert table.candidates("same")[0].model_rename is None
    assert order(table, "other") == ["any"]


def test_a_model_is_served_only_when_the_catalogue_has_it() -> None:
    table = RoutingTable(routing(channel("any")))
    assert table.serves("gpt-4o")
    assert not table.serves("unheard-of")
    assert table.model("gpt-4o") is not None
    assert [model.id for model in table.models] == ["gpt-4o"]


def test_a_callers_list_is_its_own() -> None:
    table = RoutingTable(routing(channel("any")))
    table.candidates("gpt-4o").clear()
    assert order(table) == ["any"]
