"""Which channels may serve a model, and in what order they are tried."""

from __future__ import annotations

import random
from typing import NamedTuple

from services.common.contracts.catalogue import Channel, Model, Routing


class Candidate(NamedTuple):
    """`model_rename`: the upstream's name of the model, None when it is the same."""

    channel: Channel
    model_rename: str | None


class RoutingTable:
    """An immutable snapshot of the ledger's routing; replaced as a whole, so that a request sees one."""

    __slots__ = ("_for_every_model", "_for_model", "_models", "channels", "revision")

    def __init__(self, routing: Routing) -> None:
        self.revision = routing.revision
        self.channels: tuple[Channel, ...] = routing.channels
        self._models: dict[str, Model] = {model.id: model for model in routing.catalogue.models}
        served: dict[str, list[Candidate]] = {}
        every: list[Candidate] = []
        for channel in sorted(routing.channels, key=lambda channel: -channel.priority):
            if channel.weight <= 0 or not channel.credentials:
                continue
            if channel.models is None:
                every.append(Candidate(channel, None))
                continue
            for model_id, upstream_name in channel.models.items():
                rename = upstream_name if upstream_name and upstream_name != model_id else None
                served.setdefault(model_id, []).append(Candidate(channel, rename))
        self._for_every_model = every
        self._for_model = {
            model_id: sorted([*named, *every], key=lambda candidate: -candidate.channel.priority)
            for model_id, named in served.items()
        }

    def model(self, model_id: str) -> Model | None:
        return self._models.get(model_id)

    @property
    def models(self) -> tuple[Model, ...]:
        return tuple(self._models.values())

    def serves(self, model_id: str) -> bool:
        """Whether the catalogue has the model and some channel serves it."""
        return model_id in self._models and bool(self._for_model.get(model_id) or self._for_every_model)

    def candidates(self, model_id: str, *, rng: random.Random | None = None) -> list[Candidate]:
        """Channels in the order to try them: by priority, and by weighted chance inside one."""
        found = self._for_model.get(model_id, self._for_every_model)
        if len(found) < 2:
            return list(found)
        draw = (rng or random).random
        # Efraimidis-Spirakis: sorting by u ** (1 / weight) draws by weight without replacement.
        keyed = [
            (-candidate.channel.priority, -(draw() ** (1.0 / candidate.channel.weight)), index)
            for index, candidate in enumerate(found)
        ]
        return [found[index] for _, _, index in sorted(keyed)]
