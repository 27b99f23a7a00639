"""Where a service's instances are: every address behind each configured URL's host name.

A setting such as `http://meter:7001` names all replicas behind the DNS name `meter`; a comma
separated list names them one by one. Names are looked up again regularly, so scaling needs no
other step.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from yarl import URL


async def resolve_instances(urls: Sequence[str]) -> tuple[str, ...]:
    """One URL per address behind `urls`, sorted, without duplicates. A name that doesn't resolve
    yields none: its replicas are away."""
    found: set[str] = set()
    loop = asyncio.get_running_loop()
    for text in urls:
        url = URL(text)
        host, port = url.host or "", url.port
        try:
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            continue
        for _family, _type, _proto, _name, address in infos:
            found.add(str(url.with_host(str(address[0]))).rstrip("/"))
    return tuple(sorted(found))


class Instances:
    """The instances behind `urls`, looked up again every `interval_ms` while `watch` runs."""

    def __init__(self, urls: Sequence[str], *, interval_ms: int = 2_000) -> None:
        self._urls = tuple(urls)
        self._interval_ms = interval_ms
        self.current: tuple[str, ...] = ()

    async def refresh(self) -> tuple[str, ...]:
        found = await resolve_instances(self._urls)
        # A DNS outage must not make known replicas disappear.
        if found:
            self.current = found
        return self.current

    async def watch(self) -> None:
        """Runs until cancelled."""
        while True:
            await asyncio.sleep(self._interval_ms / 1000)
            await self.refresh()
