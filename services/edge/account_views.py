"""Balance and use of a key, for clients that poll them: asked of the ledger, at most once a second per key.

Outage behaviour: no ledger, or too many questions at once: 503 with retry-after. Requests that are charged
don't come by here.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from services.common.contracts.account import AccountAnswer, AccountQuery, AccountView
from services.common.errors import MeterwayError, Unavailable
from services.common.internal_http import InternalCallError
from services.edge.errors_http import error_of

ANSWERS_MAX: Final = 10_000
ASKING_MAX: Final = 64
TTL_S: Final = 1.0
RETRY_AFTER_MS: Final = 1_000

Ask = Callable[[AccountQuery], Awaitable[AccountAnswer]]


class AccountViews:
    """`ask`: the ledger's answer, or InternalCallError."""

    def __init__(self, ask: Ask, *, ttl_s: float = TTL_S) -> None:
        self._ask = ask
        self._ttl_s = ttl_s
        self._answers: OrderedDict[AccountQuery, tuple[float, AccountAnswer]] = OrderedDict()
        self._asking: dict[AccountQuery, asyncio.Task[AccountAnswer]] = {}

    async def view(self, query: AccountQuery) -> AccountView:
        """At most a second old. Raises MeterwayError: what the ledger refused, or Unavailable."""
        answer = self._known(query)
        if answer is None:
            answer = await self._fresh(query)
        if answer.view is not None:
            return answer.view
        raise error_of(answer.refused) if answer.refused is not None else MeterwayError()

    def _known(self, query: AccountQuery) -> AccountAnswer | None:
        until_s, answer = self._answers.get(query, (0.0, None))
        return answer if until_s > time.monotonic() else None

    async def _fresh(self, query: AccountQuery) -> AccountAnswer:
        asking = self._asking.get(query)
        if asking is None:
            if len(self._asking) >= ASKING_MAX:
                raise _unavailable()
            asking = asyncio.create_task(self._remembered(query))
            self._asking[query] = asking
            asking.add_done_callback(lambda done: self._asked(query, done))
        try:
            # Others may wait for the same answer: one of them going away must not cancel it.
            return await asyncio.shield(asking)
        except InternalCallError as error:
            raise _unavailable() from error

    async def _remembered(self, query: AccountQuery) -> AccountAnswer:
        # An answer is as old as its question.
        until_s = time.monotonic() + self._ttl_s
        answer = await self._ask(query)
        self._answers[query] = (until_s, answer)
        self._answers.move_to_end(query)
        if len(self._answers) > ANSWERS_MAX:
            self._answers.popitem(last=False)
        return answer

    def _asked(self, query: AccountQuery, asked: asyncio.Task[AccountAnswer]) -> None:
        self._asking.pop(query, None)
        if not asked.cancelled():
            asked.exception()  # Seen, also when everyone who waited has gone away.


def _unavailable() -> Unavailable:
    return Unavailable(
        "The balance can't be read right now. Please try again shortly.", retry_after_ms=RETRY_AFTER_MS
    )
