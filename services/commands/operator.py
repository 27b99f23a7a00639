"""Commands that ask a running ledger: accounts, keys, prices, channels, balances, reconciliation."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from services.commands.console_client import ConsoleError, Target, ask, find_target, quote
from services.common.ids import new_uuid7
from services.common.money import nanos_to_usd

_PRICE_OPTIONS = (
    "input",
    "output",
    "cached_input",
    "cache_write",
    "reasoning",
    "audio_input",
    "audio_output",
)
_KEY_OPTIONS = (
    "name", "quota_usd", "models", "addresses", "expires_at", "requests_per_minute", "tokens_per_minute",
    "concurrency", "budget_day_usd", "budget_month_usd",
)  # fmt: skip

# A journal of a hundred million entries takes about this long.
_VERIFY_TIMEOUT_S = 1_800


def run_operator_command(arguments: argparse.Namespace) -> int:
    """Returns the exit code."""
    try:
        document = _dispatch(find_target(arguments.data_dir), arguments)
    except ConsoleError as error:
        print(f"meterway: {error}", file=sys.stderr)
        return 2
    print(json.dumps(document) if arguments.json else _as_text(document))
    return 1 if _has_found_a_fault(arguments.command, document) else 0


def _has_found_a_fault(command: str, document: dict[str, Any]) -> bool:
    match command:
        case "reconcile":
            return not document["is_clean"]
        case "verify":
            return not document["ok"]
        case _:
            return False


def _dispatch(target: Target, arguments: argparse.Namespace) -> dict[str, Any]:
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    match arguments.command, getattr(arguments, "action", None):
        case "account", "create":
            return ask(target, "POST", "/accounts", _pick(given, ("email",)))
        case "account", action:
            return ask(target, "POST", f"/accounts/{quote(arguments.account)}/{action}", {})
        case "credit", _:
            # The reference makes it one credit, however often the call is sent.
            body = {"usd": arguments.usd, "reason": arguments.reason, "ref": f"cli:{new_uuid7()}"}
            return ask(target, "POST", f"/accounts/{quote(arguments.account)}/credits", body)
        case "balance", _:
            return ask(target, "GET", f"/accounts/{quote(arguments.account)}/balance")
        case "usage", _:
            return ask(target, "GET", f"/accounts/{quote(arguments.account)}/usage?limit={arguments.limit}")
        case "key", "create":
            body = _pick(given, _KEY_OPTIONS)
            return ask(target, "POST", f"/accounts/{quote(arguments.account)}/keys", body)
        case "key", action:
            return ask(target, "POST", f"/keys/{quote(arguments.key)}/{action}", {})
        case "price", _:
            body = _pick(given, (*_PRICE_OPTIONS, "starts_at"))
            return ask(target, "PUT", f"/models/{quote(arguments.model)}/price", body)
        case "channel", "add":
            return ask(target, "POST", "/channels", _channel(arguments))
        case "channel", _:
            return ask(target, "GET", "/channels")
        case _:
            return _dispatch_books(target, arguments)


def _dispatch_books(target: Target, arguments: argparse.Namespace) -> dict[str, Any]:
    match arguments.command, getattr(arguments, "action", None):
        case "edge", "forget":
            return ask(target, "POST", f"/edges/{quote(arguments.edge)}/forget", {})
        case "edge", _:
            return ask(target, "GET", "/edges")
        case "verify", _:
            return ask(target, "POST", "/verify", _verify(arguments), timeout_s=_VERIFY_TIMEOUT_S)
        case "exceptions", "list":
            shown = "true" if arguments.all else "false"
            return ask(target, "GET", f"/exceptions?all={shown}&limit={arguments.limit}")
        case "exceptions", _:
            body = {"reason": arguments.reason}
            return ask(target, "POST", f"/exceptions/{arguments.exception}/resolve", body)
        case _ if arguments.repair:
            return ask(target, "POST", "/reconcile/repair", {"reason": arguments.reason or ""})
        case _:
            return ask(target, "POST", "/reconcile", {})


def _pick(given: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def _verify(arguments: argparse.Namespace) -> dict[str, Any]:
    body: dict[str, Any] = {"from_block": arguments.from_block}
    if arguments.noted:
        number, block_hash = arguments.noted
        body["noted"] = {"number": number, "hash": block_hash}
    return body


def _channel(arguments: argparse.Namespace) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": arguments.name,
        "base_url": arguments.base_url,
        "credentials": arguments.keys or [],
        "priority": arguments.priority,
        "weight": arguments.weight,
        "allow_private_addresses": arguments.allow_private,
    }
    if arguments.models:
        pairs = (model.partition("=") for model in arguments.models)
        body["models"] = {model: upstream or model for model, _, upstream in pairs}
    if arguments.headers:
        body["headers"] = dict(header.split("=", 1) for header in arguments.headers)
    return body


def _as_text(document: dict[str, Any]) -> str:
    rows = next((value for value in document.values() if _is_table(value)), None)
    lines = [f"{name}: {_value(name, value)}" for name, value in document.items() if value is not rows]
    if rows:
        lines += ["", *_table(rows)]
    return "\n".join(lines)


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _value(name: str, value: object) -> str:
    if name.endswith("_nanos") and isinstance(value, int):
        return f"{value} (${nanos_to_usd(value)})"
    return value if isinstance(value, str) else json.dumps(value)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    columns = list(rows[0])
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


def _cell(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
