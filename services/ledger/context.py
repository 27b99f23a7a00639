"""What the handlers of both listeners share: made once by `app.open_ledger`, found under `LEDGER`."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from services.ledger.background import Background
from services.ledger.database import Database
from services.ledger.frozen_loans import FrozenLoans
from services.ledger.loans import Lender
from services.ledger.meters import Meters
from services.ledger.metrics import LedgerMetrics
from services.ledger.posting import Poster
from services.ledger.recalls import Recalls
from services.ledger.recovery import Recovery
from services.ledger.roll_call import RollCalls
from services.ledger.settings import LedgerSettings


@dataclass(frozen=True, kw_only=True)
class Ledger:
    settings: LedgerSettings
    database: Database
    meters: Meters
    metrics: LedgerMetrics
    lender: Lender
    poster: Poster
    frozen_loans: FrozenLoans
    recalls: Recalls
    recovery: Recovery
    roll_calls: RollCalls
    background: Background


LEDGER = web.AppKey("ledger", Ledger)
