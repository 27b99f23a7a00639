"""Verification, repair and exceptions as the operator sees them: over HTTP and on the command line."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from services.cli import main
from services.ledger.app import LedgerApps
from services.ledger.sealing import Sealer
from tests.integration.ledger_catalogue.conftest import TOKEN, Api, api, apps, console, meter, settings
from tests.integration.ledger_chain.conftest import ByHand

__all__ = ["api", "apps", "console", "meter", "settings"]


@pytest.fixture
async def sealed(api: Api, apps: LedgerApps) -> str:
    """An account with one dollar, sealed."""
    account_id: str = (await api.call("POST", "/accounts"))["account_id"]
    await api.call("POST", f"/accounts/{account_id}/credits", {"usd": "1", "reason": "gift"})
    while not await apps.ledger.database.fetchval("SELECT count(*) FROM journal_block"):
        await Sealer(apps.ledger.database, apps.ledger.metrics).seal_due()
    return account_id


@pytest.fixture
def command_line(
    console: TestClient[web.Request, web.Application],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    monkeypatch.setenv("METERWAY_CONSOLE_URL", str(console.make_url("")))
    monkeypatch.setenv("METERWAY_OPERATOR_TOKEN", TOKEN)

    async def run(*words: str) -> tuple[int, Any]:
        code = await asyncio.to_thread(main, [*words, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


async def test_verify_exits_with_1_when_a_row_was_altered(
    sealed: str, command_line: Any, by_hand: ByHand
) -> None:
    code, before = await command_line("verify")
    assert (code, before["ok"], before["blocks"], before["faults"]) == (0, True, 1, [])
    noted = f"{before['head']['number']}:{before['head']['hash']}"
    assert (await command_line("verify", "--noted", noted))[0] == 0
    assert (await command_line("verify", "--noted", f"1:{'0' * 64}"))[0] == 1
    await by_hand("UPDATE journal_transaction SET reason = 'bribe'")
    code, after = await command_line("verify")
    assert (code, after["ok"]) == (1, False)
    [fault] = after["faults"]
    assert (fault["what"], fault["field"], fault["expected"], fault["found"]) == (
        "transaction altered", "reason", "gift", "bribe"
    )  # fmt: skip
    assert (await command_line("verify", "--from-block", "2"))[0] == 0


async def test_the_ledger_seals_in_the_background(api: Api, apps: LedgerApps) -> None:
    account_id = (await api.call("POST", "/accounts"))["account_id"]
    await api.call("POST", f"/accounts/{account_id}/credits", {"usd": "1", "reason": "gift"})
    for _attempt in range(100):
        if await apps.ledger.database.fetchval("SELECT count(*) FROM journal_block"):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("nothing was sealed in 10 s")


async def test_verify_refuses_what_makes_no_sense(api: Api) -> None:
    for body in ({"from_block": 0}, {"noted": {"number": 1, "hash": "x"}}, {"from": 1}, {"from_block": 7}):
        assert (await api.call("POST", "/verify", body, status=400))["error"]["code"] == "invalid_request"


async def test_an_exception_is_listed_and_resolved_once(
    api: Api, apps: LedgerApps, command_line: Any
) -> None:
    number = await apps.ledger.database.fetchval(
        "INSERT INTO exception_list (kind, ref, detail) VALUES ('bad_entry', '1', '{}') RETURNING id"
    )
    assert (await command_line("reconcile"))[0] == 1
    code, listed = await command_line("exceptions", "list")
    assert (code, [row["id"] for row in listed["exceptions"]]) == (0, [number])
    code, resolved = await command_line("exceptions", "resolve", str(number), "--reason", "was a test")
    assert (code, resolved["kind"], resolved["resolved_at_ms"] > 0) == (0, "bad_entry", True)
    assert (await command_line("exceptions", "list"))[1]["exceptions"] == []
    assert len((await command_line("exceptions", "list", "--all"))[1]["exceptions"]) == 1
    (entry,) = (await api.call("GET", f"/audit?target=exception:{number}"))["entries"]
    assert (entry["actor"], entry["action"], entry["detail"]["after"]) == (
        "token", "exception.resolve", {"reason": "was a test"}
    )  # fmt: skip
    again = await api.call("POST", f"/exceptions/{number}/resolve", {"reason": "x"}, status=409)
    assert again["error"]["code"] == "conflict"
    assert (await command_line("reconcile"))[0] == 0


async def test_resolving_needs_an_exception_and_a_reason(api: Api, apps: LedgerApps) -> None:
    number = await apps.ledger.database.fetchval(
        "INSERT INTO exception_list (kind, ref, detail) VALUES ('a', '1', '{}') RETURNING id"
    )
    missing = await api.call("POST", "/exceptions/99/resolve", {"reason": "x"}, status=404)
    assert missing["error"]["code"] == "exception_not_found"
    for path, body in (
        ("/exceptions/x/resolve", {"reason": "x"}),
        ("/exceptions/%C2%B2/resolve", {"reason": "x"}),
        (f"/exceptions/{'9' * 30}/resolve", {"reason": "x"}),
        (f"/exceptions/{number}/resolve", {"reason": " "}),
        (f"/exceptions/{number}/resolve", {}),
    ):
        await api.call("POST", path, body, status=400)
    assert len((await api.call("GET", "/exceptions"))["exceptions"]) == 1


async def test_repair_over_the_command_line(command_line: Any, sealed: str) -> None:
    code, found = await command_line("reconcile", "--repair", "--reason", "monday")
    assert (code, found) == (0, {"is_clean": True, "repaired": [], "left": []})
    with pytest.raises(json.JSONDecodeError):
        await command_line("reconcile", "--repair")
