"""Price versions by (model, version), for repricing what is posted. Versions never change: kept."""

from __future__ import annotations

from collections.abc import Iterable

from services.common.money import TOKEN_CLASSES, PriceVector
from services.ledger.database import Connection
from services.ledger.queries import load_queries

SQL = load_queries("posting")
VERSIONS_MAX = 50_000
INT32_MAX = 2**31 - 1
ModelVersion = tuple[str, int]


class PriceBook:
    def __init__(self) -> None:
        self._known: dict[ModelVersion, PriceVector] = {}

    async def load(self, connection: Connection, wanted: Iterable[ModelVersion]) -> None:
        """Read the versions that aren't known yet; one that doesn't exist stays unknown."""
        missing = sorted({key for key in wanted if key not in self._known and key[1] <= INT32_MAX})
        if not missing:
            return
        if len(self._known) + len(missing) > VERSIONS_MAX:
            self._known.clear()
        models, versions = [model for model, _version in missing], [version for _model, version in missing]
        for row in await connection.fetch(SQL["prices"], models, versions):
            values = {name: row[f"{name}_micros"] for name in TOKEN_CLASSES}
            self._known[row["model_id"], row["version"]] = PriceVector(**values)

    def get(self, model: str, version: int) -> PriceVector | None:
        return self._known.get((model, version))
