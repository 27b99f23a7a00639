"""A ledger for the meter's tests: it lends from balances and keeps what is posted, over real HTTP."""

from __future__ import annotations

import msgspec
from aiohttp import web

from services.common.contracts.catalogue import Catalogue, Model, PriceVersion
from services.common.contracts.charging import UsageRecord
from services.common.contracts.lending import (
    Epochs,
    FenceRequest,
    KeyLimits,
    KeySnapshot,
    KeyUnknown,
    Loan,
    LoanReplies,
    LoanReply,
    LoanRequest,
    LoanRequests,
    PostingReply,
    Postings,
    ResolveKey,
)
from services.common.ids import BUCKETS, AccountId, KeyId, bucket_of, hash_api_key
from services.common.internal_http import typed_response
from services.common.money import NANOS_PER_USD, PriceVector

LOAN_MIN = NANOS_PER_USD
# $10 for 1M input tokens, $30 for 1M output tokens.
PRICE = PriceVector(input=10_000_000, output=30_000_000)


class FakeLedger:
    """`balances`: what is available; `escrow[account, epoch]`: what is lent and not settled."""

    def __init__(self) -> None:
        self.balances: dict[str, int] = {}
        self.escrow: dict[tuple[str, int], int] = {}
        self.loans: dict[tuple[str, int], list[int]] = {}
        self.frozen: dict[str, int] = {}
        self.keys: dict[str, KeySnapshot] = {}
        self.epochs = [1] * BUCKETS
        self.posted: dict[str, UsageRecord] = {}
        self.past_redis: set[str] = set()
        self.duplicates = 0
        self.loan_requests: list[LoanRequest] = []
        self.fences: list[FenceRequest] = []
        self.is_away = False
        self.refused_session = ""
        self.price_versions = [PriceVersion(1, 0, PRICE)]
        self.models: dict[str, Model] = {}
        self.catalogue_revision = 1
        self._revision = 0
        self.add_model("gpt-4o", output_tokens_max=16_384, context_tokens=128_000)
        self.add_model("thinker", output_tokens_max=100_000, hidden_reasoning=True)
        self.add_model("unknown-max")
        self.models["free"] = Model("free", "us", "chat", (PriceVersion(1, 0, PriceVector()),))
        self.models["embedder"] = Model(
            "embedder", "us", "embedding", (PriceVersion(1, 0, PriceVector(input=20_000)),)
        )
        self.models["unpriced"] = Model("unpriced", "us", "chat", ())

    def add_model(self, model_id: str, **facts: object) -> None:
        self.models[model_id] = Model(model_id, "openai", "chat", tuple(self.price_versions), **facts)  # type: ignore[arg-type]

    def add_account(self, name: str, balance_nanos: int) -> AccountId:
        account_id = AccountId(f"acct_{name}")
        self.balances[account_id] = balance_nanos
        return account_id

    def add_key(self, account_id: AccountId, name: str = "key", **limits: object) -> KeySnapshot:
        self._revision += 1
        snapshot = KeySnapshot(
            key_hash=hash_api_key(f"{account_id}/{name}"),
            key_id=KeyId(f"key_{account_id}_{name}"),
            account_id=account_id,
            bucket=bucket_of(account_id),
            revision=self._revision,
            key_state="active",
            account_state="active",
            ratio_ppm=1_000_000,
            limits=KeyLimits(**limits),  # type: ignore[arg-type]
        )
        self.keys[snapshot.key_hash] = snapshot
        return snapshot

    def change_key(self, snapshot: KeySnapshot, **changes: object) -> KeySnapshot:
        self._revision += 1
        changed = msgspec.structs.replace(snapshot, revision=self._revision, **changes)
        self.keys[snapshot.key_hash] = changed
        return changed

    def total(self, account_id: AccountId) -> int:
        """Available and lent: what this account still owns."""
        lent = sum(nanos for (owner, _epoch), nanos in self.escrow.items() if owner == account_id)
        return self.balances[account_id] + lent

    def make_app(self) -> web.Application:
        @web.middleware
        async def maybe_away(request: web.Request, handler: object) -> web.StreamResponse:
            if self.is_away:
                raise web.HTTPServiceUnavailable
            return await handler(request)  # type: ignore[operator]

        app = web.Application(middlewares=[maybe_away], client_max_size=2**26)
        app.router.add_post("/internal/v1/keys/resolve", self._resolve)
        app.router.add_post("/internal/v1/loans", self._lend)
        app.router.add_post("/internal/v1/postings", self._post)
        app.router.add_post("/internal/v1/epochs/fence", self._fence)
        app.router.add_get("/internal/v1/epochs", self._epochs)
        app.router.add_get("/internal/v1/catalogue", self._catalogue)
        return app

    async def _resolve(self, request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read(), type=ResolveKey)
        found = self.keys.get(body.key_hash)
        return typed_response(KeyUnknown(), 404) if found is None else typed_response(found)

    async def _lend(self, request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read(), type=LoanRequests)
        return typed_response(LoanReplies(tuple(self._lend_one(one) for one in body.requests)))

    def _lend_one(self, request: LoanRequest) -> LoanReply:
        self.loan_requests.append(request)
        account_id, epoch = request.account_id, self.epochs[bucket_of(request.account_id)]
        if request.epoch != epoch:
            return LoanReply(account_id, epoch, error="stale_epoch")
        loans = self.loans.setdefault((account_id, epoch), [])
        if len(loans) == request.applied_gseq:
            wanted = max(LOAN_MIN, request.wanted_nanos, 2 * request.largest_hold_nanos)
            nanos = min(self.balances[account_id], wanted)
            if nanos:
                self.balances[account_id] -= nanos
                self.escrow[account_id, epoch] = self.escrow.get((account_id, epoch), 0) + nanos
                loans.append(nanos)
        news = [Loan(gseq, nanos) for gseq, nanos in enumerate(loans, 1) if gseq > request.applied_gseq]
        frozen = self.frozen.get(account_id, 0)
        return LoanReply(account_id, epoch, tuple(news), self.balances[account_id], frozen)

    async def _post(self, request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read(), type=Postings)
        if any(entry.record.session_id == self.refused_session for entry in body.entries):
            raise web.HTTPBadRequest
        duplicates = 0
        for entry in body.entries:
            record = entry.record
            if record.session_id in self.posted:
                duplicates += 1
                continue
            assert 0 <= entry.loan_nanos <= record.cost_nanos
            self.posted[record.session_id] = record
            if entry.past_redis:
                self.past_redis.add(record.session_id)
            if entry.loan_nanos:
                self.escrow[record.account_id, entry.epoch] -= entry.loan_nanos
                assert self.escrow[record.account_id, entry.epoch] >= 0
            self.balances[record.account_id] -= record.cost_nanos - entry.loan_nanos
        self.duplicates += duplicates
        return typed_response(PostingReply(len(body.entries) - duplicates, duplicates, 0))

    async def _fence(self, request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read(), type=FenceRequest)
        self.fences.append(body)
        for bucket, seen in zip(body.buckets, body.seen_epochs, strict=True):
            self.epochs[bucket] = max(self.epochs[bucket], seen) + 1
        return await self._epochs(request)

    async def _epochs(self, _request: web.Request) -> web.Response:
        return typed_response(Epochs(tuple(self.epochs)))

    async def _catalogue(self, _request: web.Request) -> web.Response:
        return typed_response(Catalogue(self.catalogue_revision, tuple(self.models.values())))
