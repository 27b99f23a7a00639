"""Bytes of server-sent events in every shape that occurs in the wild. Pure."""

from collections.abc import Callable
from typing import Final

from services.emulator.script import Script

DONE: Final = b"[DONE]"
_NEWLINES: Final = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}


def encoder(script: Script) -> Callable[[bytes], bytes]:
    """A function from an event's payload to the bytes sent for it; it counts the events it is given."""
    newline = _NEWLINES[script.newline]
    field = b"data:" if script.no_space else b"data: "
    end = newline * 2
    if not (script.multi_line or script.comments or script.keepalive):
        return lambda payload: field + payload + end
    place = 0

    def encode(payload: bytes) -> bytes:
        nonlocal place
        place += 1
        before = b""
        if script.comments and place % script.comments == 0:
            before += b": OPENROUTER PROCESSING" + end
        if script.keepalive and place % script.keepalive == 0:
            before += b"data: : keepalive" + end
        if script.multi_line:
            # Between two members JSON allows a line feed, which is what joins the lines of an event.
            payload = payload.replace(b',"object"', newline + field + b',"object"', 1)
        return before + field + payload + end

    return encode
