"""Which addresses a channel may have, and which headers it may add.

An operator's console must not become a door into the network the gateway stands in: a base URL whose
host resolves to a private, loopback, link-local or metadata address is refused unless the channel
says `allow_private_addresses`. A name that doesn't resolve is refused too: nothing is known of it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Mapping
from typing import Final

from yarl import URL

from services.common.errors import BadRequest

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]{0,2000}")
_HEADERS_MAX: Final = 32
_RESOLVE_TIMEOUT_S: Final = 5.0
# What the gateway itself sets: the credential, the framing, what the connection needs.
_RESERVED_HEADERS: Final = frozenset(
    [
        "accept-encoding",
        "api-key",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-api-key",
    ]
)
_RESERVED_HEADER_PREFIXES: Final = ("proxy-", "x-meterway-")
# Azure's metadata and agent endpoint: a public address by number, but not by meaning.
_METADATA_ADDRESSES: Final = frozenset({ipaddress.ip_address("168.63.129.16")})
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def normalized_base_url(text: str) -> str:
    """`text` without a slash at its end. Raises BadRequest when it is no base URL."""
    try:
        url = URL(text.strip())
        port = url.port
    except ValueError as error:
        raise _bad_url("is not a URL") from error
    if url.scheme not in ("http", "https") or not url.host or not port:
        raise _bad_url("must begin with http:// or https:// and a host")
    if url.user is not None or url.password is not None:
        raise _bad_url("must not carry a user or password: put the secret in `credentials`")
    if url.raw_query_string or url.raw_fragment:
        raise _bad_url("must have neither a query nor a fragment")
    if len(text) > 500 or url.path.strip("/") == "":
        raise _bad_url("must end in the API's path, such as /v1")
    return str(url).rstrip("/")


async def require_public_address(base_url: str) -> None:
    """Raises BadRequest when the host of `base_url` doesn't resolve, or to any address that isn't public."""
    url = URL(base_url)
    host = url.host or ""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_RESOLVE_TIMEOUT_S):
            infos = await loop.getaddrinfo(host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError) as error:
        raise _bad_url(f"has a host, {host}, that does not resolve: please check its spelling") from error
    for *_rest, socket_address in infos:
        if not is_public_address(ipaddress.ip_address(str(socket_address[0]).partition("%")[0])):
            raise _bad_url(
                f"has a host, {host}, with a private address; set allow_private_addresses if that is meant"
            )


def is_public_address(address: Address) -> bool:
    """Whether anyone on the Internet could mean this address. IPv4 inside IPv6 counts as what it leads to."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address.teredo is not None:
            inner = address.teredo[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public_address(inner)
    return address.is_global and not address.is_multicast and address not in _METADATA_ADDRESSES


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """`headers` with names in lower case. Raises BadRequest for one that a channel may not set."""
    if len(headers) > _HEADERS_MAX:
        raise BadRequest(f"headers: at most {_HEADERS_MAX} are allowed.", param="headers")
    checked: dict[str, str] = {}
    for name, value in headers.items():
        lower = name.lower()
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise BadRequest(
                f"headers: {name[:100]!r} is not a valid header name, or its value has characters "
                "that a header can't have.",
                param="headers",
            )
        if lower in _RESERVED_HEADERS or lower.startswith(_RESERVED_HEADER_PREFIXES):
            raise BadRequest(
                f"headers: {lower} is set by the gateway and can't be overridden.", param="headers"
            )
        if lower in checked:
            raise BadRequest(f"headers: {lower} is there twice.", param="headers")
        checked[lower] = value
    return checked


def _bad_url(what: str) -> BadRequest:
    return BadRequest(f"base_url {what}.", param="base_url", code="invalid_base_url")
