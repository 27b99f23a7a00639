"""A customer as the tests of clients see it: what it was charged, beside what the upstream sent."""

from __future__ import annotations

import json
import math
import time
import urllib.request
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from services.commands.console_client import Target, ask, find_target, quote
from tests.e2e.stack import ROOT, Emulator, Stack

USD = 1_000_000_000
SETTLED_SECONDS_MAX = 20.0

Usage = dict[str, Any]


def _seed_prices() -> dict[str, dict[str, Fraction]]:
    """Nanodollars per token, by model and token class, straight from the published list prices."""
    models = json.loads((ROOT / "services/ledger/seed/seed_models.json").read_text())
    models = models["models"] if isinstance(models, dict) else models
    return {
        model["id"]: {name: Fraction(usd) * 1_000 for name, usd in model["list_price"].items()}
        for model in models
        if "list_price" in model
    }


PRICES = _seed_prices()


def cost_of(prices: dict[str, Fraction], usage: Usage) -> int:
    """What OpenAI-shaped `usage` costs in nanodollars, rounded up once. The prompt includes cached tokens."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    cost: Fraction = (usage["prompt_tokens"] - cached) * prices["input"]
    cost += cached * prices.get("cached_input", prices["input"])
    cost += (usage.get("completion_tokens") or 0) * prices["output"]
    return math.ceil(cost)


@dataclass
class Payer:
    """An account with a balance and one key."""

    target: Target = field(repr=False)
    edge_url: str
    account_id: str
    api_key: str
    credit_nanos: int
    emulator: Emulator
    prices: dict[str, dict[str, Fraction]] = field(default_factory=lambda: dict(PRICES), repr=False)

    @classmethod
    def create(cls, stack: Stack, usd: int = 1) -> Payer:
        assert stack.emulator is not None
        target = find_target(stack.data_dir)
        account_id = ask(target, "POST", "/accounts", {})["account_id"]
        path = f"/accounts/{account_id}"
        if usd:
            ask(target, "POST", f"{path}/credits", {"usd": str(usd), "reason": "test"})
        key = ask(target, "POST", f"{path}/keys", {})
        return cls(target, stack.ready["edge_url"], account_id, key["api_key"], usd * USD, stack.emulator)

    @property
    def base_url(self) -> str:
        return f"{self.edge_url}/v1"

    def set_price(self, model: str, *, input_usd: str, output_usd: str) -> None:
        """USD per 1M tokens."""
        body = {"input": input_usd, "output": output_usd}
        ask(self.target, "PUT", f"/models/{quote(model)}/price", body)
        self.prices[model] = {"input": Fraction(input_usd) * 1_000, "output": Fraction(output_usd) * 1_000}

    def balance(self) -> dict[str, Any]:
        return ask(self.target, "GET", f"/accounts/{self.account_id}/balance")

    def rows(self) -> list[dict[str, Any]]:
        """Usage, oldest first."""
        rows: list[dict[str, Any]] = []
        page = f"/accounts/{self.account_id}/usage?limit=1000"
        answer = ask(self.target, "GET", page)
        rows += answer["rows"]
        while answer["next_before"]:
            answer = ask(self.target, "GET", f"{page}&before={answer['next_before']}")
            rows += answer["rows"]
        return rows[::-1]

    def settled_any(self) -> list[dict[str, Any]]:
        """Usage rows with a cost, oldest first, once nothing is held and all that was spent is posted."""
        give_up_at = time.monotonic() + SETTLED_SECONDS_MAX
        while True:
            balance = self.balance()
            rows = [row for row in self.rows() if row["cost_nanos"]]
            spent = sum(row["cost_nanos"] for row in rows)
            if balance["held_nanos"] == 0 and balance["balance_nanos"] == self.credit_nanos - spent:
                return rows
            assert time.monotonic() < give_up_at, f"never settled: {balance}, {rows}"
            time.sleep(0.05)

    def settled(self, charged: int) -> list[dict[str, Any]]:
        """Usage rows with a cost, oldest first, once there are `charged` of them and nothing is held.

        By then the balance must be the credit less their sum: to the nanodollar.
        """
        give_up_at = time.monotonic() + SETTLED_SECONDS_MAX
        while True:
            balance = self.balance()
            rows = [row for row in self.rows() if row["cost_nanos"]]
            if balance["held_nanos"] == 0 and len(rows) >= charged:
                break
            assert time.monotonic() < give_up_at, f"never settled: {balance}, {rows}"
            time.sleep(0.05)
        assert len(rows) == charged, rows
        spent = sum(row["cost_nanos"] for row in rows)
        assert balance["balance_nanos"] == balance["available_nanos"] == self.credit_nanos - spent
        return rows

    def check(self, *, charged: int) -> list[dict[str, Any]]:
        """Each of the `charged` usage rows costs exactly what the emulator's log says it must."""
        rows = self.settled(charged)
        sent = sent_by(self.emulator)
        for row in rows:
            usage = sent.pop(row["request_id"])["usage"]
            assert usage is not None, f"charged without usage: {row}"
            assert row["cost_nanos"] == cost_of(self.prices[row["model"]], usage), (row, usage)
            assert row["usage_source"] == "upstream"
        return rows


def sent_by(emulator: Emulator) -> dict[str, dict[str, Any]]:
    """The emulator's rows by the `x-request-id` that it received: the session's id."""
    return {row["x_request_id"]: row for row in emulator_rows(emulator)}


def emulator_rows(emulator: Emulator) -> list[dict[str, Any]]:
    """Oldest first."""
    with urllib.request.urlopen(f"http://127.0.0.1:{emulator.port}/emulator/log", timeout=10) as answer:
        document = json.load(answer)
        rows: list[dict[str, Any]] = document["rows"] if isinstance(document, dict) else document
        return rows
