"""Asks the ledger's JSON API on behalf of the command line."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.standalone.data_directory import DataDirectoryError, read_secrets

CONSOLE_URL_FILE = "console-url"
_TIMEOUT_SECONDS = 60


class ConsoleError(Exception):
    """The ledger can't be reached or has refused; the message says what to do."""


@dataclass(frozen=True)
class Target:
    """Where the ledger is and the operator token it takes."""

    console_url: str
    operator_token: str


def find_target(data_dir: Path) -> Target:
    """The environment's stack, else the one that runs on `data_dir`. Raises ConsoleError."""
    url, token = os.environ.get("METERWAY_CONSOLE_URL"), os.environ.get("METERWAY_OPERATOR_TOKEN")
    if url and token:
        return Target(url.rstrip("/"), token)
    try:
        operator_token = read_secrets(data_dir).operator_token
        return Target((data_dir / CONSOLE_URL_FILE).read_text().strip(), operator_token)
    except (DataDirectoryError, OSError) as error:
        raise ConsoleError(
            f"No Meterway is known at {data_dir}: start it with `meterway up --data-dir {data_dir}`,"
            " or set METERWAY_CONSOLE_URL and METERWAY_OPERATOR_TOKEN."
        ) from error


def ask(
    target: Target,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    timeout_s: float = _TIMEOUT_SECONDS,
) -> dict[str, Any]:
    """One call of the JSON API. `path` starts behind `/api/v1`. Raises ConsoleError."""
    request = urllib.request.Request(  # noqa: S310 - the operator's own console
        f"{target.console_url}/api/v1{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {target.operator_token}", "Content-Type": "application/json"},
    )
    # No proxy of the environment: the console is the operator's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            document: dict[str, Any] = json.load(answer)
            return document
    except urllib.error.HTTPError as error:
        with error:
            raise ConsoleError(_refusal(error)) from None
    except (OSError, ValueError) as error:
        raise ConsoleError(
            f"No answer from the console at {target.console_url} ({error}). Is it running?"
        ) from error


def quote(part: str) -> str:
    """A path part; a model's id may contain a slash."""
    return urllib.parse.quote(part, safe="")


def _refusal(error: urllib.error.HTTPError) -> str:
    try:
        detail = json.load(error)["error"]
        return f"{detail['message']} ({detail['code']})"
    except (ValueError, KeyError, TypeError):
        return f"The console answered with status {error.code}."
