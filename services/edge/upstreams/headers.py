"""Which headers pass through the gateway, each way. What is not named here doesn't."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.common.contracts.catalogue import Channel, ChannelCredential

USER_AGENT: Final = "meterway"
_TO_UPSTREAM: Final = ("openai-beta",)
_TO_CLIENT_NAMES: Final = frozenset({"content-type", "content-language", "retry-after", "retry-after-ms"})
_TO_CLIENT_PREFIX: Final = "openai-"
_NEVER_TO_CLIENT: Final = frozenset({"openai-organization", "openai-project"})
_FRAMING: Final = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "te",
        "upgrade",
        "expect",
        "content-encoding",
    }
)
_HEADER_CHARS_MAX: Final = 1_024


def request_headers(client_headers: Mapping[str, str], *, request_id: str, stream: bool) -> dict[str, str]:
    """What an upstream gets to see of a request; names in lower case. `client_headers`: any case-insensitive
    mapping."""
    headers = {
        "content-type": "application/json",
        "accept": "text/event-stream" if stream else "application/json",
        # Decoding costs us more than the bytes do; what comes encoded nevertheless is decoded.
        "accept-encoding": "identity",
        "user-agent": USER_AGENT,
        "x-request-id": request_id,
    }
    for name in _TO_UPSTREAM:
        value = client_headers.get(name)
        # Other characters can't be sent on; they must not look like the upstream's failure.
        if value and len(value) <= _HEADER_CHARS_MAX and value.isascii() and value.isprintable():
            headers[name] = value
    return headers


def upstream_headers(
    headers: Mapping[str, str], channel: Channel, credential: ChannelCredential
) -> dict[str, str]:
    """`headers` (from `request_headers`) with the channel's own and its credential, which win. Names in lower
    case; what frames the message is nobody's to set."""
    merged = dict(headers)
    for name, value in channel.headers.items():
        if name.lower() not in _FRAMING:
            merged[name.lower()] = value
    if channel.kind == "azure":
        merged["api-key"] = credential.secret
    else:
        merged["authorization"] = f"Bearer {credential.secret}"
    return merged


def reply_headers(upstream_headers: Mapping[str, str]) -> dict[str, str]:
    """What a client gets to see of a reply's headers; names come out in lower case."""
    kept: dict[str, str] = {}
    for name, value in upstream_headers.items():
        lower = name.lower()
        if lower in _TO_CLIENT_NAMES or (
            lower.startswith(_TO_CLIENT_PREFIX) and lower not in _NEVER_TO_CLIENT
        ):
            kept[lower] = value
    return kept
