"""How a balance looks to clients that poll one: OpenAI's old billing endpoints, and our own two.

Chat clients show `hard_limit_usd - total_usage / 100`. So `hard_limit_usd` is everything that was ever
granted to this key, what it used included, and `total_usage` is all it ever used, in cents, whatever
dates the client asks for: the difference is what the key may still spend. Pure.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from services.common.contracts.account import AccountView
from services.common.money import (
    balance_in_quota_units,
    charge_in_quota_units,
    nanos_to_usd,
)

Json = dict[str, Any]


def usd(nanos: int) -> Decimal:
    """Exact."""
    return Decimal(nanos_to_usd(nanos))


def cents(nanos: int) -> Decimal:
    """Exact."""
    return Decimal(nanos_to_usd(nanos)) * 100


def subscription_json(view: AccountView) -> Json:
    granted_usd = usd(view.left_nanos + view.key_used_nanos)
    expires_at_ms = view.key_expires_at_ms
    return {
        "object": "billing_subscription",
        "has_payment_method": True,
        "canceled": False,
        "canceled_at": None,
        "delinquent": False,
        # 0: it doesn't end.
        "access_until": 0 if expires_at_ms is None else expires_at_ms // 1000,
        "soft_limit_usd": granted_usd,
        "hard_limit_usd": granted_usd,
        "system_hard_limit_usd": granted_usd,
        "plan": {"title": "Prepaid", "id": "prepaid"},
        "account_name": view.account_id,
    }


def usage_json(view: AccountView, first_day: str, end_day: str) -> Json:
    """`daily_costs`: the days from `first_day` up to `end_day`, which is not one of them."""
    return {
        "object": "list",
        "daily_costs": [
            {
                "timestamp": _midnight_s(use.day),
                "line_items": [{"name": "all models", "cost": cents(use.used_nanos)}],
            }
            for use in view.days
            if first_day <= use.day < end_day
        ],
        "total_usage": cents(view.key_used_nanos),
    }


def credit_grants_json(view: AccountView) -> Json:
    granted, used, left = (
        usd(nanos) for nanos in (view.left_nanos + view.key_used_nanos, view.key_used_nanos, view.left_nanos)
    )
    grant = {
        "object": "credit_grant",
        "id": view.key_id,
        "grant_amount": granted,
        "used_amount": used,
        "effective_at": view.key_created_at_ms // 1000,
        "expires_at": None if view.key_expires_at_ms is None else view.key_expires_at_ms // 1000,
    }
    return {
        "object": "credit_summary",
        "total_granted": granted,
        "total_used": used,
        "total_available": left,
        "total_paid_available": left,
        "grants": {"object": "list", "data": [grant]},
    }


def balance_json(view: AccountView) -> Json:
    """Amounts as whole nanodollars and, beside them, as decimal strings in USD."""
    return {
        "object": "balance",
        "account_id": view.account_id,
        "currency": "USD",
        **_amount("balance", view.balance_nanos),
        **_amount("held", view.held_nanos),
        **_amount("available", view.available_nanos),
        "stale": view.stale,
        "key": _key_json(view),
    }


def usage_rows_json(view: AccountView) -> Json:
    return {
        "object": "list",
        "data": [
            {
                **msgspec.to_builtins(row),
                "object": "usage",
                "tokens": {
                    name: count for name, count in msgspec.structs.asdict(row.tokens).items() if count
                },
                "cost_usd": nanos_to_usd(row.cost_nanos),
                "cost_units": charge_in_quota_units(row.cost_nanos),
            }
            for row in view.usage
        ],
        "has_more": bool(view.usage_next_before),
        "next_before": view.usage_next_before or None,
        "balance": balance_json(view),
    }


def _key_json(view: AccountView) -> Json:
    quota_nanos = view.key_quota_nanos
    return {
        "id": view.key_id,
        "name": view.key_name,
        "expires_at_ms": view.key_expires_at_ms,
        "unlimited": quota_nanos is None,
        **_amount("used", view.key_used_nanos),
        "used_units": charge_in_quota_units(view.key_used_nanos),
        "quota_nanos": quota_nanos,
        "quota_usd": None if quota_nanos is None else nanos_to_usd(quota_nanos),
        "quota_units": None if quota_nanos is None else balance_in_quota_units(quota_nanos),
        **_amount("left", view.left_nanos),
        "left_units": balance_in_quota_units(view.left_nanos),
    }


def _amount(name: str, nanos: int) -> Json:
    return {f"{name}_nanos": nanos, f"{name}_usd": nanos_to_usd(nanos)}


def _midnight_s(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())
