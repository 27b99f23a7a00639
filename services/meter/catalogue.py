"""The price list as last heard from the ledger: loaded at start, polled, and pushed when it changes.

Outage behaviour: usable for 15 min (a setting) without the ledger; future prices in it come into
force on time. After that every open is refused with 503.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from services.common import logs
from services.common.contracts.catalogue import Catalogue, Model
from services.meter.ledger_client import LedgerClient, LedgerUnavailable

LOG = logs.get("meter.catalogue")
POLL_S: Final = 2.0
FIRST_RETRY_S: Final = 0.1


class CatalogueCache:
    def __init__(self, ledger: LedgerClient, *, usable_ms: int) -> None:
        self._ledger = ledger
        self._usable_s = usable_ms / 1000
        self._models: dict[str, Model] = {}
        self._heard_at = float("-inf")
        self.revision = -1

    @property
    def is_usable(self) -> bool:
        return time.monotonic() - self._heard_at < self._usable_s

    @property
    def age_s(self) -> float:
        return min(1e9, time.monotonic() - self._heard_at)

    def find(self, model_id: str) -> Model | None:
        return self._models.get(model_id)

    def put(self, catalogue: Catalogue) -> None:
        """An older revision never replaces a newer one."""
        if catalogue.revision < self.revision:
            return
        self._heard_at = time.monotonic()
        if catalogue.revision > self.revision:
            self._models = {model.id: model for model in catalogue.models}
            self.revision = catalogue.revision
            LOG.info("price list loaded", revision=self.revision, models=len(self._models))

    async def keep_fresh(self) -> None:
        """Poll. Runs until cancelled."""
        while True:
            try:
                self.put(await self._ledger.catalogue())
            except LedgerUnavailable:
                LOG.warning("the price list could not be refreshed", age_s=round(self.age_s))
            await asyncio.sleep(POLL_S if self.revision >= 0 else FIRST_RETRY_S)
