"""Borrowing from the ledger: one request per account at a time, all accounts that wait in one call."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import Final, NamedTuple

from services.common import logs
from services.common.contracts.lending import LoanReply, LoanRequest
from services.common.ids import AccountId
from services.meter.epochs import Epochs
from services.meter.ledger_client import LedgerClient, LedgerUnavailable
from services.meter.metrics import MeterMetrics
from services.meter.quota_answers import Fence, Granted, LoansStale
from services.meter.quota_store import QuotaStore
from services.meter.redis_link import StoreUnavailable

LOG = logs.get("meter.lending")
REQUESTS_PER_CALL_MAX: Final = 500
CALLS_AT_ONCE: Final = 2
ACCOUNTS_WAITING_MAX: Final = 20_000
SPENDERS_MAX: Final = 20_000
REFILL_HOLDS: Final = 8
"""A loan is refilled when less than this many times the largest hold is free."""


class _Wish(NamedTuple):
    request: LoanRequest
    bucket: int
    future: asyncio.Future[LoanReply]


class SpendRates:
    """What each account spent in the last minute, roughly, through this meter."""

    def __init__(self) -> None:
        self._spent: OrderedDict[AccountId, tuple[int, int, int]] = OrderedDict()

    def note(self, account_id: AccountId, nanos: int) -> None:
        minute, now_nanos, last_nanos = self._current(account_id)
        self._spent[account_id] = (minute, now_nanos + nanos, last_nanos)
        if len(self._spent) > SPENDERS_MAX:
            self._spent.popitem(last=False)

    def per_minute_nanos(self, account_id: AccountId) -> int:
        _minute, now_nanos, last_nanos = self._current(account_id)
        return max(now_nanos, last_nanos)

    def _current(self, account_id: AccountId) -> tuple[int, int, int]:
        minute = int(time.monotonic() // 60)
        then, now_nanos, last_nanos = self._spent.get(account_id, (minute, 0, 0))
        if then == minute:
            return minute, now_nanos, last_nanos
        return minute, 0, now_nanos if then == minute - 1 else 0


class Lending:
    def __init__(
        self, store: QuotaStore, ledger: LedgerClient, epochs: Epochs, metrics: MeterMetrics
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._epochs = epochs
        self._metrics = metrics
        self._in_flight: dict[AccountId, asyncio.Future[LoanReply]] = {}
        self._waiting: list[_Wish] = []
        self._calls: set[asyncio.Task[None]] = set()
        self.rates = SpendRates()

    async def borrow(
        self,
        account_id: AccountId,
        *,
        bucket: int,
        epoch: int,
        gseq: int,
        wanted_nanos: int,
        largest_hold_nanos: int,
    ) -> LoanReply:
        """The ledger's answer, its loans granted in Redis already.

        Raises LedgerUnavailable or StoreUnavailable.
        """
        future = self._in_flight.get(account_id)
        if future is None:
            if len(self._in_flight) >= ACCOUNTS_WAITING_MAX:
                raise LedgerUnavailable("too many accounts wait for a loan")
            loop = asyncio.get_running_loop()
            future = self._in_flight[account_id] = loop.create_future()
            future.add_done_callback(lambda done: self._answered(account_id, done))
            request = LoanRequest(
                account_id=account_id,
                epoch=epoch,
                applied_gseq=gseq,
                wanted_nanos=wanted_nanos,
                largest_hold_nanos=largest_hold_nanos,
                spend_minute_nanos=self.rates.per_minute_nanos(account_id),
            )
            self._waiting.append(_Wish(request, bucket, future))
            loop.call_soon(self._start_call)
        # Others may wait for the same loan: one of them going away must not cancel it.
        return await asyncio.shield(future)

    def refill(
        self, account_id: AccountId, *, bucket: int, epoch: int, gseq: int, largest_hold_nanos: int
    ) -> None:
        """Borrow ahead of need, in the background."""
        if account_id in self._in_flight or len(self._calls) >= CALLS_AT_ONCE:
            return
        borrowing = asyncio.ensure_future(
            self.borrow(
                account_id,
                bucket=bucket,
                epoch=epoch,
                gseq=gseq,
                wanted_nanos=REFILL_HOLDS * largest_hold_nanos,
                largest_hold_nanos=largest_hold_nanos,
            )
        )
        borrowing.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _answered(self, account_id: AccountId, done: asyncio.Future[LoanReply]) -> None:
        self._in_flight.pop(account_id, None)
        if not done.cancelled():
            done.exception()

    def _start_call(self) -> None:
        if not self._waiting or len(self._calls) >= CALLS_AT_ONCE:
            return
        batch, self._waiting = self._waiting[:REQUESTS_PER_CALL_MAX], self._waiting[REQUESTS_PER_CALL_MAX:]
        task = asyncio.create_task(self._lend(batch))
        self._calls.add(task)
        task.add_done_callback(self._call_ended)

    def _call_ended(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        self._start_call()

    async def _lend(self, batch: list[_Wish]) -> None:
        try:
            answered = await self._ledger.lend([wish.request for wish in batch])
            by_account = {reply.account_id: reply for reply in answered.replies}
            await asyncio.gather(
                *(self._grant(wish, by_account.get(wish.request.account_id)) for wish in batch)
            )
        except LedgerUnavailable as error:
            self._metrics.loans["ledger_away"] += len(batch)
            _fail(batch, error)
        finally:
            _fail(batch, LedgerUnavailable("the loan was not answered"))

    async def _grant(self, wish: _Wish, reply: LoanReply | None) -> None:
        if reply is None or reply.error not in ("", "unknown_account", "suspended"):
            self._metrics.loans["stale_epoch"] += 1
            if reply is not None:
                self._epochs.distrust(wish.bucket, cause="ledger_epoch")
            return
        request = wish.request
        lent = sum(loan.nanos for loan in reply.loans)
        try:
            granted = await self._store.grant(
                request.account_id,
                bucket=wish.bucket,
                epoch=request.epoch,
                loans=reply.loans,
                lendable_nanos=reply.available_nanos,
            )
        except StoreUnavailable as error:
            _fail([wish], error)
            return
        match granted:
            case Granted():
                self._metrics.loans["lent" if reply.loans else "nothing"] += 1
                self._metrics.lent_nanos += lent
                if not wish.future.done():
                    wish.future.set_result(reply)
            case Fence(cause, seen_epoch):
                self._epochs.suspect(wish.bucket, seen_epoch, cause=cause)
            case LoansStale(epoch):
                self._epochs.learn(wish.bucket, epoch)


def _fail(batch: list[_Wish], error: Exception) -> None:
    for wish in batch:
        if not wish.future.done():
            wish.future.set_exception(error)
