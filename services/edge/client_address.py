"""Whose address a request has: the peer's, or what a trusted proxy says it is."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

from aiohttp import web

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class TrustedProxies:
    """The networks whose `X-Forwarded-For` is believed.

    Raises ValueError when one isn't a CIDR network.
    """

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks: tuple[Network, ...] = tuple(
            ipaddress.ip_network(text, strict=False) for text in networks
        )
        self._trusts = lru_cache(maxsize=4096)(self._is_trusted)

    def address_of(self, request: web.Request) -> str | None:
        """Who sent `request`; None when the connection is gone."""
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        return self.client_address(
            peer[0] if isinstance(peer, tuple) else None, request.headers.get("X-Forwarded-For")
        )

    def client_address(self, peer: str | None, forwarded_for: str | None) -> str | None:
        """The nearest address that is no trusted proxy; what stands left of it in the header is hearsay."""
        if peer is None or not self._networks or not forwarded_for or not self._trusts(peer):
            return peer
        address = peer
        for hop in reversed(forwarded_for[-2048:].split(",")):
            text = hop.strip()
            if _parse(text) is None:
                return address
            address = text
            if not self._trusts(text):
                return address
        return address

    def _is_trusted(self, text: str) -> bool:
        address = _parse(text)
        return address is not None and any(
            address.version == network.version and address in network for network in self._networks
        )


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
