"""Models and their prices (ledger to meter and edge), channels (ledger to edge)."""

from __future__ import annotations

import msgspec

from services.common.ids import ChannelId, EdgeId
from services.common.money import PriceVector


class PriceVersion(msgspec.Struct, frozen=True):
    """A session is charged by the version in force when it was admitted. Versions are immutable."""

    version: int
    starts_at_ms: int
    price: PriceVector


class Model(msgspec.Struct, frozen=True, omit_defaults=True):
    """`output_tokens_max`: the model's own limit, None: unknown. `hidden_reasoning`: output that no
    stream shows. `prices`: oldest first, future ones included; a model without any can't be used.
    `kind`: `chat`, `completion`, `embedding`, `moderation`."""

    id: str
    owner: str
    kind: str
    prices: tuple[PriceVersion, ...]
    context_tokens: int | None = None
    output_tokens_max: int | None = None
    knowledge_cutoff: str = ""
    capabilities: tuple[str, ...] = ()
    hidden_reasoning: bool = False
    created_at_ms: int = 0
    list_price: PriceVector | None = None
    note_en: str = ""
    note_zh: str = ""

    def price_at(self, now_ms: int) -> PriceVersion | None:
        """The version in force at `now_ms`, or None."""
        current = None
        for version in self.prices:
            if version.starts_at_ms <= now_ms:
                current = version
        return current


class Catalogue(msgspec.Struct, frozen=True):
    """`revision` grows with every change of models or prices."""

    revision: int
    models: tuple[Model, ...]


class ChannelCredential(msgspec.Struct, frozen=True):
    id: str
    secret: str

    def __repr__(self) -> str:
        return f"ChannelCredential(id={self.id!r}, secret=<hidden>)"


class Channel(msgspec.Struct, frozen=True, omit_defaults=True):
    """An upstream. `models`: our model id -> the upstream's name; None: every model, not renamed.
    `base_url` ends in `/v1`. Higher `priority` first, weighted random inside a priority."""

    id: ChannelId
    name: str
    base_url: str
    credentials: tuple[ChannelCredential, ...]
    models: dict[str, str] | None = None
    kind: str = "openai"
    priority: int = 0
    weight: int = 1
    headers: dict[str, str] = {}
    connect_timeout_ms: int = 10_000
    first_byte_timeout_ms: int = 600_000
    idle_timeout_ms: int = 300_000


class Routing(msgspec.Struct, frozen=True):
    """Answer of GET /internal/v1/routing?after=REVISION (waits up to 20 s for a newer one)."""

    revision: int
    channels: tuple[Channel, ...]
    catalogue: Catalogue


class EdgeRegistration(msgspec.Struct, frozen=True):
    """POST /internal/v1/edges. `incarnation` is new with each start of the process."""

    edge_id: EdgeId
    incarnation: str
    internal_url: str


class CredentialReport(msgspec.Struct, frozen=True):
    """POST /internal/v1/channels/credential_report: an upstream refused this credential
    (`status` 401, 402 or 403): it is set aside until an operator enables it again."""

    channel_id: ChannelId
    credential_id: str
    status: int
    edge_id: EdgeId
