"""The meter's client of the ledger. Any instance will do: one that doesn't answer is passed over.

Outage behaviour: when none answers in time, LedgerUnavailable; callers fail closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import aiohttp
import msgspec

from services.common import logs
from services.common.contracts.catalogue import Catalogue
from services.common.contracts.lending import (
    Epochs,
    FenceRequest,
    KeySnapshot,
    LoanReplies,
    LoanRequest,
    LoanRequests,
    PostingEntry,
    PostingReply,
    Postings,
    ResolveKey,
)
from services.common.discovery import Instances
from services.common.ids import KeyHash
from services.common.internal_http import InternalCallError, call

LOG = logs.get("meter.ledger_client")
POSTING_TIMEOUT_MS = 10_000
T = TypeVar("T")


class LedgerUnavailable(Exception):
    """No ledger answered in time."""


class LedgerRefused(LedgerUnavailable):
    """The ledger can't read this call; the same one will be refused again."""


class EncodedPostingEntry(msgspec.Struct, frozen=True):
    """A PostingEntry whose record is JSON already."""

    bucket: int
    epoch: int
    record: msgspec.Raw
    loan_nanos: int


class EncodedPostings(msgspec.Struct, frozen=True):
    entries: tuple[EncodedPostingEntry, ...]


class LedgerClient:
    """All methods raise LedgerUnavailable."""

    def __init__(self, instances: Instances, session: aiohttp.ClientSession, *, timeout_ms: int) -> None:
        self._instances = instances
        self._session = session
        self._timeout_ms = timeout_ms

    async def resolve_key(self, key_hash: KeyHash) -> KeySnapshot | None:
        """None: there is no such key."""
        try:
            return await self._call("/internal/v1/keys/resolve", KeySnapshot, body=ResolveKey(key_hash))
        except InternalCallError as error:
            if error.status == 404:
                return None
            raise LedgerUnavailable(str(error)) from error

    async def lend(self, requests: Sequence[LoanRequest]) -> LoanReplies:
        return await self._ask("/internal/v1/loans", LoanReplies, body=LoanRequests(tuple(requests)))

    async def post(
        self, entries: Sequence[PostingEntry], *, timeout_ms: int = POSTING_TIMEOUT_MS
    ) -> PostingReply:
        """Raises also LedgerRefused."""
        return await self._ask(
            "/internal/v1/postings", PostingReply, body=Postings(tuple(entries)), timeout_ms=timeout_ms
        )

    async def post_encoded(self, entries: Sequence[EncodedPostingEntry]) -> PostingReply:
        """As `post`, for records that are JSON already. Raises also LedgerRefused."""
        body = EncodedPostings(tuple(entries))
        return await self._ask(
            "/internal/v1/postings", PostingReply, body=body, timeout_ms=POSTING_TIMEOUT_MS
        )

    async def epochs(self) -> Epochs:
        return await self._ask("/internal/v1/epochs", Epochs)

    async def fence(self, request: FenceRequest) -> Epochs:
        return await self._ask("/internal/v1/epochs/fence", Epochs, body=request, timeout_ms=5_000)

    async def catalogue(self) -> Catalogue:
        return await self._ask("/internal/v1/catalogue", Catalogue)

    async def _ask(
        self, path: str, answer_type: type[T], *, body: object | None = None, timeout_ms: int | None = None
    ) -> T:
        try:
            return await self._call(path, answer_type, body=body, timeout_ms=timeout_ms)
        except InternalCallError as error:
            LOG.warning("the ledger refused a call", path=path, status=error.status)
            if error.status in (400, 413, 422):
                raise LedgerRefused(str(error)) from error
            raise LedgerUnavailable(str(error)) from error

    async def _call(
        self, path: str, answer_type: type[T], *, body: object | None = None, timeout_ms: int | None = None
    ) -> T:
        """Raises InternalCallError when an instance refuses the call, LedgerUnavailable when none answers."""
        urls = self._instances.current or await self._instances.refresh()
        for url in urls:
            try:
                return await call(
                    self._session,
                    f"{url}{path}",
                    answer_type,
                    body=body,
                    timeout_ms=timeout_ms or self._timeout_ms,
                )
            except InternalCallError as error:
                # Another one may do better; a repeated loan or posting changes nothing.
                if error.status and error.status < 500:
                    raise
        raise LedgerUnavailable(f"no ledger answered {path}")
