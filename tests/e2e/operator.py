"""An operator on the JSON API: the command line without its process starts, for tests that do a lot."""

from __future__ import annotations

import asyncio
from typing import Any

from services.commands.console_client import ask, find_target, quote
from services.common.ids import new_uuid7
from tests.e2e.stack import Customer, Stack


class Operator:
    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._target = find_target(stack.data_dir)

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return await asyncio.to_thread(ask, self._target, method, path, body)

    async def customer(self, usd: str, **key: Any) -> ApiCustomer:
        """A fresh account with `usd` and a key. `key`: fields of POST /accounts/{id}/keys."""
        account_id = (await self.call("POST", "/accounts", {}))["account_id"]
        if usd != "0":
            credit = {"usd": usd, "reason": "test", "ref": f"test:{new_uuid7()}"}
            await self.call("POST", f"/accounts/{account_id}/credits", credit)
        made = await self.call("POST", f"/accounts/{account_id}/keys", key)
        return ApiCustomer(self.stack, account_id, made["api_key"], made["key_id"])

    async def price(self, model: str, usd: str = "1") -> dict[str, Any]:
        """Input and output at the same price."""
        return await self.call("PUT", f"/models/{quote(model)}/price", {"input": usd, "output": usd})

    async def channel(self, **settings: Any) -> str:
        """Its id. Base URLs may be private."""
        body = {"credentials": ["sk-upstream"], "allow_private_addresses": True, **settings}
        channel_id: str = (await self.call("POST", "/channels", body))["id"]
        return channel_id

    async def channel_view(self, channel_id: str) -> dict[str, Any]:
        channels = (await self.call("GET", "/channels"))["channels"]
        view: dict[str, Any] = next(channel for channel in channels if channel["id"] == channel_id)
        return view


class ApiCustomer(Customer):
    """Reads its books over the JSON API."""

    def balance(self) -> dict[str, int]:
        target = find_target(self.stack.data_dir)
        return ask(target, "GET", f"/accounts/{self.account_id}/balance")

    def usage(self) -> list[dict[str, Any]]:
        """Newest first."""
        target = find_target(self.stack.data_dir)
        rows: list[dict[str, Any]] = ask(target, "GET", f"/accounts/{self.account_id}/usage?limit=1000")[
            "rows"
        ]
        return rows
