"""Accounts: create, credit, suspend, look at."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from services.common.ids import new_uuid7
from services.common.money import TOKEN_CLASSES
from services.ledger import accounts, balances, usage
from services.ledger.api.amounts import signed_nanos
from services.ledger.api.caller import CUSTOMERS, MONEY
from services.ledger.api.endpoint import Call, Nothing, endpoint
from services.ledger.operators import normalized_email

Limit = Annotated[int, Meta(ge=1, le=1000)]


class CreateAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    email: str | None = None


class AccountCreated(msgspec.Struct, frozen=True):
    account_id: str


class AccountView(msgspec.Struct, frozen=True):
    """`state`: `active` or `suspended`. `ratio_ppm`: the group's price ratio in parts per million."""

    account_id: str
    email: str | None
    state: str
    group: str
    ratio_ppm: int
    created_at_ms: int


class Accounts(msgspec.Struct, frozen=True):
    """`next_after`: ask again with it as `after`; None: these were the last."""

    accounts: tuple[AccountView, ...]
    next_after: str | None


class AccountsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after: str = ""
    limit: Limit = 100


class Credit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`usd`: at most nine decimals; below 0 it takes from what is available, and claims the rest: unheld
    loans are recalled for it, and whatever comes to the account serves it first. The same `ref` is carried
    out once."""

    usd: Decimal
    reason: str
    ref: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class BalanceView(msgspec.Struct, frozen=True):
    """`available_nanos` = balance - held. `stale`: no meter answered; holds are unknown."""

    account_id: str
    balance_nanos: int
    held_nanos: int
    available_nanos: int
    stale: bool


class Credited(BalanceView, frozen=True):
    """The balance afterwards. `moved_nanos`: added, or taken at once; `claimed_nanos`: what was missing then.
    `is_new` false: this `ref` had been carried out before."""

    transaction_id: int
    moved_nanos: int
    claimed_nanos: int
    is_new: bool
    ref: str


class UsageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`before`: a session id; only older ones."""

    limit: Limit = 100
    before: str | None = None


class UsageRow(msgspec.Struct, frozen=True):
    """One finished request. Token classes are disjoint. `time`: when it began, in Unix milliseconds."""

    session_id: str
    time: int
    account_id: str
    key_id: str
    endpoint: str
    model: str
    stream: bool
    tokens: dict[str, int]
    price_version: int
    ratio_ppm: int
    cost_nanos: int
    overrun_nanos: int
    held_nanos: int
    outcome: str
    usage_source: str
    channel_id: str
    upstream_model: str
    edge_id: str
    request_id: str
    first_byte_ms: int
    duration_ms: int
    usage_json: str
    flags: tuple[str, ...]


class UsageRows(msgspec.Struct, frozen=True):
    """`next_before`: ask again with it as `before`; None: these were the last."""

    rows: tuple[UsageRow, ...]
    next_before: str | None


async def create_account(call: Call[CreateAccount, Nothing]) -> AccountCreated:
    email = None if call.body.email is None else normalized_email(call.body.email)
    account_id = await accounts.create_account(call.ledger.database, email=email, actor=call.caller.actor)
    return AccountCreated(account_id=account_id)


async def list_accounts(call: Call[Nothing, AccountsQuery]) -> Accounts:
    query = call.query
    found = await accounts.list_accounts(call.ledger.database, after=query.after, limit=query.limit)
    return Accounts(
        accounts=tuple(_account(account) for account in found),
        next_after=found[-1].id if len(found) == query.limit else None,
    )


async def get_account(call: Call[Nothing, Nothing]) -> AccountView:
    return _account(await accounts.get_account(call.ledger.database, call.path["account_id"]))


