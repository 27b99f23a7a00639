"""The meter's parts, as its handlers find them."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from services.meter.admission import Admission
from services.meter.audit import Audit
from services.meter.catalogue import CatalogueCache
from services.meter.counting_desk import CountingDesk
from services.meter.epochs import Epochs
from services.meter.key_cache import KeyCache
from services.meter.metrics import MeterMetrics
from services.meter.outbox import Outbox
from services.meter.quota_store import QuotaStore
from services.meter.redis_link import RedisLink
from services.meter.running import RunningSessions
from services.meter.settings import MeterSettings
from services.meter.sweeper import Sweeper


@dataclass(frozen=True, kw_only=True, slots=True)
class Meter:
    settings: MeterSettings
    metrics: MeterMetrics
    link: RedisLink
    store: QuotaStore
    epochs: Epochs
    keys: KeyCache
    catalogue: CatalogueCache
    counting: CountingDesk
    admission: Admission
    running: RunningSessions
    outbox: Outbox
    sweeper: Sweeper
    audit: Audit


METER = web.AppKey("meter", Meter)
