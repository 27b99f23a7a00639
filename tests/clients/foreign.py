"""Foreign upstreams as channels of the running stack."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from services.commands.console_client import ask
from tests.clients.payer import Payer

LIVE_SECONDS_MAX = 10.0
# Two edges share the port; so many new connections in a row meet both of them.
SURE_CONNECTIONS = 12


@contextmanager
def channels_to(
    payer: Payer,
    base_urls: list[str],
    models: dict[str, str],
    *,
    credentials: int = 1,
    without_output: frozenset[str] = frozenset(),
) -> Iterator[None]:
    """Channels that serve `models` (our id: the upstream's) while the block runs; every edge knows them.

    Each model costs $1 per million tokens in and $3 out; those `without_output` cost nothing out.
    """
    names = [f"{next(iter(models))}-{index}" for index in range(len(base_urls))]
    made = [
        ask(
            payer.target,
            "POST",
            "/channels",
            {
                "name": name,
                "base_url": base_url,
                "models": models,
                "credentials": [f"unused-{number}" for number in range(credentials)],
                "allow_private_addresses": True,
            },
        )
        for name, base_url in zip(names, base_urls, strict=True)
    ]
    for model in models:
        payer.set_price(model, input_usd="1", output_usd="0" if model in without_output else "3")
    try:
        _wait_until_live(payer, set(models))
        yield
    finally:
        for channel in made:
            ask(payer.target, "DELETE", f"/channels/{channel['id']}")


def _wait_until_live(payer: Payer, models: set[str]) -> None:
    give_up_at = time.monotonic() + LIVE_SECONDS_MAX
    request = urllib.request.Request(
        f"{payer.base_url}/models", headers={"Authorization": f"Bearer {payer.api_key}"}
    )
    seen = 0
    while seen < SURE_CONNECTIONS:
        assert time.monotonic() < give_up_at, f"{models} never became available"
        with urllib.request.urlopen(request, timeout=10) as answer:
            listed = {model["id"] for model in json.load(answer)["data"]}
        seen = seen + 1 if models <= listed else 0
        if not seen:
            time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_until_it_listens(port: int, seconds_max: float = 30.0) -> None:
    give_up_at = time.monotonic() + seconds_max
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < give_up_at, f"nothing listens on port {port}"
            time.sleep(0.05)
        else:
            return


def ask_json(url: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    """GET, or POST of `body`."""
    request = urllib.request.Request(
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **(headers or {})},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
