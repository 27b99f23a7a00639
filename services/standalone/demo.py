"""The demo account and its key, made on the first start through the operator's API like any other."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from services.commands.console_client import ConsoleError, Target, ask, quote
from services.standalone.data_directory import replace_file

DEMO_EMAIL = "demo@meterway.local"
DEMO_CREDIT_USD = "5"


@dataclass(frozen=True)
class Demo:
    account_id: str
    api_key: str


async def find_or_make_demo(target: Target, memory: Path) -> Demo:
    """The demo in the file `memory`, else a new one, which is kept there. Raises ConsoleError."""
    return await asyncio.to_thread(_find_or_make, target, memory)


def _find_or_make(target: Target, memory: Path) -> Demo:
    if memory.exists():
        return Demo(**json.loads(memory.read_text()))
    demo = _make(target)
    replace_file(memory, json.dumps(asdict(demo)) + "\n", mode=0o600)
    return demo


def _make(target: Target) -> Demo:
    account_id = _account(target)
    # The reference makes it one credit, also when an earlier first start was killed after it.
    credit = {"usd": DEMO_CREDIT_USD, "reason": "demo credit", "ref": f"demo:{account_id}"}
    ask(target, "POST", f"/accounts/{quote(account_id)}/credits", credit)
    key = ask(target, "POST", f"/accounts/{quote(account_id)}/keys", {"name": "demo"})
    return Demo(account_id=account_id, api_key=key["api_key"])


def _account(target: Target) -> str:
    try:
        return str(ask(target, "POST", "/accounts", {"email": DEMO_EMAIL})["account_id"])
    except ConsoleError:
        accounts = ask(target, "GET", f"/accounts?email={quote(DEMO_EMAIL)}")["accounts"]
        if not accounts:
            raise
        return str(accounts[0]["account_id"])
