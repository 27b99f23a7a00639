"""The command line's grammar."""

from __future__ import annotations

import argparse
from pathlib import Path

DEFAULT_DATA_DIR = Path(".meterway")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="meterway", description="The prepaid, quota-metered gateway for LLM APIs."
    )
    _add_target(parser, default_data_dir=DEFAULT_DATA_DIR, default_json=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_up(commands)
    _add_edges(commands)
    for name, what in (
        ("meter", "the service that prices and admits"),
        ("ledger", "the books and the console"),
    ):
        commands.add_parser(name, help=f"run {what}, settings from the environment")
    commands.add_parser("migrate", help="bring the database's schema up to date")
    _add_accounts(commands)
    _add_keys(commands)
    _add_prices(commands)
    _add_channels(commands)
    _add_books(commands)
    return parser


Commands = argparse._SubParsersAction


def _add_target(
    parser: argparse.ArgumentParser,
    *,
    default_data_dir: object = argparse.SUPPRESS,
    default_json: object = argparse.SUPPRESS,
) -> None:
    """Which running stack is meant, and how the answer is printed. May stand before or after the command."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=default_data_dir,
        metavar="D",
        help="the data directory of `meterway up` (./.meterway); the environment's"
        " METERWAY_CONSOLE_URL and METERWAY_OPERATOR_TOKEN go before it",
    )
    parser.add_argument("--json", action="store_true", default=default_json, help="print one JSON document")


def _add_up(commands: Commands[argparse.ArgumentParser]) -> None:
    up = commands.add_parser("up", help="start everything on this machine")
    up.add_argument(
        "--data-dir",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="D",
        help="where data and secrets are kept (./.meterway)",
    )
    up.add_argument("--edge-port", type=_port, default=8080, metavar="P", help="the API's port; 0: any")
    up.add_argument(
        "--console-port", type=_port, default=8081, metavar="P", help="the console's port; 0: any"
    )
    up.add_argument(
        "--upstream",
        metavar="URL",
        help="an OpenAI-compatible base URL that ends in /v1"
        " (else OPENAI_BASE_URL, OPENAI_API_KEY, else the emulator)",
    )
    up.add_argument("--upstream-key", metavar="K", help="the upstream's API key (else OPENAI_API_KEY)")
    up.add_argument("--edges", type=_replicas, default=1, metavar="N", help="edge processes on the one port")
    up.add_argument("--meters", type=_replicas, default=1, metavar="N", help="meter processes")
    up.add_argument("--ready-file", type=Path, metavar="F", help="written once everything serves")


def _add_accounts(commands: Commands[argparse.ArgumentParser]) -> None:
    account = commands.add_parser("account", help="create, suspend or resume an account")
    actions = account.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="a new account with a balance of 0")
    create.add_argument("--email", metavar="E")
    _add_target(create)
    for name in ("suspend", "resume"):
        action = actions.add_parser(name)
        action.add_argument("account", metavar="ACCOUNT")
        _add_target(action)
    credit = commands.add_parser("credit", help="move money to an account's balance")
    credit.add_argument("account", metavar="ACCOUNT")
    credit.add_argument("usd", metavar="USD", help="up to nine decimals")
    credit.add_argument("--reason", required=True, metavar="R", help="stands in the journal")
    _add_target(credit)
    balance = commands.add_parser("balance", help="an account's balance")
    balance.add_argument("account", metavar="ACCOUNT")
    _add_target(balance)
    usage = commands.add_parser("usage", help="an account's usage, newest first")
    usage.add_argument("account", metavar="ACCOUNT")
    usage.add_argument("--limit", type=int, default=1_000, metavar="N")
    _add_target(usage)


def _add_keys(commands: Commands[argparse.ArgumentParser]) -> None:
    key = commands.add_parser("key", help="create, disable or enable an API key")
    actions = key.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="the key is shown once")
    create.add_argument("--account", required=True, metavar="A")
    quota = create.add_mutually_exclusive_group()
    quota.add_argument("--quota-usd", metavar="X", help="what the key may spend in all")
    quota.add_argument("--unlimited", action="store_true", help="only the balance limits it (the default)")
    create.add_argument("--name", metavar="N")
    create.add_argument(
        "--model", action="append", dest="models", metavar="M", help="may use only this; repeat"
    )
    create.add_argument("--address", action="append", dest="addresses", metavar="CIDR", help="repeat")
    create.add_argument("--expires-at", metavar="TIME", help="ISO 8601, e.g. 2027-01-31T00:00:00Z")
    for option in ("requests-per-minute", "tokens-per-minute", "concurrency"):
        create.add_argument(f"--{option}", type=int, metavar="N")
    for option in ("budget-day-usd", "budget-month-usd"):
        create.add_argument(f"--{option}", metavar="X")
    _add_target(create)
    for name in ("disable", "enable"):
        action = actions.add_parser(name)
        action.add_argument("key", metavar="KEY_ID")
        _add_target(action)


def _add_prices(commands: Commands[argparse.ArgumentParser]) -> None:
    price = commands.add_parser("price", help="set a model's price: a new version, from now on")
    actions = price.add_subparsers(dest="action", required=True, metavar="ACTION")
    set_price = actions.add_parser("set", help="USD per 1M tokens")
    set_price.add_argument("model", metavar="MODEL")
    set_price.add_argument("--input", required=True, metavar="USD_PER_M")
    set_price.add_argument("--output", required=True, metavar="USD_PER_M")
    for option in ("cached-input", "cache-write", "reasoning", "audio-input", "audio-output"):
        set_price.add_argument(f"--{option}", metavar="USD_PER_M")
    set_price.add_argument("--starts-at", metavar="TIME", help="ISO 8601; else now")
    _add_target(set_price)


def _add_channels(commands: Commands[argparse.ArgumentParser]) -> None:
    channel = commands.add_parser("channel", help="add or list upstreams")
    actions = channel.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="live on every edge within a second")
    add.add_argument("name", metavar="NAME")
    add.add_argument("--base-url", required=True, metavar="URL")
    add.add_argument("--key", action="append", dest="keys", metavar="K", help="a credential; repeat")
    add.add_argument(
        "--model", action="append", dest="models", metavar="M[=UPSTREAM]", help="else every model; repeat"
    )
    add.add_argument("--priority", type=int, default=0, metavar="N", help="higher is tried first")
    add.add_argument("--weight", type=int, default=1, metavar="N", help="share inside a priority")
    add.add_argument("--header", action="append", dest="headers", metavar="NAME=VALUE")
    add.add_argument("--allow-private", action="store_true", help="the address may be private")
    _add_target(add)
    _add_target(actions.add_parser("list"))


def _add_edges(commands: Commands[argparse.ArgumentParser]) -> None:
    edge = commands.add_parser(
        "edge", help="run the API traffic's service, settings from the environment; or list or forget edges"
    )
    actions = edge.add_subparsers(dest="action", metavar="[ACTION]")
    _add_target(actions.add_parser("list", help="those that have registered"))
    forget = actions.add_parser(
        "forget", help="one that is gone for good: its sessions end, its log may charge no more"
    )
    forget.add_argument("edge", metavar="EDGE_ID")
    _add_target(forget)


def _add_books(commands: Commands[argparse.ArgumentParser]) -> None:
    reconcile = commands.add_parser("reconcile", help="compare both stores; exit 1 on any difference")
    reconcile.add_argument("--repair", action="store_true", help="mend what is proven, by journal entries")
    reconcile.add_argument("--reason", metavar="R", help="of the repair; stands in the journal")
    _add_target(reconcile)
    verify = commands.add_parser(
        "verify", help="recompute the journal's hash chain and the trial balance; exit 1 on any fault"
    )
    verify.add_argument(
        "--from-block", type=int, default=1, metavar="N", help="check the chain from this one"
    )
    verify.add_argument(
        "--noted", type=_noted, metavar="N:HASH", help="a block noted earlier, which must still be the same"
    )
    _add_target(verify)
    exceptions = commands.add_parser("exceptions", help="list what a person should look at, and resolve it")
    actions = exceptions.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="newest first")
    listing.add_argument("--all", action="store_true", help="the resolved ones, too")
    listing.add_argument("--limit", type=int, default=1_000, metavar="N")
    _add_target(listing)
    resolve = actions.add_parser("resolve")
    resolve.add_argument("exception", type=int, metavar="ID")
    resolve.add_argument("--reason", required=True, metavar="R", help="stands in the audit log")
    _add_target(resolve)


def _noted(text: str) -> tuple[int, str]:
    number, _, block_hash = text.partition(":")
    if not number.isdigit() or not block_hash:
        raise argparse.ArgumentTypeError("expected NUMBER:HASH")
    return int(number), block_hash


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is no port")
    return port


def _replicas(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 64:
        raise argparse.ArgumentTypeError("between 1 and 64")
    return number