async def credit_account(call: Call[Credit, Nothing]) -> Credited:
    account_id, body = call.path["account_id"], call.body
    ref = body.ref or new_uuid7()
    movement = await accounts.credit(
        call.ledger.database,
        account_id=account_id,
        nanos=signed_nanos(body.usd, "usd"),
        reason=body.reason,
        actor=call.caller.actor,
        ref=ref,
    )
    if movement.claimed_nanos:
        await call.ledger.recalls.try_recall(account_id)
    balance = await balances.read(call.ledger.database, call.ledger.meters, account_id=account_id)
    return Credited(
        transaction_id=movement.transaction_id,
        moved_nanos=movement.moved_nanos,
        claimed_nanos=movement.claimed_nanos,
        is_new=movement.is_new,
        ref=ref,
        **_balance(balance),
    )


async def suspend_account(call: Call[Nothing, Nothing]) -> AccountView:
    ledger, account_id = call.ledger, call.path["account_id"]
    await accounts.suspend(ledger.database, ledger.meters, account_id=account_id, actor=call.caller.actor)
    await ledger.recalls.try_recall(account_id, all_unheld=True)
    return await get_account(call)


async def resume_account(call: Call[Nothing, Nothing]) -> AccountView:
    ledger, account_id = call.ledger, call.path["account_id"]
    await accounts.resume(ledger.database, ledger.meters, account_id=account_id, actor=call.caller.actor)
    return await get_account(call)


async def get_balance(call: Call[Nothing, Nothing]) -> BalanceView:
    ledger = call.ledger
    balance = await balances.read(ledger.database, ledger.meters, account_id=call.path["account_id"])
    return BalanceView(**_balance(balance))


async def list_usage(call: Call[Nothing, UsageQuery]) -> UsageRows:
    account_id, query = call.path["account_id"], call.query
    await accounts.get_account(call.ledger.database, account_id)
    found = await usage.list_usage(
        call.ledger.database, account_id=account_id, before=query.before, limit=query.limit
    )
    return UsageRows(
        rows=tuple(_usage_row(row) for row in found),
        next_before=found[-1].session_id if len(found) == query.limit else None,
    )


def _account(account: accounts.Account) -> AccountView:
    return AccountView(
        account_id=account.id,
        email=account.email,
        state=account.state,
        group=account.group_name,
        ratio_ppm=account.ratio_ppm,
        created_at_ms=int(account.created_at.timestamp() * 1000),
    )


def _balance(balance: balances.Balance) -> dict[str, Any]:
    return {
        "account_id": balance.account_id,
        "balance_nanos": balance.balance_nanos,
        "held_nanos": balance.held_nanos,
        "available_nanos": balance.available_nanos,
        "stale": balance.stale,
    }


def _usage_row(row: usage.Usage) -> UsageRow:
    same = set(UsageRow.__struct_fields__) - {"tokens", "time", "flags"}
    return UsageRow(
        time=row.started_at_ms,
        tokens={name: getattr(row.tokens, name) for name in TOKEN_CLASSES},
        flags=tuple(row.flags),
        **{name: getattr(row, name) for name in same},
    )


_ONE = "/accounts/{account_id}"
ENDPOINTS = (
    endpoint(
        "POST",
        "/accounts",
        "Create an account with a balance of 0.",
        create_account,
        AccountCreated,
        body=CreateAccount,
        roles=CUSTOMERS,
    ),
    endpoint(
        "GET",
        "/accounts",
        "Accounts, in the order of their ids.",
        list_accounts,
        Accounts,
        query=AccountsQuery,
    ),
    endpoint("GET", _ONE, "One account.", get_account, AccountView),
    endpoint(
        "POST",
        f"{_ONE}/credits",
        "Add credit, with a journal entry.",
        credit_account,
        Credited,
        body=Credit,
        roles=MONEY,
    ),
    endpoint(
        "POST",
        f"{_ONE}/suspend",
        "Stop all use of an account.",
        suspend_account,
        AccountView,
        roles=CUSTOMERS,
    ),
    endpoint("POST", f"{_ONE}/resume", "Undo a suspension.", resume_account, AccountView, roles=CUSTOMERS),
    endpoint("GET", f"{_ONE}/balance", "What an account has.", get_balance, BalanceView),
    endpoint(
        "GET",
        f"{_ONE}/usage",
        "Finished requests, the newest first.",
        list_usage,
        UsageRows,
        query=UsageQuery,
    ),
)
