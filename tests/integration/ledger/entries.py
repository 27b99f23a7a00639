"""Accounts with money, and finished sessions, for tests."""

from __future__ import annotations

from typing import Any

import msgspec

from services.common.contracts.charging import UsageRecord
from services.common.contracts.lending import LoanRequest, PostingEntry
from services.common.ids import AccountId, EdgeId, KeyId, bucket_of, new_session_id
from services.common.money import NANOS_PER_USD, PriceVector, TokenCounts, cost_nanos
from services.ledger import accounts
from services.ledger.database import Database
from services.ledger.loans import Lender

MODEL = "test-model"
PRICE = PriceVector(input=1_000_000, output=3_000_000)


async def account_with(database: Database, nanos: int) -> AccountId:
    account_id = await accounts.create_account(database)
    if nanos:
        await accounts.credit(
            database,
            account_id=account_id,
            nanos=nanos,
            reason="test",
            actor="test",
            ref=f"start:{account_id}",
        )
    return account_id


async def lend(
    lender: Lender, account_id: AccountId, nanos: int, *, epoch: int = 1, applied_gseq: int = 0
) -> int:
    """Ask for a loan of at least `nanos`; returns what is not applied yet, the new loan included."""
    request = LoanRequest(
        account_id=account_id,
        epoch=epoch,
        applied_gseq=applied_gseq,
        wanted_nanos=nanos,
        largest_hold_nanos=0,
    )
    [reply] = await lender.lend([request])
    assert reply.error == ""
    return sum(loan.nanos for loan in reply.loans)


async def set_price(database: Database, *, model: str = MODEL, price: PriceVector = PRICE) -> None:
    """Version 1 of `model`."""
    await database.execute("INSERT INTO model (id, owner, kind) VALUES ($1, 'test', 'chat')", model)
    await database.execute(
        "INSERT INTO price (model_id, version, starts_at, input_micros, cached_input_micros,"
        " cache_write_micros, audio_input_micros, output_micros, reasoning_micros, audio_output_micros)"
        " VALUES ($1, 1, now(), $2, 0, 0, 0, $3, 0, 0)",
        model,
        price.input,
        price.output,
    )


def entry(
    account_id: str, *, cost: int, loan: int | None = None, epoch: int = 1, **changes: Any
) -> PostingEntry:
    """A session that cost `cost` nanodollars (a multiple of 1000), by default all from its loan."""
    tokens = TokenCounts(input=cost // 1000)
    record = UsageRecord(
        session_id=new_session_id(),
        account_id=AccountId(account_id),
        key_id=KeyId(f"key-of-{account_id}"),
        edge_id=EdgeId("edge-1"),
        endpoint="/v1/chat/completions",
        model=MODEL,
        price_version=1,
        ratio_ppm=1_000_000,
        tokens=tokens,
        cost_nanos=cost,
        held_nanos=cost,
        stream=True,
        outcome="complete",
        usage_source="upstream",
    )
    assert cost_nanos(tokens, PRICE, 1_000_000) == cost
    record = msgspec.structs.replace(record, **changes)
    return PostingEntry(
        bucket=bucket_of(account_id), epoch=epoch, record=record, loan_nanos=cost if loan is None else loan
    )


DOLLAR = NANOS_PER_USD
